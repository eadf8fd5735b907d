"""Asks a backend about this machine in a short-lived child process: a node imports no framework and keeps its memory.

`python -m together.cluster.measure devices BACKEND` prints the devices as JSON. `… measure speeds FOLDER` reads a
MeasureOrder, in hex, as a line on its input and prints a Finding; FOLDER is on the disk that models are read from. A
child leaves when its input closes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from importlib import import_module
from math import isfinite
from pathlib import Path

from pydantic_core import to_json

from backends.base import open_backend
from backends.measuring import QUIET, lasts, watch_others
from together.cluster_types import DeviceProfile, MeasureOrder
from together.errors import BadInput, TogetherError
from together.models.spec import read_shape
from together.processes import claim_stdout, leave_with_parent
from together.ring import wire
from together.ring.message import message_ms

REFUSED = 2  # the exit code where the order is wrong, and not the machine
SPOOL_BYTES = 64 * 2**20
_CHUNK = 2**20


@dataclass(frozen=True, slots=True)
class Finding:
    """What was measured, when, and how disturbed: figures of a busy machine can be several times too slow."""

    profile: DeviceProfile
    busy: float  # the share of all processors that other programs used meanwhile, 0 to 1
    at: float  # seconds since 1970

    @property
    def disturbed(self) -> bool:
        return self.busy > QUIET

    @property
    def lasts(self) -> bool:
        """Whether it need not be measured again now."""
        return lasts(self.busy, self.at)

    def __post_init__(self) -> None:
        """Raises ValueError for a figure that is negative or not finite."""
        if not all(isfinite(number) and number >= 0 for number in (self.busy, self.at)):
            raise ValueError("not a finding")


def measure(order: MeasureOrder, spool: Path) -> Finding:
    """Takes seconds. Raises what the backend raises for a model or device that does not run here."""
    import_module("together.ring.stage")  # a stage has it in memory as well
    backend = open_backend(order.backend)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        (folder / "config.json").write_bytes(order.config)
        others = watch_others()
        found = backend.measure(folder, order.device, order.dtype, order.packed)
        width = read_shape(folder).hidden_size
        found = replace(found, ms_per_step=asyncio.run(message_ms(width, order.dtype)))
        busy = others()
    return Finding(replace(found, disk_bytes_per_s=disk_speed(spool)), busy, time.time())


def disk_speed(folder: Path, size: int = SPOOL_BYTES) -> float:
    """Bytes per second of reading a file of `size` bytes past the system's cache.

    0 where that cannot be measured: the system keeps its cache, or the disk is full or read-only.
    """
    try:
        if shutil.disk_usage(folder).free < 4 * size:
            return 0.0
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            bypassed = _bypass_cache(file.fileno())
            _fill(file.fileno(), size)
            return _read_all(file.fileno(), size) if bypassed or _drop_cache(file.fileno()) else 0.0
    except OSError:
        return 0.0


def _fill(file: int, size: int) -> None:
    noise = os.urandom(_CHUNK)  # not zeros, which some file systems do not store
    for _ in range(0, size, _CHUNK):
        os.write(file, noise)
    os.fsync(file)
    os.lseek(file, 0, os.SEEK_SET)


def _read_all(file: int, size: int) -> float:
    began = time.perf_counter()
    while os.read(file, _CHUNK):
        pass
    return size / max(time.perf_counter() - began, 1e-9)


def _bypass_cache(file: int) -> bool:
    """macOS: keep what is written and read through this file out of the cache."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(file, fcntl.F_NOCACHE, 1)
        return True
    return False


def _drop_cache(file: int) -> bool:
    """Linux and other systems with posix_fadvise: drop what was written from the cache."""
    if sys.platform != "win32" and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        return True
    return False


def main() -> None:
    answers = claim_stdout()
    kind, argument = sys.argv[1:]
    line = b"" if kind == "devices" else sys.stdin.buffer.readline()
    leave_with_parent(1)
    try:
        if kind == "devices":
            answer: object = open_backend(argument).probe()
        else:
            answer = measure(wire.MEASURE_ORDER.decode(bytes.fromhex(line.decode())), Path(argument))
    except TogetherError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(REFUSED if isinstance(error, BadInput) else 1)
    answers.write(to_json(answer).decode())
    answers.flush()


if __name__ == "__main__":
    main()
