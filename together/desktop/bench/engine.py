"""`bench engine`: many people at once over real stage processes on loopback. Knows no node and no HTTP.

Three questions: what c people get together, what a long prompt does to somebody else's tokens, and whether the
thousandth token costs more than the tenth.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles

from together.desktop.bench.decode import equal_places
from together.desktop.bench.shapes import random_checkpoint
from together.engine.engine import Engine
from together.head.loopback import local_engine
from together.models.spec import ModelSpec
from together.planning.strategies import uniform_ranges
from together.requests import GenerateRequest
from together.types import DTYPE_BYTES, Dtype, Sampling

PROMPT = 32  # tokens of everybody's prompt but the long one
NEAR, FAR, SPAN = 10, 1900, 100  # flatness compares the tokens from NEAR with those from FAR


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What is measured; lengths in tokens, 0 leaves a part out."""

    shape: str
    dtype: Dtype
    backend: str
    device: str
    stages: int
    concurrent: int
    new: int
    rounds: int
    long_prompt: int = 0
    flat: bool = False


@dataclass(frozen=True, slots=True)
class Together:
    """Tokens per second of one person and of all `people` at once, medians over alternated rounds."""

    people: int
    one_tok_s: float
    all_tok_s: float
    ratio: float


@dataclass(frozen=True, slots=True)
class LongPrompt:
    """Milliseconds between another person's tokens, without the long prompt and while it is computed."""

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

    together: Together | None = None
    long_prompt: LongPrompt | None = None
    flatness: Flatness | None = None


async def bench_engine(request: EngineRequest, home: Path) -> EngineReport:
    """Start the stages once and measure the parts in turn."""
    folder = await asyncio.to_thread(random_checkpoint, request.shape, request.dtype, home)
    async with _people(request, folder, home) as people:
        await people.generate(PROMPT, 4)  # touches all weights
        together = await _together(people, request) if request.concurrent else None
        long_prompt = await _long_prompt(people, request) if request.long_prompt else None
        return EngineReport(together, long_prompt, await _flatness(people) if request.flat else None)


class _People:
    """Requests to one engine; every prompt begins with another token, so that nothing is reused."""

    def __init__(self, engine: Engine, spec: ModelSpec, dtype: Dtype) -> None:
        self.engine = engine
        self.spec = spec
        self.dtype = dtype
        self._turn = 0

    async def generate(self, prompt: int, new: int, enough: asyncio.Event | None = None) -> list[float]:
        """When each token came, on the clock of `time.perf_counter`; until `enough` is set, if given."""
        self._turn += 1
        ids = tuple((self._turn * 7919 + i * 31) % self.spec.vocab_size for i in range(prompt))
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
async def _people(request: EngineRequest, folder: Path, home: Path) -> AsyncIterator[_People]:
    places = equal_places(folder, request.backend, request.device, request.stages)
    context = max(PROMPT + request.new, 2 * request.long_prompt, FAR + SPAN if request.flat else 0)
    users = max(3, request.concurrent)
    async with local_engine(folder, home, places, request.dtype, context, users) as (engine, ring):
        yield _People(engine, ring.spec, request.dtype)


async def _together(people: _People, request: EngineRequest) -> Together:
    one, everybody = [], []
    for _ in range(request.rounds):
        one.append(_speed([await people.generate(PROMPT, request.new)]))
        asked = (people.generate(PROMPT, request.new) for _ in range(request.concurrent))
        everybody.append(_speed(await asyncio.gather(*asked)))
    return Together(request.concurrent, median(one), median(everybody), median(everybody) / median(one))


def _speed(people: list[list[float]]) -> float:
    """Tokens per second of all together while all of them were answering."""
    began, ended = max(times[0] for times in people), min(times[-1] for times in people)
    count = sum(sum(began < at <= ended for at in times) for times in people)
    return count / (ended - began)


async def _long_prompt(people: _People, request: EngineRequest) -> LongPrompt:
    """Somebody talks; after a while another one comes with a long prompt, and talks when it is computed."""
    before, enough = [], asyncio.Event()
    for _ in range(request.rounds):
        before += _gaps(await people.generate(PROMPT, request.new))
    talking = asyncio.create_task(people.generate(PROMPT, request.long_prompt, enough))
    await people.generate(PROMPT, 3)  # others come and go
    asked = time.perf_counter()
    (first, *_) = await people.generate(request.long_prompt, 1)
    enough.set()
    meanwhile = _gaps([at for at in await talking if asked <= at <= first])
    slow = quantiles(meanwhile, n=20, method="inclusive")[-1]
    gap = median(before)
    return LongPrompt(request.long_prompt, gap, slow, slow / gap, len(meanwhile), first - asked)


def _gaps(times: list[float]) -> list[float]:
    return [(late - early) * 1e3 for early, late in pairwise(times)]


async def _flatness(people: _People) -> Flatness:
    near = median(_gaps((await people.generate(PROMPT, NEAR + SPAN))[NEAR:]))
    far = median(_gaps(await people.generate(FAR, SPAN)))
    spec, size = people.spec, DTYPE_BYTES[people.dtype]
    cached = 2 * spec.kv_heads * spec.head_dim * size * spec.layers * FAR
    weights = sum(spec.stage_bytes(layers, people.dtype) for layers in uniform_ranges(spec.layers, 1))
    attention = near * cached / weights
    return Flatness(near, far, attention, far / near, (far - attention) / near)
