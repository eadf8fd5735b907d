"""One changing thing, many waiters: a counter that tasks can wait on. Knows nothing of what changed."""

from __future__ import annotations

import asyncio


class Broadcast:
    """`notify` wakes every waiter; a waiter that was busy meanwhile does not miss it."""

    def __init__(self) -> None:
        self.version = 0
        self._changed = asyncio.Event()

    def notify(self) -> None:
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, seen: int, timeout: float) -> int:
        """Returns the version once it differs from `seen`, or after `timeout` seconds as it is."""
        if self.version != seen:
            await asyncio.sleep(0)  # a caller that keeps up with every change still lets others run
        else:
            try:
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
            except TimeoutError:
                pass
        return self.version
