"""Whether other programs of this machine need memory that it has no more: known before the system kills anything.

Free memory alone tells it on every system. Linux also says how long programs waited for memory, which tells of a
machine that reads its programs' own pages back from the disk while some memory still seems free.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from together.cluster.cgroups import stalled_share
from together.cluster.claims import main_memory

LEAST = 2**29  # bytes that are to be free on any machine; on a small one a twentieth
ENOUGH = 1.5  # times as much ends the need …
CALM = 10.0  # … once it lasts so many seconds: what we give back must not be taken again at once
BEGINS = 2  # looks in a row that must say so: a program that starts is no reason
STALLED = 0.1  # of the time some program waits for memory, which counts where there is little of it
LITTLE = 3.0  # times the least


@dataclass(slots=True)
class PressureGauge:
    """`read` it every few seconds; it takes half a millisecond."""

    clock: Callable[[], float] = time.monotonic
    lacking: int = 0  # bytes that others need and do not have; 0: enough is free
    _short: int = 0  # looks in a row
    _calm: float | None = None  # since when enough is free

    def read(self) -> int:
        memory = main_memory()
        return self.note(memory.available, memory.total, stalled_share())

    def note(self, available: int, total: int, stalled: float) -> int:
        """The same of what was read: bytes, and the share of the time that programs waited for memory."""
        least = min(LEAST, total // 20)
        waits = stalled >= STALLED and available < LITTLE * least
        self._short = self._short + 1 if waits or available < least else 0
        enough = not waits and available >= ENOUGH * least
        self._calm = (self._calm if self._calm is not None else self.clock()) if enough else None
        if self._calm is not None and self.clock() - self._calm >= CALM:
            self.lacking = 0
        elif self.lacking or self._short >= BEGINS:
            step = max(least // 4, 1)  # a status that changes is sent to every page
            self.lacking = max(-(-(2 * least - available) // step), 1) * step
        return self.lacking
