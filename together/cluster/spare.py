"""A node's spare stage processes: what takes seconds of a stage's start is done in them before a stage is lost.

One for each backend that the node's stages use, while there is enough memory. They are no stages: no plan and no status
knows of them, and what they take counts as used by others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import psutil

from together.cluster.supervisor import LEAVE_WITHIN, Started, start_process
from together.processes import end
from together.ring.warm import Warm

log = logging.getLogger(__name__)

FREE = 2 * 10**9  # bytes of memory that the node must have left to grant
ROOM = 2**29  # bytes that one may take: with less, it would have to end again at once


@dataclass(slots=True)
class Spares:
    """`free` says how many bytes of main memory the node may still grant."""

    free: Callable[[], int]
    _held: dict[str, Started] = field(default_factory=dict)  # by backend

    @property
    def any(self) -> bool:
        return bool(self._held)

    async def keep(self, backends: Collection[str]) -> None:
        """Have one for each of these and no other, as far as the memory allows."""
        for backend, spare in list(self._held.items()):
            if backend not in backends or not _runs(spare) or self.free() < FREE:
                await self._end(backend)
        for backend in backends:
            if backend not in self._held and self.free() >= FREE + ROOM:
                await self._start(backend)

    async def make_room(self) -> None:
        """End them where memory is short."""
        await self.keep(tuple(self._held))

    async def take(self, backend: str) -> Started:
        """The spare of a backend, which is the caller's now, or a new process. Raises OSError where there is none."""
        spare = self._held.pop(backend, None)
        if spare is not None and _runs(spare):
            return spare
        if spare is not None:
            spare.witness.close()
        return await start_process(backend)

    async def close(self) -> None:
        await self.keep(())

    async def _start(self, backend: str) -> None:
        try:
            spare = await start_process(backend)
        except OSError as error:
            log.info("no spare process: %s", error)
            return
        assert spare.process.stdin is not None
        spare.process.stdin.write(Warm(backend).line())
        self._held[backend] = spare

    async def _end(self, backend: str) -> None:
        spare = self._held.pop(backend)
        await end(spare.process, LEAVE_WITHIN)
        spare.witness.close()


def _runs(spare: Started) -> bool:
    """Asked of the system too: asyncio's watcher collects a process before the event loop hears of its end."""
    return spare.process.returncode is None and psutil.pid_exists(spare.process.pid)
