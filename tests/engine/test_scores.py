"""Texts that are scored in a ring: every token's log-probability, whatever is cached, refused or replayed meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.checksum import expected_scores
from tests.support.engines import LAYERS, at_rest, collect, expected, loads, serving
from tests.support.frames import next_frame, scheduler
from tests.support.loopback import LoopbackRing
from together.engine.engine import Engine
from together.engine.streams import TokenStream
from together.errors import BadRequest, RingBroken
from together.requests import GenerateRequest
from together.types import Continuation, Frame, RowResult, Sampled, Sampling

TEXT = tuple(65 + (i * i + 7 * i) % 40 for i in range(150))
NOBODY: frozenset[int] = frozenset()


def scored(text: tuple[int, ...], score_from: int = 1, max_tokens: int = 0) -> GenerateRequest:
    return GenerateRequest(text, Sampling(0.0), max_tokens, score_from=score_from)


async def scores_of(stream: TokenStream) -> list[float]:
    return [score async for tokens in stream for score in tokens.scores]


def close(found: list[float], wanted: list[float]) -> None:
    assert found == pytest.approx(wanted, abs=1e-5)


# --- the scheduler's rows ---------------------------------------------------------------------------------------------


def answered(frame: Frame) -> Frame:
    """Each asked-for token with its own id as its log-probability."""
    results = [
        RowResult(
            row.sequence,
            row.position,
            tuple(Sampled(7) for _ in row.sample.offsets) if row.sample else (),
            scores=tuple(-float(each.token_id) for each in row.sample.score) if row.sample else (),
        )
        for row in frame.batch.rows
    ]
    return Frame(frame.step, frame.batch, results=tuple(results))


def test_each_chunk_scores_what_follows_its_tokens_and_the_last_ends_the_text() -> None:
    found = scheduler(stages=3, chunk=4)
    found.submit(scored(tuple(range(10, 20)), score_from=3))
    frames = [next_frame(found) for _ in range(3)]
    asks = [frame.batch.rows[0].sample for frame in frames]
    assert all(ask is not None and ask.offsets == () for ask in asks)
    assert [ask.score for ask in asks if ask] == [
        (Continuation(2, 13), Continuation(3, 14)),
        tuple(Continuation(i, 15 + i) for i in range(4)),
        (Continuation(0, 19),),
    ]
    events = [event for frame in frames for event in found.commit(answered(frame))]
    assert [event.scores for event in events] == [(-13, -14), (-15, -16, -17, -18), (-19,)]
    assert [event.finish for event in events] == [None, None, "length"]
    assert not found.running


def test_a_text_that_goes_on_is_scored_and_then_sampled() -> None:
    found = scheduler()
    found.submit(scored((10, 11, 12), max_tokens=2))
    frame = next_frame(found)
    ask = frame.batch.rows[0].sample
    assert ask is not None
    assert (ask.offsets, len(ask.score)) == ((2,), 2)
    (event,) = found.commit(answered(frame))
    assert (event.scores, event.token_ids, event.finish) == ((-11, -12), (7,), None)
    (event,) = found.commit(answered(next_frame(found)))
    assert (event.scores, event.token_ids, event.finish) == ((), (7,), "length")


def test_a_chunk_that_has_nothing_left_to_score_still_ends_the_text() -> None:
    found = scheduler(chunk=4)
    found.submit(scored((10, 11, 12, 13, 14)))
    frames = [next_frame(found) for _ in range(2)]
    assert frames[1].batch.rows[0].sample is None
    assert [event.finish for frame in frames for event in found.commit(answered(frame))] == [None, "length"]


@pytest.mark.parametrize(("score_from", "reused"), [(1, 0), (12, 0), (40, 39), (0, 49)])
def test_only_tokens_before_those_that_are_scored_come_from_caches(score_from: int, reused: int) -> None:
    found, text = scheduler(), tuple(range(50))
    found.submit(scored(text))
    found.commit(answered(next_frame(found)))
    again = found.submit(scored(text, score_from, max_tokens=1))
    assert next_frame(found).batch.rows[0].position == reused == again.reused


def test_a_replay_scores_only_what_is_not_known_yet() -> None:
    found = scheduler(stages=3, chunk=4)
    text = found.submit(scored(tuple(range(10, 20))))
    first = next_frame(found)
    next_frame(found)  # is lost
    found.commit(answered(first))
    found.replay()
    asks = [next_frame(found).batch.rows[0].sample for _ in range(3)]
    assert asks[0] is None
    assert [each.token_id for ask in asks if ask for each in ask.score] == [15, 16, 17, 18, 19]
    assert text.scores == 4


def test_an_answer_with_too_few_scores_breaks_the_ring() -> None:
    found = scheduler()
    found.submit(scored((10, 11, 12)))
    frame = next_frame(found)
    with pytest.raises(RingBroken, match="no result"):
        found.commit(Frame(frame.step, frame.batch, results=(RowResult(1, 0, scores=(-1.0,)),)))


# --- over real shards -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cuts", "chunk"), [((LAYERS,), 256), ((2, LAYERS), 32), ((1, 2, LAYERS), 7)])
async def test_a_ring_scores_as_the_plain_loop_beside_others(toy: Path, cuts: tuple[int, ...], chunk: int) -> None:
    other = GenerateRequest(TEXT[:20], Sampling(0.0), 40)
    async with LoopbackRing(loads(toy, cuts), chunk=chunk) as ring:
        engine = Engine(ring, NOBODY)
        async with serving(engine):
            answer = asyncio.ensure_future(collect(engine.submit(other)))
            close(await scores_of(engine.submit(scored(TEXT))), expected_scores(toy, TEXT))
            assert await answer == expected(toy, other)
            tail = await scores_of(engine.submit(scored(TEXT, 100)))  # starts with what is cached of it
            close(tail, expected_scores(toy, TEXT)[99:])
            assert engine.stats().reused_tokens == 99
            assert engine.stats().scored_tokens == 149 + 50
            await at_rest(engine, ring)


async def test_a_score_goes_on_after_caches_were_lost(toy: Path) -> None:
    async with LoopbackRing(loads(toy, (2, LAYERS)), chunk=16) as ring:
        engine = Engine(ring, NOBODY)
        async with serving(engine):
            stream = engine.submit(scored(TEXT))
            first = [*(await anext(stream)).scores]
            await ring.forget(1, range(10))
            close(first + await scores_of(stream), expected_scores(toy, TEXT))
            assert engine.stats().preempted == 1


async def test_a_score_goes_on_in_the_next_ring_and_ends_with_the_last(toy: Path) -> None:
    async with LoopbackRing(loads(toy, (2, LAYERS)), chunk=16) as ring, LoopbackRing(loads(toy, (4,))) as other:
        engine = Engine(ring, NOBODY)
        stream, started = engine.submit(scored(TEXT)), asyncio.ensure_future(engine.serve())
        first = [*(await anext(stream)).scores]
        ring.wound(1, "a stone")
        with pytest.raises(RingBroken, match="a stone"):
            await started
        moved = asyncio.ensure_future(engine.serve(other))
        close(first + await scores_of(stream), expected_scores(toy, TEXT))
        lost = engine.submit(scored(TEXT[::-1]))
        other.freeze()
        engine.close(RingBroken("all machines are gone"))
        await moved
        with pytest.raises(RingBroken, match="all machines are gone"):
            await scores_of(lost)


async def test_no_token_is_asked_for_only_where_something_is_scored(toy: Path) -> None:
    async with LoopbackRing(loads(toy, (LAYERS,))) as ring:
        engine = Engine(ring, NOBODY)
        async with serving(engine):
            with pytest.raises(BadRequest, match="max_tokens is 0"):
                engine.submit(scored(TEXT, score_from=0))
            assert await scores_of(engine.submit(scored((65,)))) == []
