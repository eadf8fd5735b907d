"""What is in no layer, messages and the head, and what the rows of several users share in a step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.planning.brute import brute_force, random_problem, with_rows
from tests.planning.test_recommend import check_plan, expected
from together.planning.explain import explain
from together.planning.problem import Assignment, ModelSize, NodeProfile, Problem, Split
from together.planning.recommend import recommend
from together.planning.score import score_of
from together.types import LayerRange

ALONE = NodeProfile("a", 2.0, 1.0, ms_per_head=1.0, max_layers=4, ms_per_step=0.5, shared=0.75)
FIXED = Problem(ModelSize((0,) * 4), (ALONE,), head="a", users=4, head_step_ms=1.0, head_row_ms=0.25)
WHOLE = Split((Assignment("a", LayerRange(0, 4)),))


def test_messages_and_the_head_are_in_a_token() -> None:
    score = score_of(replace(FIXED, users=1), WHOLE)
    assert (score.token_ms, score.score_ms) == (8 + 1 + 1 + 0.5 + 1.25, 11.75)
    assert (score.computing_ms, score.around_ms, score.head_ms) == (10.0, 1.75, 1.25)


def test_rows_of_several_users_share_steps() -> None:
    """One frame of four rows takes 1.75 times as long as one of one row, and the head's part for four."""
    score = score_of(FIXED, WHOLE)
    assert score.score_ms == (1.75 * 10.5 + 1 + 4 * 0.25) / 4
    assert score.token_ms == 11.75
    apart = replace(FIXED, nodes=(replace(ALONE, shared=0.0),))
    assert score_of(apart, WHOLE).score_ms == 10.5  # a row as long as a step: nothing is gained by sharing one


def test_two_stages_take_turns_with_frames_of_two_rows() -> None:
    """While one stage computes two rows the other one has the other two: better than four at once, or each alone."""
    half = replace(ALONE, shared=0.5)
    pair = replace(FIXED, nodes=(half, replace(half, name="b")), hop_ms=1.0)
    halves = Split((Assignment("a", LayerRange(0, 2)), Assignment("b", LayerRange(2, 4))))
    assert score_of(pair, halves).score_ms == (1.5 * (5.5 + 6.5) + 2 + 1 + 2 * 0.25) / 4


def test_all_parts_of_a_token_are_said() -> None:
    (_, cost) = map(str, explain(FIXED, WHOLE))
    assert cost == (
        "a token takes 11.8 ms: 10.0 ms of computing and 1.8 ms for the app and its messages; 4 users at once share "
        "steps: one of them gets a token every 5.1 ms"
    )
    far = replace(FIXED, nodes=(ALONE, NodeProfile("b", 9.0, max_layers=0)), head="b", hop_ms=2.0, users=1)
    (_, cost) = map(str, explain(far, WHOLE))
    assert cost == (
        "a token takes 15.8 ms: 10.0 ms of computing, 1.8 ms for the app and its messages and 4.0 ms on 2 hops"
    )


@pytest.mark.parametrize("part", range(4))
def test_equals_brute_force_where_rows_share_time(part: int) -> None:
    """Of equal plans any may come out: a token's time is another one for each number of frames."""
    shared = 0
    for seed in range(part * 50, part * 50 + 50):
        problem = with_rows(random_problem(seed), seed)
        found = brute_force(problem)
        for tolerance in (0.0, 0.1) if found else ():
            split = recommend(replace(problem, tolerance=tolerance))
            assert split is not None, seed
            check_plan(problem, split)
            best, size = expected(found, tolerance)
            score = score_of(problem, split)
            assert score.score_ms == pytest.approx(best.score, rel=1e-9), seed
            assert size is None or len(split.shares) == size, seed
            shared += score.batched_ms < max(score.token_ms / score.users, score.busiest_ms)
    assert shared > 15, "or no plan gains by shared frames"
