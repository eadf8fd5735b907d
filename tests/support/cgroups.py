"""Memory cgroups for tests, of either version, and a process that the kernel kills in one. Needs root on Linux."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
DEVOUR = "x = bytearray(2**30)"


def memory_root() -> Path | None:
    """Where cgroups with a memory limit can be made; None where they cannot."""
    places = (ROOT / "memory", ROOT)
    for place in places:
        known = (place / "memory.limit_in_bytes").exists() or (place / "cgroup.controllers").exists()
        if known and os.access(place, os.W_OK) and sys.platform == "linux":
            with memory_cgroup(2**28, place) as folder:
                if folder is not None:
                    return place
    return None


@contextmanager
def memory_cgroup(limit: int, place: Path | None = None) -> Iterator[Path | None]:
    """A cgroup that may use `limit` bytes; its processes must be gone at the end. None where none can be made."""
    folder = (place or memory_root() or ROOT) / f"together-test-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
    except OSError:
        yield None
        return
    try:
        files = [folder / name for name in ("memory.max", "memory.limit_in_bytes") if (folder / name).exists()]
        for file in files:
            file.write_text(str(limit))
        yield folder if files else None
    finally:
        folder.rmdir()


def within(folder: Path) -> tuple[str, ...]:
    """A command that runs the command after it in the cgroup."""
    return ("sh", "-c", f'echo $$ > {folder}/cgroup.procs; exec "$@"', "sh")


def run_out_of_memory(folder: Path) -> None:
    """A process of the cgroup that the kernel kills."""
    done = subprocess.run([*within(folder), sys.executable, "-c", DEVOUR], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
