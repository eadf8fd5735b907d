"""From a request to an answer, and the figures of an edited split. What is asked of files is in tests/desktop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.work import calls_of
from together.desktop.bench.small import Case, made_up
from together.errors import BadInput, BadPlan, BadSetting
from together.planning.explain import Infeasible
from together.planning.problem import Assignment, Link, ModelSize, NodeProfile, Problem, Split
from together.planning.recommend import recommend
from together.planning.report import PlanReport, answer_json
from together.planning.request import (
    PlanRequest,
    parse_dtype,
    parse_layers,
    parse_ratio,
    parse_request,
    plan_for,
    rescore,
)
from together.types import LayerRange

GB = 10**9
CLUSTER = Problem(
    ModelSize((GB,) * 12, embed_bytes=GB // 2, kv_bytes_per_token_per_layer=1000),
    (
        NodeProfile("Studio", 1.0, 0.5, free_bytes=10 * GB, reserve_bytes=GB, ms_per_head=3.0),
        NodeProfile("Mini", 2.0, max_layers=6, ms_per_head=1.0),
        NodeProfile("Laptop", 5.0, max_layers=12),
    ),
    (Link("Studio", "Mini", 1.0), Link("Mini", "Laptop", None)),
    hop_ms=3.0,
    head="Studio",
)


def plan(**options: Any) -> PlanReport:
    answer = plan_for(PlanRequest(**options), CLUSTER)
    assert isinstance(answer, PlanReport)
    return answer


def counts(answer: PlanReport) -> dict[str, int]:
    return {share.node: len(share.layers) for share in answer.split.shares}


def split(*parts: tuple[str, int, int]) -> Split:
    return Split(tuple(Assignment(name, LayerRange(start, stop)) for name, start, stop in parts))


# --- a request --------------------------------------------------------------------------------------------------------


def test_what_is_asked_goes_before_the_problem() -> None:
    assert (plan().problem.users, plan().problem.context, plan().problem.tolerance) == (1, 4096, 0.1)
    changed = plan(users=3, context=100, tolerance=0.0)
    assert (changed.problem.users, changed.problem.context, changed.problem.tolerance) == (3, 100, 0.0)
    assert changed.score.tokens_per_second == pytest.approx(3 * changed.score.tokens_per_second_each)


def test_the_last_stage_has_the_lm_head() -> None:
    answer = plan()
    assert answer.score.token_ms == 8 + 0.5 + 4 * 2 + 1 + 2
    assert answer_json(answer)["stages"][1]["ms"] == 9.0
    custom = plan(strategy="custom", assignments=parse_layers("Mini=0:4,Studio=4:12"))
    assert [stage.ms for stage in custom.score.stages] == [8.0, 11.5]
    assert custom.score.token_ms == answer.score.token_ms + 2


def test_every_strategy_has_an_answer_or_says_what_is_wrong() -> None:
    assert counts(plan(strategy="ratio", ratio=(2, 1))) == {"Studio": 8, "Mini": 4}
    assert counts(plan(strategy="custom", assignments=parse_layers("0-7,8-11"))) == {"Studio": 8, "Mini": 4}
    for strategy in ("recommend", "uniform", "memory", "compute", "mixed"):
        outcome = plan_for(PlanRequest(strategy), CLUSTER)
        if isinstance(outcome, PlanReport):
            assert sum(counts(outcome).values()) == 12
        else:
            assert "cannot be used" in str(outcome.error)


def test_no_partition_is_larger_than_asked() -> None:
    outcome = plan_for(parse_request("custom", layers="Studio=0:8,Mini=8:12", max_memory="4GB"), CLUSTER)
    assert isinstance(outcome, Infeasible)
    assert str(outcome.error).startswith("Studio can hold 3 of its 8 layers: 0:8 need 8.5 GB, it may use 4.")
    assert outcome.layers == 5 + 1


def test_one_machine_needs_no_network() -> None:
    alone = Problem(CLUSTER.model, CLUSTER.nodes[2:], head="Laptop")
    answer = plan_for(PlanRequest(hidden_size=8192), alone)
    assert isinstance(answer, PlanReport)
    assert (answer.score.token_ms, answer.score.hops) == (60, 0)
    network = answer_json(answer)["network"]
    assert (network["bytes_per_token_and_hop"], network["mbit_per_s"]) == (16384, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strategy": "best"}, "there is no strategy 'best'"),
        ({"strategy": "ratio"}, "--ratio"),
        ({"strategy": "custom"}, "--layers"),
        ({"users": 0}, "users must be at least 1, not 0"),
        ({"context": -5}, "context must be at least 1, not -5"),
        ({"tolerance": -0.1}, "tolerance must be a number, at least 0, not -0.1"),
        ({"tolerance": float("nan")}, "tolerance must be a number"),
        ({"tolerance": float("inf")}, "tolerance must be a number"),
    ],
)
def test_a_wrong_request_is_a_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSetting) as error:
        plan_for(PlanRequest(**options), CLUSTER)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("Studio=0:4,Mini=5:12", "layers 4:5 are in no range"),
        ("Studio=0:4,Maxi=4:12", "there is no node Maxi"),
    ],
)
def test_wrong_layers_are_a_bad_plan(layers: str, said: str) -> None:
    with pytest.raises(BadPlan) as error:
        plan_for(PlanRequest("custom", assignments=parse_layers(layers)), CLUSTER)
    assert said in str(error.value)


# --- an edited split --------------------------------------------------------------------------------------------------


def test_an_edited_split_has_the_figures_of_the_same_custom_plan() -> None:
    edited = rescore(CLUSTER, split(("Mini", 0, 6), ("Studio", 6, 12)))
    assert isinstance(edited, PlanReport)
    assert edited.score == plan(strategy="custom", assignments=parse_layers("Mini=0:6,Studio=6:12")).score
    found = answer_json(edited)
    assert found["network"] is None
    assert found["why"] == found["left_out"] == []
    assert [stage["room_bytes"] for stage in found["stages"]] == [None, 9 * GB]


def complaints(edited: Split) -> list[str]:
    found = rescore(CLUSTER, edited)
    assert isinstance(found, tuple)
    return list(map(str, found))


def test_all_that_is_wrong_with_an_edited_split() -> None:
    assert complaints(split(("Studio", 0, 10), ("Mini", 10, 11))) == [
        "layers 11:12 are in no range",
        "right would be Studio=0:10,Mini=10:12",
    ]
    assert complaints(split(("Studio", 0, 10), ("Mini", 10, 12))) == [
        "Studio can hold 8 of its 10 layers: 0:10 need 10.5 GB, it may use 9.0 GB; give 2 of them to Mini",
    ]
    assert complaints(Split(())) == ["layers 0:12 are in no range"]
    assert complaints(split(("Mini", 0, 4), ("Laptop", 4, 12))) == [
        "the link between Laptop and Mini cannot be used; put another node between them"
    ]


def test_scoring_again_is_little_work() -> None:
    """It runs on every key that a person presses: it searches nothing."""
    problem = made_up(Case(32, 128, "bytes", 8, 4.0))
    best = recommend(problem)
    assert best is not None
    assert isinstance(rescore(problem, best), PlanReport)
    assert calls_of(lambda: rescore(problem, best)) < 1000


# --- options as text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("0:4,4:8", [("", 0, 4), ("", 4, 8)]),
        ("0-3, 4-7", [("", 0, 4), ("", 4, 8)]),
        ("Anna's Mac, the old one=0:4, mini=4:8", [("Anna's Mac, the old one", 0, 4), ("mini", 4, 8)]),
    ],
)
def test_layers_are_ranges_with_or_without_nodes(text: str, parts: list[tuple[str, int, int]]) -> None:
    assert parse_layers(text) == split(*parts).shares


@pytest.mark.parametrize(
    ("parse", "text", "said"),
    [
        (parse_layers, "0:12-13", "0:12-13"),
        (parse_layers, "0:4,4-12", "0:4,4-12"),
        (parse_layers, "", "--layers"),
        (parse_layers, "Studio=0:4,4:12", "name the node of every range"),
        (parse_layers, "0:0,0:12", "--layers: "),
        (parse_ratio, "3:x", "3:x"),
        (parse_dtype, "int3", "int3"),
    ],
)
def test_text_that_cannot_be_read_is_a_sentence(parse: Callable[[str], object], text: str, said: str) -> None:
    with pytest.raises(BadInput) as error:
        parse(text)
    assert said in str(error.value)


def test_a_request_in_text_means_the_same_as_one_in_values() -> None:
    assert parse_request("uniform", max_memory="4GB") == PlanRequest("uniform", max_bytes=4 * 10**9)
    assert parse_request("uniform", "ratio", ratio="3:1") == PlanRequest("ratio", ratio=(3, 1))
    layers = parse_request("uniform", layers="Mini=0:12")
    assert layers == PlanRequest("custom", assignments=split(("Mini", 0, 12)).shares)
    assert layers.names_nodes
    assert not parse_request("uniform", layers="0:12").names_nodes
