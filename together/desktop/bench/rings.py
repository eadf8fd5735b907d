"""A made-up model in equal stages on one device: what the benchmarks of this machine measure."""

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
from together.head.plan import in_form
from together.models.form import PUBLISHED
from together.models.manifest import describe
from together.models.spec import ModelSpec, read_spec
from together.planning.strategies import uniform_ranges
from together.requests import GenerateRequest
from together.trust.credentials import ALONE, Credentials
from together.types import Dtype, LayerRange, Sampling
from together.weights.room import CacheRoom
from together.weights.store import Store

PROMPT = 32  # tokens of every prompt of which nothing else is said


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """Random weights of a shape, the stages that run them, and how long each request is, in tokens."""

    shape: str
    dtype: Dtype
    backend: str
    device: str
    stages: int = 2
    prompt: int = PROMPT
    new: int = 32
    rounds: int = 1
    form: str = PUBLISHED


@dataclass(slots=True)
class BenchRing:
    """An engine over stage processes. Every prompt begins with another token, so that no prefix is reused."""

    engine: Engine
    spec: ModelSpec
    stages: tuple[StageProcess, ...]
    _turn: int = 0

    async def generate(self, prompt: int, new: int, enough: asyncio.Event | None = None) -> list[float]:
        self._turn += 1
        ids = tuple((self._turn * 7919 + index * 31) % self.spec.vocab_size for index in range(prompt))
        return await token_times(self.engine, ids, new, enough)

    async def timed(self, prompt: int, new: int) -> tuple[float, float]:
        """Tokens per second of the prompt, which its first token ends, and of all tokens after that one."""
        began = time.perf_counter()
        times = await self.generate(prompt, new)
        return prompt / (times[0] - began), (new - 1) / (times[-1] - times[0])


async def token_times(
    engine: Engine, prompt: tuple[int, ...], new: int, enough: asyncio.Event | None = None
) -> list[float]:
    """When each token came, on the clock of `time.perf_counter`; until `enough` is set, if given."""
    stream = engine.submit(GenerateRequest(prompt, Sampling(temperature=0.0), new, ignore_eos=True))
    times: list[float] = []
    try:
        async for tokens in stream:
            times += [time.perf_counter()] * len(tokens.ids)
            if enough is not None and enough.is_set():
                break
    finally:
        stream.cancel()
    return times


async def bench_folder(request: BenchRequest, home: Path) -> Path:
    """The random weights in the form that is asked for, converted on first use. Raises BadSetting or LoadFailed."""
    plain = await asyncio.to_thread(random_checkpoint, request.shape, request.dtype, home)
    if request.form == PUBLISHED:
        return plain
    store = Store(home)
    folder = await asyncio.to_thread(in_form, plain, request.shape, request.form, store)
    key = describe(folder).key
    missing = store.missing(key, LayerRange(0, read_spec(folder).layers))
    await CacheRoom(home).convert(plain, key, missing)
    return folder


@asynccontextmanager
async def bench_ring(
    request: BenchRequest, home: Path, context: int, users: int = 2, credentials: Credentials = ALONE
) -> AsyncIterator[BenchRing]:
    """Memory is granted for `users` times `context` tokens. Raises BadSetting or LoadFailed."""
    folder = await bench_folder(request, home)
    spec = read_spec(folder)
    ranges = uniform_ranges(spec.layers, request.stages, spec.joined)
    places = tuple(Place(request.backend, request.device, layers) for layers in ranges)
    local = local_engine(folder, home, places, request.dtype, context, users, credentials=credentials)
    async with local as (engine, ring):
        yield BenchRing(engine, ring.spec, ring.stages)
