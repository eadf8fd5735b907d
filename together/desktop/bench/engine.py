"""A made-up model in equal stages on one device, and `bench engine`: concurrent users on it.

Three questions: what several users get together, what a long prompt does to another user's tokens, and whether the
thousandth token costs more than the tenth.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import Path
from statistics import median, quantiles

from together.cluster.supervisor import StageProcess
from together.desktop.bench.shapes import random_checkpoint
from together.engine.engine import Engine
from together.head.loopback import Place, local_engine
from together.models.spec import ModelSpec, read_spec
from together.planning.strategies import uniform_ranges
from together.requests import GenerateRequest
from together.types import DTYPE_BYTES, Dtype, LayerRange, Sampling

PROMPT = 32  # tokens of every prompt but the long one
NEAR, FAR, SPAN = 10, 1900, 100  # flatness compares the tokens from NEAR with those from FAR


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


@asynccontextmanager
async def bench_ring(request: BenchRequest, home: Path, context: int, users: int = 2) -> AsyncIterator[BenchRing]:
    """Memory is granted for `users` times `context` tokens. Raises BadSetting or LoadFailed."""
    folder = await asyncio.to_thread(random_checkpoint, request.shape, request.dtype, home)
    ranges = uniform_ranges(read_spec(folder).layers, request.stages)
    places = tuple(Place(request.backend, request.device, layers) for layers in ranges)
    async with local_engine(folder, home, places, request.dtype, context, users) as (engine, ring):
        yield BenchRing(engine, ring.spec, ring.stages)


# --- what it measures -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Milliseconds; 0 where nothing was measured."""

    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0


@dataclass(frozen=True, slots=True)
class Together:
    """Tokens per second of one user and of all `people` at once, medians over alternated rounds."""

    people: int
    one_tok_s: float
    all_tok_s: float
    ratio: float


@dataclass(frozen=True, slots=True)
class LongPrompt:
    """Milliseconds between another user's tokens, without the long prompt and while it is computed."""

    tokens: int
    gap_ms: float  # median without
    p95_ms: float  # while it is computed
    ratio: float
    gaps: int  # how many there were meanwhile
    first_token_s: float  # of the long prompt


@dataclass(frozen=True, slots=True)
class Flatness:
    """Milliseconds per token early and late, and the late ones' share for reading keys and values.

    `attention_ms` is a guess from bytes: keys and values are read at the speed at which the weights are.
    """

    near_ms: float
    far_ms: float
    attention_ms: float
    ratio: float
    ratio_without_attention: float


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What was measured; None was not asked for."""

    together: Together | None
    long_prompt: LongPrompt | None
    flatness: Flatness | None


async def bench_engine(
    request: BenchRequest, concurrent: int, long_prompt: int, flat: bool, home: Path
) -> EngineReport:
    """Start the stages once and measure the parts in turn; 0 leaves a part out. `long_prompt` is in tokens."""
    context = max(PROMPT + request.new, 2 * long_prompt, FAR + SPAN if flat else 0)
    async with bench_ring(request, home, context, max(3, concurrent)) as ring:
        await ring.generate(PROMPT, 4)  # touches all weights
        return EngineReport(
            await _together(ring, request, concurrent) if concurrent else None,
            await _long_prompt(ring, request, long_prompt) if long_prompt else None,
            await _flatness(ring, request.dtype) if flat else None,
        )


async def _together(ring: BenchRing, request: BenchRequest, users: int) -> Together:
    one, everybody = [], []
    for _ in range(request.rounds):
        one.append(_speed([await ring.generate(PROMPT, request.new)]))
        everybody.append(_speed(await asyncio.gather(*(ring.generate(PROMPT, request.new) for _ in range(users)))))
    return Together(users, median(one), median(everybody), median(everybody) / median(one))


def _speed(users: list[list[float]]) -> float:
    """Tokens per second of all together while all of them are answered."""
    began, ended = max(times[0] for times in users), min(times[-1] for times in users)
    return sum(began < at <= ended for times in users for at in times) / (ended - began)


async def _long_prompt(ring: BenchRing, request: BenchRequest, tokens: int) -> LongPrompt:
    """While one user is answered, another one comes with a long prompt."""
    before: list[float] = []
    enough = asyncio.Event()
    for _ in range(request.rounds):
        before += _gaps(await ring.generate(PROMPT, request.new))
    answering = asyncio.create_task(ring.generate(PROMPT, tokens, enough))
    await ring.generate(PROMPT, 3)  # others come and go
    asked = time.perf_counter()
    (first, *_) = await ring.generate(tokens, 1)
    enough.set()
    meanwhile = _gaps(await answering, asked, first)
    slow = percentiles(meanwhile).p95
    return LongPrompt(tokens, median(before), slow, slow / median(before), len(meanwhile), first - asked)


def _gaps(times: list[float], began: float = -inf, ended: float = inf) -> list[float]:
    """Milliseconds between tokens; of those between two moments also the gaps that only begin or end there."""
    return [(late - early) * 1e3 for early, late in pairwise(times) if late > began and early < ended]


def percentiles(values: list[float]) -> Percentiles:
    if len(values) < 2:
        return Percentiles(*values * 3)
    cuts = quantiles(values, n=100, method="inclusive")
    return Percentiles(cuts[49], cuts[94], cuts[98])


async def _flatness(ring: BenchRing, dtype: Dtype) -> Flatness:
    near = median(_gaps((await ring.generate(PROMPT, NEAR + SPAN))[NEAR:]))
    far = median(_gaps(await ring.generate(FAR, SPAN)))
    spec = ring.spec
    cached = 2 * spec.kv_heads * spec.head_dim * DTYPE_BYTES[dtype] * spec.layers * FAR
    attention = near * cached / spec.stage_bytes(LayerRange(0, spec.layers), dtype)
    return Flatness(near, far, attention, far / near, (far - attention) / near)
