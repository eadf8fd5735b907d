"""A ring inside one process: real shards, each on its own thread, chained by bounded queues. Knows no network.

It has the members that the engine's `RingPort` asks for, and ways to wound, freeze and cut it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from backends.base import Shard
from together.errors import RingBroken
from together.types import Activation, Batch, Failure, Frame, Limits, Orders, StageTiming

LINK_FRAMES = 2  # frames that wait on one link before the sender waits


def stage_step(shard: Shard, index: int, frame: Frame) -> Frame:
    """One stage's part: refused rows leave the batch, results and timings gather, an error becomes a failure."""
    if frame.failure is not None:
        return frame
    started = time.perf_counter()
    try:
        output = shard.step(frame.batch, frame.activation)
    except Exception as error:  # whatever a stage raises travels to the head
        return replace(frame, failure=Failure(f"node{index}", index, str(error)))
    refused = {result.sequence for result in output.results if result.refusal is not None}
    rows = tuple(row for row in frame.batch.rows if row.sequence not in refused)
    timing = StageTiming((time.perf_counter() - started) * 1000.0, 0.0, shard.sequences)
    return replace(
        frame,
        batch=Batch(rows, frame.batch.orders),
        activation=output.activation,
        results=(*frame.results, *output.results),
        timings=(*frame.timings, timing),
    )


def chain_step(shards: Sequence[Shard], frame: Frame) -> Frame:
    """A frame through all shards, at once and on this thread."""
    for index, shard in enumerate(shards):
        frame = stage_step(shard, index, frame)
    return frame


class LoopbackRing:
    """Use as an async context manager; `shards` are loaded, stepped and closed by their own threads."""

    def __init__(
        self, loads: Sequence[Callable[[], Shard]], context: int = 4096, chunk: int = 256, width: int = 8
    ) -> None:
        self.context, self.chunk = context, chunk
        self._width = width
        self.shards: list[Shard] = []
        self._loads = loads
        self._threads = [ThreadPoolExecutor(1, f"stage{index}") for index in range(len(loads))]
        self._links: list[asyncio.Queue[Frame]] = [asyncio.Queue(LINK_FRAMES) for _ in range(len(loads) + 1)]
        self._wounds: dict[int, str] = {}
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._cut: asyncio.Future[Frame] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.pushed: list[Frame] = []

    @property
    def limits(self) -> Limits:
        return Limits(
            stages=len(self.shards),
            capacity=min(shard.capacity for shard in self.shards),
            block=max(shard.block for shard in self.shards),
            context=self.context,
            chunk=self.chunk,
            rewind=min((shard.rewind for shard in self.shards if shard.rewind is not None), default=None),
            shares=all(shard.shares for shard in self.shards),
            per_sequence=max(shard.per_sequence for shard in self.shards),
        )

    async def __aenter__(self) -> LoopbackRing:
        loop = asyncio.get_running_loop()
        self._cut = loop.create_future()
        for thread, load in zip(self._threads, self._loads, strict=True):
            self.shards.append(await loop.run_in_executor(thread, load))
        self._tasks = [asyncio.create_task(self._serve(index)) for index in range(len(self.shards))]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for thread, shard in zip(self._threads, self.shards, strict=True):
            thread.submit(shard.close).result(10)
            thread.shutdown()
        if self._cut is not None:
            self._cut.cancel()

    async def push(self, frame: Frame) -> None:
        self.pushed.append(frame)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await self._links[0].put(frame)

    async def receive(self) -> Frame:
        """The next answer, or the error of `cut`."""
        assert self._cut is not None
        answer = asyncio.create_task(self._links[-1].get())
        try:
            await asyncio.wait({answer, self._cut}, return_when=asyncio.FIRST_COMPLETED)
            frame = self._cut.result() if self._cut.done() else answer.result()
        finally:
            answer.cancel()
        self.in_flight -= 1
        return frame

    def wound(self, stage: int, cause: str) -> None:
        """The next step of this stage fails."""
        self._wounds[stage] = cause

    async def forget(self, stage: int, sequences: Iterable[int]) -> None:
        """This stage loses its caches of these sequences, which the head does not know."""
        batch = Batch(orders=Orders(tuple(sequences)))
        hidden = None if stage == 0 else Activation("fp32", 0, self._width, b"")
        await asyncio.get_running_loop().run_in_executor(self._threads[stage], self.shards[stage].step, batch, hidden)

    def freeze(self) -> None:
        """No stage takes another frame."""
        self._thawed.clear()

    def cut(self, message: str) -> None:
        """The link to the head is gone."""
        assert self._cut is not None
        self._cut.set_exception(RingBroken(message))

    async def _serve(self, index: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            frame = await self._links[index].get()
            await self._thawed.wait()
            if index in self._wounds:
                frame = replace(frame, failure=Failure(f"node{index}", index, self._wounds.pop(index)))
            frame = await loop.run_in_executor(self._threads[index], stage_step, self.shards[index], index, frame)
            await self._links[index + 1].put(frame)
