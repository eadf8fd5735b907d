"""What the scheduler concludes from measured steps: how much of a prompt beside decode, how many lanes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.frames import answered, next_frame, request, rows, scheduler, start_decoding
from together.engine.cost import LEAST, STRETCH, Curve, Pace, StepCost
from together.engine.scheduler import Scheduler
from together.types import StageTiming


def learnt(stages: int, ms: Callable[[int], float], crowding: float = 0.0, network: float = 0.0) -> StepCost:
    """A cost model that saw steps of many sizes; `crowding`: how much slower stages were side by side, if they were."""
    cost = StepCost(stages)
    for tokens in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        timings = (StageTiming(ms(tokens), 0.0),) * stages
        cost.observe(tokens, timings, alone=True, round_ms=stages * ms(tokens) + network)
        if crowding:
            cost.observe(tokens, (StageTiming(ms(tokens) * crowding, 0.0),) * stages, alone=False, round_ms=0.0)
    return cost


def linear(tokens: int) -> float:
    return 10.0 + 0.5 * tokens


def test_a_curve_is_straight_between_what_was_seen_and_slow_beyond() -> None:
    curve = Curve()
    assert curve.at(5) is None
    curve.add(10, (4.0, 8.0))
    assert (curve.at(10), curve.at(1)) == ((4.0, 8.0), (4.0, 8.0))
    assert curve.at(20) == (8.0, 16.0)  # no step costs more than in proportion
    curve.add(30, (6.0, 10.0))
    assert curve.at(20) == (5.0, 9.0)
    assert [curve.covers(tokens) for tokens in (9, 10, 30, 60)] == [False, True, True, False]


def test_one_slow_step_is_forgotten() -> None:
    curve = Curve()
    for ms in (900.0, 5.0, 6.0, 5.0):
        curve.add(64, (ms,))
    assert curve.at(64) == (5.5,)


def test_prompts_add_what_keeps_the_gaps_in_bounds() -> None:
    cost = learnt(1, linear)
    pace = cost.pace(rows=1, lanes=1, chunk=256)
    alone, beside = cost.gap_ms(1, 1), cost.gap_ms(1, 1 + pace.tokens)
    assert alone is not None
    assert beside is not None
    assert 0.75 * STRETCH * alone < beside <= STRETCH * alone


def test_a_step_that_costs_the_same_for_any_prompt_takes_a_whole_chunk() -> None:
    assert learnt(1, lambda tokens: 10.0).pace(rows=1, lanes=1, chunk=256) == Pace(1, 255)


def test_a_prompt_never_starves_and_the_unknown_is_tried_in_small() -> None:
    assert learnt(1, lambda tokens: 10.0 * tokens).pace(1, 1, 256) == Pace(1, LEAST)
    assert StepCost(2).pace(1, 1, 256) == Pace(1, LEAST)


def test_a_slow_network_leaves_more_time_for_prompts() -> None:
    near, far = learnt(2, linear), learnt(2, linear, network=50.0)
    assert far.pace(1, 1, 256).tokens > 2 * near.pace(1, 1, 256).tokens


def test_stages_work_on_several_frames_only_where_they_do_not_slow_each_other() -> None:
    assert learnt(4, linear, crowding=1.0).pace(1, 1, 256).frames == 4
    assert learnt(4, linear, crowding=4.0).pace(1, 1, 256).frames == 1


@pytest.mark.parametrize(
    ("ms", "crowding", "lanes"),
    [
        (lambda tokens: 10.0, 1.0, 1),  # a batch costs what a row costs
        (lambda tokens: 10.0 + 0.1 * tokens, 1.0, 1),  # hardly more
        (lambda tokens: 10.0 * tokens, 1.0, 4),
        (lambda tokens: 10.0 * tokens, 4.0, 1),  # but the stages share one machine
    ],
)
def test_lanes_only_where_they_pay(ms: Callable[[int], float], crowding: float, lanes: int) -> None:
    assert learnt(4, ms, crowding).lanes(16) == lanes


def test_no_more_lanes_than_rows() -> None:
    assert learnt(4, lambda tokens: 10.0 * tokens, 1.0).lanes(2) == 2


# --- in frames --------------------------------------------------------------------------------------------------------


def decode_for_a_while(found: Scheduler, ms: Callable[[int], float], steps: int = 30) -> None:
    stages = found.limits.stages
    for _ in range(steps):
        frame = next_frame(found)
        found.commit(answered(frame, stage_ms=(ms(frame.batch.tokens),) * stages), ms(frame.batch.tokens) * stages)


def test_a_long_prompt_beside_decode_finds_its_pace_from_below() -> None:
    found = scheduler(stages=1, chunk=256)
    start_decoding(found, 3)
    decode_for_a_while(found, linear, 5)
    found.submit(request(2000, 10, start=5000))
    sizes = []
    while found.waiting or any(sequence.unsent > 1 for sequence in found.running.values()):
        frame = next_frame(found)
        assert found.schedule() is None  # nothing else travels meanwhile
        sizes.append(frame.batch.tokens)
        found.commit(answered(frame, stage_ms=(linear(frame.batch.tokens),)), linear(frame.batch.tokens))
        assert linear(frame.batch.tokens) <= STRETCH * linear(1) * 1.01
    assert sizes[0] == 1 + LEAST
    assert max(sizes) >= 20


def test_whole_chunks_while_nobody_decodes() -> None:
    found = scheduler(stages=1, chunk=256)
    start_decoding(found, 3, max_tokens=20)
    decode_for_a_while(found, lambda tokens: 10.0 * tokens, 19)
    assert not found.running
    found.submit(request(600, 10, start=5000))
    assert rows(next_frame(found)) == [(2, 0, 256, False)]


def test_two_lanes_take_turns_and_hold_half_of_the_rows_each() -> None:
    found = scheduler(stages=2)
    found.cost = learnt(2, lambda tokens: 10.0 * tokens, crowding=1.0)
    start_decoding(found, 3, 3, 3, 3)
    first, second = next_frame(found), next_frame(found)
    assert found.schedule() is None
    assert sorted(row.sequence for frame in (first, second) for row in frame.batch.rows) == [1, 2, 3, 4]
    assert len(first.batch.rows) == len(second.batch.rows) == 2
    found.commit(answered(first, stage_ms=(20.0, 20.0)))
    assert [row.sequence for row in next_frame(found).batch.rows] == [row.sequence for row in first.batch.rows]
