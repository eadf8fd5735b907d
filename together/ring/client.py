"""The head's end of one loaded ring: frames out to the first stage, answers in from the last. Knows no scheduler.

Satisfies the engine's RingPort. Whoever learns that the ring is broken says so with `fail`; every waiter then gets that
error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from together.errors import FrameRefused, RingBroken
from together.planning.memory import STEP_TOKENS
from together.ring import wire
from together.ring.links import Inlet, Outlet
from together.types import DTYPE_BYTES, Dtype, Frame

T = TypeVar("T")

CHUNK_BYTES = 4 * 2**20  # a prefill frame's activation: 0.35 s on a 100 Mbit/s link


def chunk_tokens(hidden_size: int, dtype: Dtype) -> int:
    """Most tokens per frame, so that its activation stays within CHUNK_BYTES."""
    return max(16, min(STEP_TOKENS, CHUNK_BYTES // (hidden_size * DTYPE_BYTES[dtype])))


class RingClient:
    """In KV tokens: the smallest `capacity` of all stages, the largest `block`, the smallest `rewind` (None: any)."""

    def __init__(
        self,
        inlet: Inlet,
        outlet: Outlet,
        *,
        stages: int,
        capacity: int,
        block: int,
        rewind: int | None,
        context: int,
        chunk: int,
    ) -> None:
        self.stages = stages
        self.capacity = capacity
        self.block = block
        self.rewind = rewind
        self.context = context
        self.chunk = chunk
        self._inlet = inlet
        self._outlet = outlet
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def push(self, frame: Frame) -> None:
        """Send a step to the first stage; waits while it is full. Raises RingBroken."""
        await self._unless_failed(self._outlet.send(wire.encode_frame(frame)))

    async def receive(self) -> Frame:
        """The last stage's next answer. Raises RingBroken."""
        arrival = await self._unless_failed(self._inlet.next())
        if arrival.data is None:
            await asyncio.wait([self._failed], timeout=2.0)  # the node usually knows the cause, a moment later
            self._check()
            raise RingBroken("the last stage closed its link to the head")
        try:
            return wire.decode_frame(arrival.data)
        except FrameRefused as error:
            raise RingBroken(f"the last stage sent an answer that cannot be read: {error}") from error

    def fail(self, error: RingBroken) -> None:
        """The ring is broken; the first cause given counts."""
        if not self._failed.done():
            self._failed.set_exception(error)
            self._failed.exception()  # it is raised to whoever pushes or receives; nobody else has to look

    async def close(self) -> None:
        self.fail(RingBroken("the ring was unloaded"))
        await self._outlet.close()

    def _check(self) -> None:
        if self._failed.done():
            self._failed.result()

    async def _unless_failed(self, work: Coroutine[Any, Any, T]) -> T:
        task: asyncio.Future[Any] = asyncio.create_task(work)
        task.add_done_callback(_heard)
        try:
            await asyncio.wait({task, self._failed}, return_when=asyncio.FIRST_COMPLETED)
            if task.done() and not self._failed.done():
                return await self._result(task)
            self._check()
            raise AssertionError("neither done nor failed")
        finally:
            task.cancel()

    async def _result(self, task: asyncio.Future[T]) -> T:
        """A broken link's cause is better known to the node that lost its stage: wait a moment for it."""
        try:
            return task.result()
        except RingBroken:
            await asyncio.wait([self._failed], timeout=2.0)
            self._check()
            raise


def _heard(task: asyncio.Future[Any]) -> None:
    """Its error counts as heard, also where the ring's own failure came first and is raised instead."""
    if not task.cancelled():
        task.exception()
