"""How hard this machine works: its processors, and what its stages read back from the disk for lack of memory."""

from __future__ import annotations

import mmap
import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import psutil

from together.cluster_types import Strain

SPAN = 5.0  # seconds that figures are averages of
_STEP = 0.05  # shares are told in steps of this size: a status that changes is sent to every page
_MEGABYTE = 1e6


@dataclass(frozen=True, slots=True)
class _Reading:
    """Counters at one moment, in seconds of all processors and in bytes; they only grow."""

    at: float
    idle: float
    own: float
    paged: int


@dataclass(slots=True)
class StrainGauge:
    """Reads counters of this machine, of this process and of its stages; `read` it at every heartbeat."""

    _readings: deque[_Reading] = field(default_factory=deque)
    _known: dict[int, tuple[psutil.Process, float, int]] = field(default_factory=dict)  # by process, its last counters
    _own: float = 0.0
    _paged: int = 0

    def read(self, stages: Iterable[int]) -> Strain:
        """The last SPAN seconds, or those since the first call. `stages` are processes that have loaded."""
        own = psutil.Process().pid
        self._follow({own, *stages}, own)
        times, now = psutil.cpu_times(), time.monotonic()
        self._readings.append(_Reading(now, times.idle + getattr(times, "iowait", 0.0), self._own, self._paged))
        while len(self._readings) > 2 and self._readings[1].at <= now - SPAN:
            self._readings.popleft()
        return _between(self._readings[0], self._readings[-1])

    def _follow(self, pids: set[int], own: int) -> None:
        """Add what these processes did since the last call; what they did before the first one counts for nothing."""
        before, self._known = self._known, {}
        for pid in pids:
            try:
                process = before[pid][0] if pid in before else psutil.Process(pid)
                times = process.cpu_times()
                spent, paged = times.user + times.system, 0 if pid == own else _paged(process)
            except psutil.Error:  # it ended meanwhile
                continue
            self._known[pid] = process, spent, paged
            _, spent_before, paged_before = before.get(pid, self._known[pid])
            self._own += spent - spent_before
            self._paged += paged - paged_before


def _between(first: _Reading, last: _Reading) -> Strain:
    seconds = last.at - first.at
    if seconds <= 0:
        return Strain()
    all_of_it = seconds * (psutil.cpu_count() or 1)
    busy = 1 - (last.idle - first.idle) / all_of_it
    return Strain(
        _share(busy),
        _share((last.own - first.own) / all_of_it),
        round((last.paged - first.paged) / seconds / _MEGABYTE) * _MEGABYTE,
    )


def _share(part: float) -> float:
    return round(min(max(part, 0.0), 1.0) / _STEP) * _STEP


def _paged(process: psutil.Process) -> int:
    """Bytes that it had to wait for the disk for; 0 where nobody may know. Windows counts no such thing by itself."""
    if sys.platform == "linux":
        try:
            return int(process.io_counters().read_bytes)
        except (AttributeError, psutil.AccessDenied):  # a kernel that does not count, or does not tell
            return 0
    return getattr(process.memory_info(), "pageins", 0) * mmap.PAGESIZE
