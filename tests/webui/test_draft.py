"""What the Split panel says of a plan and of its edits; no browser and no head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from together.planning.explain import Infeasible
from together.planning.problem import Link, ModelSize, NodeProfile, Problem
from together.planning.report import PlanReport
from together.planning.request import PlanRequest, parse_layers, plan_for
from webui.draft import Draft, Edited, edit_of, shown_error, shown_missing, shown_plan

LAYERS = 12
PROBLEM = Problem(
    model=ModelSize((100.0,) * LAYERS, embed_bytes=50, head_bytes=50),
    nodes=(
        NodeProfile("studio", 1.0, free_bytes=900),
        NodeProfile("mini", 2.0, free_bytes=700),
        NodeProfile("laptop", 9.0, free_bytes=600),
        NodeProfile("this machine", 0.0, max_layers=0),
    ),
    hop_ms=1.0,
    head="this machine",
)


def draft_of(problem: Problem = PROBLEM, **request: Any) -> Draft:
    asked = PlanRequest(**request)
    answer = plan_for(asked, problem)
    assert isinstance(answer, PlanReport)
    return Draft("", "toy", asked, answer)


def edit(*counts: str, draft: Draft | None = None) -> Edited:
    return Edited(draft or draft_of(), counts)


def test_a_recommendation_is_shown_with_its_sentences() -> None:
    draft = draft_of()
    shown = shown_plan(Edited(draft, draft.counts))
    assert [row["node"] for row in shown["rows"]] == ["mini", "studio", "laptop"]
    assert draft.counts == ("4", "8", "0")
    assert [(row["start"], row["stop"]) for row in shown["rows"]] == [(0, 4), (4, 12), (0, 0)]
    assert [row["bytes"] for row in shown["rows"]] == [450, 850, 0]
    assert [row["ms"] for row in shown["rows"]] == [8, 8, 0]
    assert (shown["wrong"], shown["changed"]) == ([], False)
    assert any("laptop" in sentence for sentence in shown["why"])
    assert shown["speed"]["alone"] == pytest.approx(1000 / 19)  # 16 ms of layers, 3 hops


def test_the_head_without_a_node_is_no_machine_to_give_layers() -> None:
    assert "this machine" not in [machine.name for machine in draft_of().machines]


def test_layers_that_do_not_add_up_are_a_sentence() -> None:
    shown = shown_plan(edit("4", "7", "0"))
    assert shown["wrong"] == ["the layers add up to 11, the model has 12; give 1 more to mini"]
    assert (shown["speed"], shown["why"], shown["changed"]) == (None, [], True)


def test_a_cut_between_layers_that_share_is_a_sentence() -> None:
    problem = replace(PROBLEM, model=replace(PROBLEM.model, joined=(5, 6, 7)))
    draft = draft_of(problem)
    shown = shown_plan(edit("6", "6", "0", draft=draft))
    assert shown["wrong"][0].startswith("no stage can begin with layer 6: it, or one behind it, needs what an")
    whole = shown_plan(Edited(draft, draft.counts))
    assert (whole["wrong"], whole["joined"]) == ([], [5, 6, 7])
    assert whole["together"] == [
        "layers 4:8 stay together on one machine: later ones need what an earlier one's stage has"
    ]
    assert shown_plan(edit("4", "8", "0"))["together"] == []


def test_no_layer_at_all_is_a_sentence() -> None:
    assert edit("0", "0", "0").outcome() == [
        "the layers add up to 0, the model has 12; give 6 more to mini and 6 more to studio"
    ]


@pytest.mark.parametrize("text", ["", " ", "-1", "1.5", "many", "1e3", "9" * 5000, "٣"])
def test_what_is_no_count_is_a_sentence_with_the_machine(text: str) -> None:
    wrong = edit("4", text, "0").outcome()
    assert isinstance(wrong, list)
    assert len(wrong) == 1
    assert wrong[0].startswith("studio: ")
    assert wrong[0].endswith("write a whole number, or 0 for none")
    assert len(wrong[0]) < 120


def test_too_much_for_a_machine_is_a_sentence_and_marked() -> None:
    shown = shown_plan(edit("8", "4", "0"))
    assert shown["wrong"] == [
        "mini can hold 6 of its 8 layers: 0:8 need 850 bytes, it may use 700 bytes; give 2 of them to studio"
    ]
    assert [row["over"] for row in shown["rows"]] == [True, False, False]


def test_a_huge_count_is_answered() -> None:
    assert edit("999999", "0", "0").outcome() == [
        "the layers add up to 999999, the model has 12; take 999987 from mini"
    ]


def test_an_unusable_link_is_a_sentence() -> None:
    draft = draft_of(replace(PROBLEM, links=(Link("studio", "laptop", None),), head=None))
    counts = {"studio": "8", "mini": "0", "laptop": "4"}
    wrong = edit(*(counts[machine.name] for machine in draft.machines), draft=draft).outcome()
    assert isinstance(wrong, list)
    assert "laptop and studio" in wrong[0]


def test_a_valid_edit_has_figures_of_its_own() -> None:
    before, after = shown_plan(edit("4", "8", "0")), shown_plan(edit("6", "6", "0"))
    assert after["wrong"] == []
    assert after["speed"]["alone"] < before["speed"]["alone"]
    assert [row["ms"] for row in after["rows"]] == [12, 6, 0]
    assert after["why"] == []  # they are about the recommendation


def test_machines_that_were_left_out_can_be_used() -> None:
    assert edit("4", "7", "1").request.assignments == parse_layers("mini=0:4,studio=4:11,laptop=11:12")


def test_a_machine_may_be_left_out() -> None:
    request = edit("0", "8", "4").request
    assert (request.strategy, request.assignments) == ("custom", parse_layers("studio=0:8,laptop=8:12"))


def test_an_edit_is_loaded_with_the_users_and_context_that_were_asked() -> None:
    draft = draft_of(strategy="ratio", ratio=(2, 1), users=2, context=512)
    request = edit("7", "5", "0", draft=draft).request
    assert request == PlanRequest("custom", users=2, context=512, assignments=parse_layers("studio=0:7,mini=7:12"))


def test_an_unchanged_recommendation_stays_one() -> None:
    assert edit("04", "8", "0").request == PlanRequest()


def test_what_is_missing_is_shown_with_its_advice() -> None:
    missing = plan_for(PlanRequest(), replace(PROBLEM, nodes=PROBLEM.nodes[2:]))
    assert isinstance(missing, Infeasible)
    shown = shown_missing(missing)
    assert shown == {"kind": "wrong", "wrong": [str(missing.error)], "advice": list(map(str, missing.suggestions))}
    assert shown["advice"]
    assert shown_error("why") == {"kind": "wrong", "wrong": ["why"], "advice": []}


def test_an_edit_comes_from_the_browser_as_counts_and_a_number() -> None:
    draft = draft_of()
    assert edit_of(draft, {"counts": ["8", 4, "0"], "serial": 7}) == (Edited(draft, ("8", "4", "0")), 7)


@pytest.mark.parametrize("data", [None, [], "8,4", {}, {"counts": "840"}, {"counts": ["8", "4"]}, {"counts": None}])
def test_what_is_no_edit_of_the_draft_is_none(data: object) -> None:
    assert edit_of(draft_of(), data) == (None, None)


def test_without_a_draft_nothing_is_an_edit() -> None:
    assert edit_of(None, {"counts": [], "serial": 1}) == (None, None)
