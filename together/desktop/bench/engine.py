"""`bench engine`: concurrent users of a made-up model.

Three questions: what several users get together, what a long prompt does to another user's tokens, and whether the
thousandth token costs more than the tenth.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import Path
from statistics import median, quantiles

from together.desktop.bench.llama_cpp import BatchedLine, LlamaRuns
from together.desktop.bench.rings import PROMPT, BenchRequest, BenchRing, bench_ring
from together.desktop.bench.setups import llama_of
from together.types import DTYPE_BYTES, Dtype, LayerRange

NEAR, FAR, SPAN = 10, 1900, 100  # flatness compares the tokens from NEAR with those from FAR


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
    beside: Batched | None = None


@dataclass(frozen=True, slots=True)
class Batched:
    """The same by llama.cpp's batched bench in the same rounds; `ratio` is the median of ours over its, for all."""

    name: str
    threads: int
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
    request: BenchRequest, concurrent: int, long_prompt: int, flat: bool, home: Path, llama: Path | None = None
) -> EngineReport:
    """Start the stages once and measure the parts in turn; 0 leaves a part out. `long_prompt` is in tokens.

    `llama` is the folder of llama.cpp's programs, which make the tokens of several users, too.
    Raises BadSetting, LoadFailed, and TogetherError where a program of llama.cpp fails.
    """
    context = max(PROMPT + request.new, 2 * long_prompt, FAR + SPAN if flat else 0)
    async with AsyncExitStack() as stack:
        programs = None
        if llama is not None:
            made = await asyncio.to_thread(llama_of, request, llama, home)
            programs = await stack.enter_async_context(made.ready())
        ring = await stack.enter_async_context(bench_ring(request, home, context, max(3, concurrent)))
        await ring.generate(PROMPT, 4)  # touches all weights
        return EngineReport(
            await _together(ring, request, concurrent, programs) if concurrent else None,
            await _long_prompt(ring, request, long_prompt) if long_prompt else None,
            await _flatness(ring, request.dtype) if flat else None,
        )


async def _together(ring: BenchRing, request: BenchRequest, users: int, programs: LlamaRuns | None) -> Together:
    one, everybody, theirs = [], [], []
    for _ in range(request.rounds):
        one.append(joint_speed([await ring.generate(PROMPT, request.new)]))
        everybody.append(joint_speed(await asyncio.gather(*(ring.generate(PROMPT, request.new) for _ in range(users)))))
        if programs is not None:
            theirs.append(await programs.batched((1, users), PROMPT, request.new))
    beside = _batched(programs, everybody, theirs) if programs is not None else None
    return Together(users, median(one), median(everybody), median(everybody) / median(one), beside)


def _batched(programs: LlamaRuns, ours: list[float], theirs: list[list[BatchedLine]]) -> Batched:
    alone, everybody = ([line.speed_tg for line in lines] for lines in zip(*theirs, strict=True))
    ratio = median(our / their for our, their in zip(ours, everybody, strict=True))
    return Batched(programs.owner.name, theirs[0][0].n_threads, median(alone), median(everybody), ratio)


def joint_speed(users: list[list[float]]) -> float:
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
