"""Where requests without a token are: in the queue, or how much of their prompts the ring has."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.support.engines import collect, loads, serving
from tests.support.loopback import LoopbackRing
from together.engine.engine import Engine
from together.engine.progress import places_in, progress_of
from together.engine.scheduler import Scheduler
from together.engine.sequence import Sequence
from together.requests import GenerateRequest, PromptProgress
from together.types import Frame, Limits, RowResult, Sampled, Sampling, StageTiming

CHUNK = 16
NOBODY: frozenset[int] = frozenset()


def scheduler_with(capacity: int = 1024) -> Scheduler:
    return Scheduler(Limits(1, capacity, 16, 512, CHUNK), NOBODY, 10)


def ask(scheduler: Scheduler, prompt: Iterable[int], max_tokens: int = 2) -> Sequence:
    return scheduler.submit(GenerateRequest(tuple(prompt), Sampling(0.0), max_tokens))


def answered(scheduler: Scheduler, frame: Frame | None) -> None:
    """What a ring says: token 7 to whoever asks for one."""
    assert frame is not None
    results = tuple(
        RowResult(row.sequence, row.position, (Sampled(7),) if row.sample is not None else ())
        for row in frame.batch.rows
    )
    scheduler.commit(Frame(frame.step, frame.batch, results=results, timings=(StageTiming(1.0, 0.0, 1),)))


def told(scheduler: Scheduler, *sequences: Sequence) -> list[PromptProgress]:
    places = places_in(scheduler)
    return [progress_of(sequence, places, CHUNK) for sequence in sequences]


def run(scheduler: Scheduler) -> None:
    """Until nothing is to be computed."""
    while (frame := scheduler.schedule()) is not None:
        answered(scheduler, frame)


def test_what_was_answered_of_a_prompt_is_read() -> None:
    scheduler = scheduler_with()
    sequence = ask(scheduler, range(40))
    first = scheduler.schedule()
    second = scheduler.schedule()
    assert told(scheduler, sequence) == [PromptProgress(0, 0, 40)]
    answered(scheduler, first)
    assert told(scheduler, sequence) == [PromptProgress(0, 16, 40)]
    answered(scheduler, second)
    assert told(scheduler, sequence) == [PromptProgress(0, 32, 40)]


def test_what_caches_had_counts_as_read() -> None:
    scheduler = scheduler_with()
    ask(scheduler, range(40))
    run(scheduler)
    sequence = ask(scheduler, (*range(40), *range(100, 140)))
    frame = scheduler.schedule()
    assert told(scheduler, sequence) == [PromptProgress(0, 40, 80)]
    answered(scheduler, frame)
    assert told(scheduler, sequence) == [PromptProgress(0, 56, 80)]
    run(scheduler)
    short = ask(scheduler, (*range(40), 200, 201))
    scheduler.schedule()
    assert told(scheduler, short) == [PromptProgress()]  # what is left is one frame's


def test_who_takes_over_a_prompt_that_another_one_computes_has_read_it_too() -> None:
    scheduler = scheduler_with()
    first, second = ask(scheduler, range(64)), ask(scheduler, (*range(60), *range(100, 140)))
    frame = scheduler.schedule()
    assert second.waits_for == 60
    answered(scheduler, frame)
    scheduler.schedule()
    assert told(scheduler, first, second) == [PromptProgress(0, 16, 64), PromptProgress(0, 16, 100)]


def test_a_prompt_behind_longer_ones_and_one_without_room_have_places() -> None:
    scheduler = scheduler_with(capacity=128)
    reading, behind, waiting, last = (
        ask(scheduler, range(start, start + length), max_tokens=1)
        for start, length in ((0, 50), (100, 50), (200, 50), (300, 5))
    )
    frame = scheduler.schedule()
    assert [sequence in scheduler.waiting for sequence in (behind, waiting, last)] == [False, True, True]
    read, *places = told(scheduler, reading, behind, waiting, last)
    assert (read, [each.place for each in places]) == (PromptProgress(0, 0, 50), [1, 2, 3])
    scheduler.cancel(waiting)
    assert told(scheduler, last) == [PromptProgress(2, 0, 5)]
    for _ in range(3):
        answered(scheduler, frame)
        frame = scheduler.schedule()
    assert [each.place for each in told(scheduler, behind, last)] == [0, 1]
    assert told(scheduler, behind)[0].read == 0
    answered(scheduler, frame)
    run(scheduler)
    assert scheduler.waiting == []


def test_who_must_begin_again_is_in_the_queue_again() -> None:
    scheduler = scheduler_with()
    sequence = ask(scheduler, range(40))
    answered(scheduler, scheduler.schedule())
    scheduler.replay()
    assert told(scheduler, sequence) == [PromptProgress(1, 0, 40)]
    scheduler.schedule()
    assert told(scheduler, sequence) == [PromptProgress(0, 0, 40)]


async def test_a_followed_request_hears_of_it_and_others_do_not(toy: Path) -> None:
    prompt = tuple(range(32, 112))
    async with LoopbackRing(loads(toy, (2, 4)), chunk=CHUNK) as ring:
        engine = Engine(ring, NOBODY)
        async with serving(engine):
            plain = engine.submit(GenerateRequest(prompt, Sampling(0.0), 2))
            await collect(plain)
            engine.drop_cache()
            stream = engine.submit(GenerateRequest(prompt, Sampling(0.0), 2, followed=True))
            heard: list[PromptProgress] = []
            ids: list[int] = []
            while len(ids) < 2:
                await stream._ready.wait()
                stream._ready.clear()
                heard.append(stream.progress)
                ids += list(tokens.ids) if (tokens := stream.poll()) is not None else []
            assert not engine._followed
    assert plain.progress == PromptProgress()
    reads = [each.read for each in heard]
    assert reads == sorted(reads)
    assert {each.prompt for each in heard} == {80}
    assert reads[-1] > 0
