"""What `bench decode`, `estimate` and `engine` measure: a made-up model in equal stages on one device."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from together.cluster.supervisor import StageProcess
from together.desktop.bench.shapes import random_checkpoint
from together.engine.engine import Engine
from together.head.loopback import Place, local_engine
from together.models.spec import ModelSpec, read_spec
from together.planning.strategies import uniform_ranges
from together.requests import GenerateRequest
from together.types import Dtype, Sampling


@dataclass(frozen=True, slots=True)
class BenchModel:
    """Random weights of a shape, and the device that runs them."""

    shape: str
    dtype: Dtype
    backend: str
    device: str


@dataclass(slots=True)
class BenchRing:
    """An engine over stage processes. Every prompt begins with another token, so that nothing is reused."""

    engine: Engine
    spec: ModelSpec
    stages: tuple[StageProcess, ...]
    _turn: int = 0

    async def generate(self, prompt: int, new: int, enough: asyncio.Event | None = None) -> list[float]:
        """When each token came, on the clock of `time.perf_counter`; until `enough` is set, if given."""
        self._turn += 1
        ids = tuple((self._turn * 7919 + index * 31) % self.spec.vocab_size for index in range(prompt))
        stream = self.engine.submit(GenerateRequest(ids, Sampling(temperature=0.0), new, ignore_eos=True))
        times: list[float] = []
        try:
            async for tokens in stream:
                times += [time.perf_counter()] * len(tokens.ids)
                if enough is not None and enough.is_set():
                    break
        finally:
            stream.cancel()
        return times


@asynccontextmanager
async def bench_ring(
    model: BenchModel, home: Path, stages: int, context: int, users: int = 2
) -> AsyncIterator[BenchRing]:
    """`stages` processes; memory is granted for `users` times `context` tokens. Raises BadSetting or LoadFailed."""
    folder = await asyncio.to_thread(random_checkpoint, model.shape, model.dtype, home)
    ranges = uniform_ranges(read_spec(folder).layers, stages)
    places = tuple(Place(model.backend, model.device, layers) for layers in ranges)
    async with local_engine(folder, home, places, model.dtype, context, users) as (engine, ring):
        yield BenchRing(engine, ring.spec, ring.stages)
