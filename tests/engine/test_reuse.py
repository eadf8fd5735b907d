"""Prefix reuse and measurements over rings of real checksum shards: fewer tokens computed, the same texts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.checksum import make_checksum_model
from tests.support.engines import LAYERS, at_rest, collect, expected, loads, serving, until
from tests.support.loopback import LoopbackRing
from together.engine.engine import Engine
from together.engine.streams import TokenStream
from together.requests import GenerateRequest
from together.types import Sampling

SYSTEM = tuple(range(32, 92))
NOBODY: frozenset[int] = frozenset()


@asynccontextmanager
async def engine_over(
    folder: Path, cuts: tuple[int, ...] = (2, 4), capacity: int = 8192, chunk: int = 64, token_bytes: int = 0
) -> AsyncIterator[tuple[Engine, LoopbackRing]]:
    async with LoopbackRing(loads(folder, cuts, capacity), chunk=chunk) as ring:
        engine = Engine(ring, NOBODY, token_bytes=token_bytes)
        async with serving(engine):
            yield engine, ring


def prefilled(ring: LoopbackRing, since: int) -> int:
    """Tokens of prompts in the frames from `since` on; the first one of an answer is sampled, not sent."""
    rows = [row for frame in ring.pushed[since:] for row in frame.batch.rows]
    return sum(len(row.token_ids) for row in rows if row.sample is None or row.sample.prompt_length > row.position)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_ten_turns_compute_only_what_is_new(toy: Path, temperature: float) -> None:
    async with engine_over(toy) as (engine, ring):
        history, known = list(SYSTEM), 0  # `known`: what the turn before left in the caches
        for turn in range(10):
            prompt = (*history, *(100 + turn * 3 + i for i in range(20)))
            request = GenerateRequest(prompt, Sampling(temperature, seed=turn), 15)
            frames, stream = len(ring.pushed), engine.submit(request)
            answer = await collect(stream)
            assert answer == expected(toy, request)
            assert prefilled(ring, frames) == len(prompt) - known
            assert (stream.reused, stream.clock.timings.reused_tokens) == (known, known)
            history = [*prompt, *answer]
            known = len(history) - 1  # the last token of an answer is never sent
        stats = engine.stats()
        assert stats.prefilled_tokens + stats.reused_tokens == sum(60 + 35 * turn + 20 for turn in range(10))
        assert stats.cached_tokens == known


async def test_ten_turns_with_a_sliding_window_give_the_same_texts(tmp_path: Path) -> None:
    folder = make_checksum_model(tmp_path / "sliding", layers=LAYERS, rewind=32)
    async with engine_over(folder, chunk=16) as (engine, ring):
        history = list(SYSTEM)
        for turn in range(10):
            request = GenerateRequest((*history, 100 + turn, 101), Sampling(0.0), 15)
            answer = await collect(engine.submit(request))
            assert answer == expected(folder, request)
            history = [*request.prompt, *answer]
            other = GenerateRequest((*SYSTEM, 7, 100 + turn), Sampling(0.0), 5)  # too far back to be reused
            assert await collect(engine.submit(other)) == expected(folder, other)
        assert engine.stats().reused_tokens > 500
        assert engine.stats().preempted == 0
        await at_rest(engine, ring)


async def test_a_system_prompt_that_all_share_is_computed_once(toy: Path) -> None:
    asks = [GenerateRequest((*SYSTEM * 4, 100 + i, 101), Sampling(0.0), 10) for i in range(8)]
    async with engine_over(toy, chunk=32) as (engine, ring):
        texts = await asyncio.gather(*(collect(engine.submit(request)) for request in asks))
        assert texts == [expected(toy, request) for request in asks]
        assert prefilled(ring, 0) == len(SYSTEM) * 4 + 2 * len(asks)
        await at_rest(engine, ring)


async def test_conversations_in_too_little_room_give_the_same_texts(toy: Path) -> None:
    async def talk(engine: Engine, person: int) -> None:
        history = list(SYSTEM)
        for turn in range(4):
            request = GenerateRequest((*history, 100 + person, 110 + turn), Sampling(0.0), 25)
            answer = await collect(engine.submit(request))
            assert answer == expected(toy, request)
            history = [*request.prompt, *answer]

    async with engine_over(toy, capacity=400, chunk=32) as (engine, ring):
        await asyncio.gather(*(talk(engine, person) for person in range(6)))
        stats = engine.stats()
        assert 0 < stats.cached_tokens <= stats.capacity
        assert stats.reused_tokens > 0
        await at_rest(engine, ring)
        assert engine.stats().cached_tokens == 0


async def test_a_prefix_that_a_stage_lost_costs_time_and_not_the_text(toy: Path) -> None:
    async with engine_over(toy) as (engine, ring):
        first = GenerateRequest(SYSTEM, Sampling(0.0), 10)
        answer = await collect(engine.submit(first))
        await ring.forget(1, range(10))
        second = GenerateRequest((*SYSTEM, *answer, 100), Sampling(0.0), 10)
        assert await collect(engine.submit(second)) == expected(toy, second)
        assert engine.stats().preempted == 1


# --- measurements -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [8, 64])
async def test_a_requests_time_is_all_accounted_for(tmp_path: Path, chunk: int) -> None:
    """Alone and among others, with frames that travel at once and with one at a time."""
    slow = make_checksum_model(tmp_path / "slow", layers=LAYERS, step_ms=2)
    async with engine_over(slow, chunk=chunk, token_bytes=32) as (engine, _):
        streams = [engine.submit(GenerateRequest((*SYSTEM, 100 + i), Sampling(0.0), 12)) for i in range(3)]
        await asyncio.gather(*(collect(stream) for stream in streams))
        streams.append(engine.submit(GenerateRequest((1, 2, 3), Sampling(0.0), 12)))
        await collect(streams[-1])
        for stream in streams:
            check(stream)
        stats, alone = engine.stats(), streams[-1].clock.timings
        assert alone.link_bytes == 32 * (3 + 11)
        assert stats.link_bytes == 32 * (stats.prefilled_tokens + stats.generated_tokens - stats.requests)
        assert stats.generated_tokens == 48
        assert min(stats.step_ms, sum(stats.stage_ms)) >= LAYERS * 2
        assert stats.link_ms >= 0
        assert sum(alone.compute) >= 12 * LAYERS * 2e-3


def check(stream: TokenStream) -> None:
    timings = stream.clock.timings
    parts = timings.queued + sum(timings.compute) + timings.waiting + timings.network + timings.overhead
    assert parts == pytest.approx(timings.total, rel=0.05)
    assert len(timings.compute) == 2
    assert timings.tokens == 12
    assert timings.tokens_per_s * (timings.total - timings.first_token) == pytest.approx(11)
    assert stream.clock.timings == timings, "nothing is counted after the end"


async def test_a_cancelled_requests_time_ends_with_it(tmp_path: Path) -> None:
    slow = make_checksum_model(tmp_path / "slow", layers=LAYERS, step_ms=5)
    async with engine_over(slow) as (engine, ring):
        stream = engine.submit(GenerateRequest(SYSTEM, Sampling(0.0), 1000))
        await anext(stream)
        stream.cancel()
        timings = stream.clock.timings
        await until(lambda: not ring.in_flight)
        assert stream.clock.timings == timings
        parts = timings.queued + sum(timings.compute) + timings.waiting + timings.network + timings.overhead
        assert parts == pytest.approx(timings.total, rel=0.05)
