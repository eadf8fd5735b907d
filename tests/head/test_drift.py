"""Stage times against the plan: noise is no news, one slow machine is, and a better split has to be clearly better."""

from __future__ import annotations

import pytest

from together.head.balance import advise, drift_of
from together.planning.problem import Link, ModelSize, NodeProfile, Problem
from together.planning.recommend import recommend
from together.planning.score import score_of


@pytest.fixture
def problem() -> Problem:
    nodes = tuple(NodeProfile(name, 2.0, 1.0, max_layers=20) for name in ("anna", "berta", "carla"))
    links = (Link("anna", "berta", 0.1), Link("berta", "carla", 0.1), Link("anna", "carla", 0.1))
    return Problem(ModelSize((0,) * 24), nodes, links, head="anna", users=8)


def test_what_is_as_planned_or_slower_for_all_is_no_drift(problem: Problem) -> None:
    split = recommend(problem)
    assert split is not None
    planned = [stage.ms for stage in score_of(problem, split).stages]
    for factor in (1.0, 3.0, 0.5):  # more people at once slow all stages alike
        assert drift_of(problem, split, [ms * factor for ms in planned]) == ()
    assert drift_of(problem, split, [ms * factor for ms, factor in zip(planned, (1.1, 1.0, 0.9), strict=True)]) == ()
    assert drift_of(problem, split, planned[:2]) == ()
    assert drift_of(problem, split, [0.0] * 3) == ()
    assert advise(problem, split, planned) is None


def test_a_machine_that_became_slow_gives_layers_away(problem: Problem) -> None:
    split = recommend(problem)
    assert split is not None
    planned = [stage.ms for stage in score_of(problem, split).stages]
    advice = advise(problem, split, [planned[0], planned[1] * 2.5, planned[2]])
    assert advice is not None
    slow = split.nodes[1]
    count = {share.node: len(share.layers) for share in advice.split.shares}
    assert count.get(slow, 0) < len(split.shares[1].layers)
    values = dict(advice.sentence.values)
    assert isinstance(values["gain"], float)
    assert values["gain"] > 0.1
    assert f"{slow} is 2.5 times slower than planned" in str(advice.sentence)
    assert "% faster" in str(advice.sentence)


def test_a_drift_that_no_split_mends_gives_no_advice() -> None:
    nodes = (NodeProfile("anna", 2.0, max_layers=12), NodeProfile("berta", 2.0, max_layers=12))
    problem = Problem(ModelSize((0,) * 24), nodes, users=8)
    split = recommend(problem)
    assert split is not None
    assert drift_of(problem, split, [24.0, 72.0])
    assert advise(problem, split, [24.0, 72.0]) is None  # both are full
