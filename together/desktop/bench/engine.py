"""`bench engine`: concurrent users over real stage processes.

Three questions: what c users get together, what a long prompt does to another user's tokens, and whether the
thousandth token costs more than the tenth.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles

from together.desktop.bench.ring import BenchModel, BenchRing, bench_ring
from together.types import DTYPE_BYTES, Dtype, LayerRange

PROMPT = 32  # tokens of every prompt but the long one
NEAR, FAR, SPAN = 10, 1900, 100  # flatness compares the tokens from NEAR with those from FAR


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What is measured; lengths in tokens, 0 leaves a part out."""

    model: BenchModel
    stages: int
    concurrent: int
    new: int
    rounds: int
    long_prompt: int = 0
    flat: bool = False


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

    together: Together | None = None
    long_prompt: LongPrompt | None = None
    flatness: Flatness | None = None


async def bench_engine(request: EngineRequest, home: Path) -> EngineReport:
    """Start the stages once and measure the parts in turn."""
    context = max(PROMPT + request.new, 2 * request.long_prompt, FAR + SPAN if request.flat else 0)
    users = max(3, request.concurrent)
    async with bench_ring(request.model, home, request.stages, context, users) as ring:
        await ring.generate(PROMPT, 4)  # touches all weights
        together = await _together(ring, request) if request.concurrent else None
        long_prompt = await _long_prompt(ring, request) if request.long_prompt else None
        return EngineReport(together, long_prompt, await _flatness(ring, request.model.dtype) if request.flat else None)


async def _together(ring: BenchRing, request: EngineRequest) -> Together:
    one, everybody = [], []
    for _ in range(request.rounds):
        one.append(_speed([await ring.generate(PROMPT, request.new)]))
        asked = (ring.generate(PROMPT, request.new) for _ in range(request.concurrent))
        everybody.append(_speed(await asyncio.gather(*asked)))
    return Together(request.concurrent, median(one), median(everybody), median(everybody) / median(one))


def _speed(users: list[list[float]]) -> float:
    """Tokens per second of all together while all of them are answered."""
    began, ended = max(times[0] for times in users), min(times[-1] for times in users)
    count = sum(sum(began < at <= ended for at in times) for times in users)
    return count / (ended - began)


async def _long_prompt(ring: BenchRing, request: EngineRequest) -> LongPrompt:
    """One user gets an answer; after a while another one comes with a long prompt."""
    before, enough = [], asyncio.Event()
    for _ in range(request.rounds):
        before += _gaps(await ring.generate(PROMPT, request.new))
    answering = asyncio.create_task(ring.generate(PROMPT, request.long_prompt, enough))
    await ring.generate(PROMPT, 3)  # others come and go
    asked = time.perf_counter()
    (first, *_) = await ring.generate(request.long_prompt, 1)
    enough.set()
    meanwhile = _gaps([at for at in await answering if asked <= at <= first])
    slow = quantiles(meanwhile, n=20, method="inclusive")[-1]
    gap = median(before)
    return LongPrompt(request.long_prompt, gap, slow, slow / gap, len(meanwhile), first - asked)


def _gaps(times: list[float]) -> list[float]:
    return [(late - early) * 1e3 for early, late in pairwise(times)]


async def _flatness(ring: BenchRing, dtype: Dtype) -> Flatness:
    near = median(_gaps((await ring.generate(PROMPT, NEAR + SPAN))[NEAR:]))
    far = median(_gaps(await ring.generate(FAR, SPAN)))
    spec = ring.spec
    cached = 2 * spec.kv_heads * spec.head_dim * DTYPE_BYTES[dtype] * spec.layers * FAR
    attention = near * cached / spec.stage_bytes(LayerRange(0, spec.layers), dtype)
    return Flatness(near, far, attention, far / near, (far - attention) / near)
