"""The engine over a ring of real checksum shards in this process: the text under load is the text alone."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.checksum import VOCABULARY, make_checksum_model
from tests.support.engines import LAYERS, at_rest, collect, expected, loads, serve, serving, until
from tests.support.loopback import LoopbackRing, chain_step
from tests.support.patience import PATIENCE
from together.engine.engine import Engine
from together.engine.scheduler import Scheduler
from together.engine.sequence import Sequence
from together.engine.streams import TokenStream
from together.errors import BadRequest, ContextTooLong, NotServing, QueueFull, RingBroken
from together.requests import GenerateRequest
from together.types import Frame, Limits, Sampling

NO_EOS: frozenset[int] = frozenset()


def ask(*prompt: int, max_tokens: int = 20, temperature: float = 0.0, seed: int = 0) -> GenerateRequest:
    return GenerateRequest(prompt, Sampling(temperature, seed=seed), max_tokens)


def some_request(rng: random.Random) -> GenerateRequest:
    prompt = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 60)))
    return ask(*prompt, max_tokens=rng.randrange(1, 30), temperature=rng.choice((0.0, 1.0)), seed=rng.randrange(1000))


@asynccontextmanager
async def engine_over(ring: LoopbackRing, eos: frozenset[int] = NO_EOS, **options: float) -> AsyncIterator[Engine]:
    engine = Engine(ring, eos, **options)  # type: ignore[arg-type]  # whole numbers and seconds by name
    async with serving(engine):
        yield engine


# --- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [(4,), (2, 4), (1, 2, 4)])
async def test_under_load_every_text_is_the_text_alone(toy: Path, cuts: tuple[int, ...]) -> None:
    rng = random.Random(len(cuts))

    async def one(engine: Engine) -> None:
        request, quits_after = some_request(rng), rng.choice((None, None, rng.randrange(10)))
        await asyncio.sleep(rng.random() * 0.2)
        stream = engine.submit(request)
        tokens = await collect(stream, quits_after)
        wanted = expected(toy, request)
        assert tokens == (wanted if quits_after is None else wanted[: len(tokens)])

    async with LoopbackRing(loads(toy, cuts), chunk=32) as ring, engine_over(ring) as engine:
        async with asyncio.TaskGroup() as group:
            for _ in range(32):
                group.create_task(one(engine))
        await at_rest(engine, ring)
        assert ring.most_in_flight <= ring.limits.stages + 1


async def test_a_ring_too_small_for_all_gives_the_same_texts(toy: Path) -> None:
    requests = [ask(*range(100), max_tokens=190), ask(*range(10), max_tokens=190), ask(5, 6, max_tokens=50)]
    async with LoopbackRing(loads(toy, (2, 4), capacity=320)) as ring, engine_over(ring) as engine:
        texts = await asyncio.gather(*(collect(engine.submit(request)) for request in requests))
        assert texts == [expected(toy, request) for request in requests]
        assert max(row.sequence for frame in ring.pushed for row in frame.batch.rows) > len(
            requests
        )  # one started twice
        await at_rest(engine, ring)


async def test_chunks_of_a_long_prompt_overlap(toy: Path) -> None:
    request = ask(*(index % VOCABULARY for index in range(300)))
    async with LoopbackRing(loads(toy, (1, 2, 4)), chunk=16) as ring, engine_over(ring) as engine:
        assert await collect(engine.submit(request)) == expected(toy, request)
        assert ring.most_in_flight == 4
        assert max(frame.batch.tokens for frame in ring.pushed) == 16


async def test_a_stage_that_lost_its_cache_is_given_the_tokens_again(toy: Path) -> None:
    request = ask(1, 2, 3, max_tokens=100)
    async with LoopbackRing(loads(toy, (2, 4))) as ring, engine_over(ring) as engine:
        stream = engine.submit(request)
        tokens = [*(await anext(stream)).ids]
        await ring.forget(1, range(10))
        assert tokens + await collect(stream) == expected(toy, request)
        assert max(row.sequence for frame in ring.pushed for row in frame.batch.rows) == 2


def test_replay_over_a_replaced_stage_gives_the_same_text(toy: Path) -> None:
    requests = [ask(1, 2, 3, max_tokens=25), ask(*range(40), max_tokens=30, temperature=1.0, seed=5)]
    makers = loads(toy, (2, 4))
    shards = [make() for make in makers]
    scheduler = Scheduler(Limits(2, shards[0].capacity, shards[0].block, 4096, 16), NO_EOS, 10)
    sequences = [scheduler.submit(request) for request in requests]
    for step in range(1000):
        if step in (4, 20):
            scheduler.schedule()  # a frame that is lost with the old epoch
            scheduler.replay()
            shards[step % 3 % 2] = makers[step % 3 % 2]()
        frame = scheduler.schedule()
        if frame is None:
            break
        scheduler.commit(chain_step(shards, frame))
    assert [answer_of(sequence) for sequence in sequences] == [expected(toy, request) for request in requests]


@pytest.mark.parametrize("seed", range(4))
def test_stages_never_refuse_what_the_scheduler_sends(toy: Path, seed: int) -> None:
    """Little room, answers that come late, people who leave: the head's books and the stages' stay equal."""
    rng = random.Random(seed)
    shards = [make() for make in loads(toy, (2, 4), capacity=rng.choice((64, 128, 320)))]
    limits = Limits(2, shards[0].capacity, shards[0].block, 4096, rng.choice((4, 16, 64)))
    scheduler, answers = Scheduler(limits, NO_EOS, 100), deque[Frame]()
    sequences = [scheduler.submit(some_request(rng)) for _ in range(15)]
    while (sequences and (frame := scheduler.schedule())) or answers:
        if frame is not None:
            answers.append(chain_step(shards, frame))
        if answers and (frame is None or rng.random() < 0.5):
            assert not any(result.refusal for result in answers[0].results)
            scheduler.commit(answers.popleft())
        if rng.random() < 0.02:
            scheduler.cancel(sequences.pop(rng.randrange(len(sequences))))
    for sequence in sequences:
        answer = answer_of(sequence)
        assert len(sequence.tokens) == sequence.end
        assert answer == expected(toy, sequence.request)[: len(answer)]


def answer_of(sequence: Sequence) -> list[int]:
    return sequence.tokens[len(sequence.request.prompt) :]


async def test_eos_ends_the_answer_and_is_not_part_of_it(toy: Path) -> None:
    request = ask(1, 2, 3)
    wanted = expected(toy, request)
    eos = next(token for token in wanted[5:] if token not in wanted[:5])
    async with LoopbackRing(loads(toy, (2, 4))) as ring, engine_over(ring, frozenset((eos,))) as engine:
        stream = engine.submit(request)
        steps = [step async for step in stream]
        assert [token for step in steps for token in step.ids] == wanted[: wanted.index(eos)]
        assert steps[-1].finish == "stop"


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (GenerateRequest(()), "messages"),
        (GenerateRequest((1, VOCABULARY)), "messages"),
        (ask(1, max_tokens=0), "max_tokens"),
        (ask(1, temperature=3.0), "temperature"),
        (ask(*([1] * 200)), "messages"),
    ],
)
async def test_bad_requests_are_refused_at_once(toy: Path, request_: GenerateRequest, param: str) -> None:
    async with LoopbackRing(loads(toy, (4,)), context=200) as ring:
        with pytest.raises(BadRequest) as caught:
            Engine(ring, NO_EOS, vocabulary=VOCABULARY).submit(request_)
        assert caught.value.param == param
        assert isinstance(caught.value, ContextTooLong) == (len(request_.prompt) == 200)


async def test_a_full_queue_refuses_and_the_others_are_served(toy: Path) -> None:
    async with LoopbackRing(loads(toy, (4,))) as ring:
        engine = Engine(ring, NO_EOS, max_waiting=2)
        streams = [engine.submit(ask(1, 2)) for _ in range(2)]
        with pytest.raises(QueueFull):
            engine.submit(ask(1, 2))
        assert (engine.running, engine.waiting) == (0, 2)
        async with serving(engine):
            assert [len(await collect(stream)) for stream in streams] == [20, 20]


async def test_a_reader_that_does_not_read_holds_nobody_up(toy: Path) -> None:
    async with LoopbackRing(loads(toy, (2, 4))) as ring, engine_over(ring) as engine:
        lazy, eager = engine.submit(ask(1, 2, max_tokens=200)), engine.submit(ask(3, 4, max_tokens=300))
        assert len(await collect(eager)) == 300
        tokens = await anext(lazy)  # all at once
        assert (list(tokens.ids), tokens.finish) == (expected(toy, ask(1, 2, max_tokens=200)), "length")


async def test_timings_and_step_times_are_measured(toy: Path) -> None:
    async with LoopbackRing(loads(toy, (2, 4))) as ring, engine_over(ring) as engine:
        stream = engine.submit(ask(1, 2, 3))
        await collect(stream)
        timings = stream.clock.timings
        assert 0 <= timings.queued <= timings.first_token <= timings.total
        assert len(engine.times.decodes.stage_ms) == len(engine.times.stages) == 2
        assert min(*engine.times.decodes.stage_ms, engine.times.decodes.step_ms) > 0


# --- leaving ----------------------------------------------------------------------------------------------------------


async def test_cancelling_frees_every_stage_and_wakes_the_reader(toy: Path) -> None:
    async with LoopbackRing(loads(toy, (2, 4)), chunk=8) as ring, engine_over(ring) as engine:
        streams = [engine.submit(ask(*range(1, 60), max_tokens=1000)) for _ in range(5)]
        readers = [asyncio.create_task(last_finish(stream)) for stream in streams]
        await until(lambda: engine.times.decodes.step_ms > 0)
        for stream in streams:
            stream.cancel()
            stream.cancel()
        assert await asyncio.gather(*readers) == ["cancelled"] * 5
        await at_rest(engine, ring)
        drops = [drop for frame in ring.pushed for drop in frame.batch.orders.drops]
        assert sorted(drops) == [1, 2, 3, 4, 5]


async def test_a_failed_step_ends_all_requests_with_node_and_cause(toy: Path) -> None:
    async with LoopbackRing(loads(toy, (2, 4))) as ring:
        engine = Engine(ring, NO_EOS)
        serving_task = asyncio.create_task(serve(engine))
        streams = [engine.submit(ask(1, 2, max_tokens=3000)) for _ in range(3)]
        await anext(streams[0])
        ring.wound(1, "out of memory")
        for task in [collect(stream) for stream in streams] + [serving_task]:
            with pytest.raises(RingBroken, match="out of memory") as caught:
                await task
            assert (caught.value.node, caught.value.cause) == ("node1", "out of memory")
        with pytest.raises(RingBroken, match="out of memory"):
            engine.submit(ask(1))


async def test_a_cut_link_is_noticed_while_nothing_is_asked(toy: Path) -> None:
    async with LoopbackRing(loads(toy, (2, 4))) as ring:
        serving_task = asyncio.create_task(serve(Engine(ring, NO_EOS)))
        await asyncio.sleep(0)
        ring.cut("node studio is gone")
        with pytest.raises(RingBroken, match="studio"):
            await serving_task


async def test_a_frozen_ring_is_given_up(toy: Path) -> None:
    async with LoopbackRing(loads(toy, (2, 4))) as ring:
        engine = Engine(ring, NO_EOS, step_timeout=0.2)
        ring.freeze()
        stream = engine.submit(ask(1, 2))
        with pytest.raises(RingBroken, match=r"no answer from the ring for 0\.2 s"):
            await asyncio.wait_for(serve(engine), PATIENCE)
        with pytest.raises(RingBroken, match="no answer"):
            await collect(stream)


async def test_time_that_this_machine_slept_is_not_the_rings(toy: Path) -> None:
    async with LoopbackRing(loads(toy, (2, 4))) as ring:
        engine = Engine(ring, NO_EOS, step_timeout=2.0)
        ring.freeze()
        serving_task = asyncio.create_task(serve(engine))
        engine.submit(ask(1, 2))
        await until(lambda: engine.silence > 0)
        time.sleep(3.0)  # noqa: ASYNC251  # nothing of this process runs meanwhile
        await asyncio.sleep(0.6)  # the watch has looked
        assert not serving_task.done()
        with pytest.raises(RingBroken, match="no answer"):
            await asyncio.wait_for(serving_task, PATIENCE)


async def test_idle_time_is_not_counted_as_silence(tmp_path: Path) -> None:
    """A step takes a while, so that the watch looks meanwhile, and far less than the time that is allowed."""
    slow = make_checksum_model(tmp_path / "slow", layers=LAYERS, step_ms=150)  # per layer
    async with LoopbackRing(loads(slow, (4,))) as ring, engine_over(ring, step_timeout=1.5) as engine:
        for _ in range(2):
            assert len(await collect(engine.submit(ask(1, 2, max_tokens=1)))) == 1
            await asyncio.sleep(1.6)


async def test_an_idle_engine_wakes_nobody(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    sleep = asyncio.sleep

    async def counted(seconds: float) -> None:
        slept.append(seconds)
        await sleep(seconds)

    async with LoopbackRing(loads(toy, (2, 4))) as ring, engine_over(ring, step_timeout=0.1) as engine:
        assert len(await collect(engine.submit(ask(1, 2, max_tokens=3)))) == 3
        await sleep(0.1)  # the watch of its last step ends
        monkeypatch.setattr(asyncio, "sleep", counted)
        await sleep(0.3)
        monkeypatch.undo()
    assert slept == []


async def test_close_ends_open_requests(toy: Path) -> None:
    async with LoopbackRing(loads(toy, (2, 4))) as ring:
        engine = Engine(ring, NO_EOS)
        serving_task = asyncio.create_task(serve(engine))
        stream = engine.submit(ask(1, 2, max_tokens=3000))
        await anext(stream)
        engine.close()
        await asyncio.wait_for(serving_task, PATIENCE)
        with pytest.raises(NotServing):
            await collect(stream)
        with pytest.raises(NotServing):
            engine.submit(ask(1))


async def last_finish(stream: TokenStream) -> str | None:
    return [tokens.finish async for tokens in stream][-1]


async def test_the_next_frame_leaves_before_anybody_reads_the_last_answer(toy: Path) -> None:
    """Text is made of a token while the ring computes the next one."""
    async with LoopbackRing(loads(toy, (2, 4))) as ring, engine_over(ring) as engine:
        pushed = [len(ring.pushed) async for _ in engine.submit(ask(1, 2, 3, max_tokens=6))]
        assert pushed[:5] == [2, 3, 4, 5, 6]  # the last token needs no frame
