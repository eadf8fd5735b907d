"""Whether models fit: the planner's own answers, for made-up models on nodes that are there."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.checksum import make_checksum_model
from tests.support.cluster import Node, running_cluster, until
from tests.support.lightest import LIGHTEST
from tests.support.made_up import shape_of_seed, write_made_up
from together.cluster.survey import Speeds
from together.desktop.bench.shapes import SHAPES, ModelShape
from together.head.fits import ROOM, Fit, MachineSpeeds, outlines, plan_outline, with_speeds
from together.head.head import Head
from together.head.plan import PlannedModel, plan_model
from together.models.config import TOY
from together.models.summary import summarize_config
from together.planning.demand import demand_of
from together.planning.machines import Machine, problem_of
from together.planning.memory import model_size
from together.planning.problem import Link, NodeProfile, Problem
from together.planning.recommend import recommend
from together.planning.request import PlanRequest
from together.planning.score import score_of
from together.weights.sketches import FORMS, ModelSketch, sketch

NODES = ("anna", "berta")
USUAL = PlanRequest()


async def planner_says(head: Head, model: ModelSketch, form: str) -> Fit:
    """By the planner alone: what fits as usual, what fits somehow, what does not."""
    outline, surveyor = outlines(model, head.settings)[form], head.machines.surveyor
    found = await plan_model(outline, USUAL, head.settings, surveyor, Speeds.NONE)
    if not isinstance(found, PlannedModel):
        return Fit.NO
    asked = found.sizing.context == min(head.settings.context, outline.spec.context)
    if not asked or found.sizing.users != head.settings.users:
        return Fit.TIGHT
    nodes = found.answer.problem.nodes
    less = tuple(replace(node, free_bytes=(node.free_bytes or 0) * (1 - ROOM)) for node in nodes)
    return Fit.FITS if recommend(replace(found.answer.problem, nodes=less)) else Fit.TIGHT


async def test_twenty_models_fit_as_the_planner_says(cluster: tuple[Head, list[Node]], tmp_path: Path) -> None:
    head, _ = cluster
    seen: Counter[Fit] = Counter()
    for seed in range(20):
        model = sketch(write_made_up(tmp_path / f"model-{seed}", shape_of_seed(seed)), tmp_path / "home")
        assert list(model.specs) == list(FORMS), model.reason
        found = await head.library.fits.of(model, frozenset())
        for each in found:
            assert each.fit is await planner_says(head, model, each.form), (seed, each)
            seen[each.fit] += 1
        by_form = {each.form: each for each in found}
        assert by_form[FORMS[1]].bytes < by_form[FORMS[2]].bytes < by_form[""].bytes
        assert [int(by_form[form].bits) for form in ("", FORMS[2])] == [16, 8]
    assert set(seen) == set(Fit), seen


async def test_each_answer_says_why(cluster: tuple[Head, list[Node]], tmp_path: Path) -> None:
    head, _ = cluster
    small = sketch(write_made_up(tmp_path / "small", SHAPES["tiny"]), tmp_path / "home")
    large = sketch(write_made_up(tmp_path / "large", SHAPES["llama-3.1-8b"]), tmp_path / "home")
    plain = (await head.library.fits.of(small, frozenset()))[0]
    assert plain.fit is Fit.FITS
    assert str(plain.sentence).startswith("it fits on ")
    assert (plain.context, plain.users, set(plain.nodes) <= set(NODES)) == (512, 2, True)
    no = (await head.library.fits.of(large, frozenset()))[0]
    assert (no.fit, no.tokens_per_second) == (Fit.NO, None)
    assert "the model does not fit: the nodes hold" in str(no.sentence)
    assert "quantize it to 8 bits" in str(no.sentence) or "add a node" in str(no.sentence)


async def test_answers_are_kept_until_the_machines_change(cluster: tuple[Head, list[Node]], tmp_path: Path) -> None:
    head, _ = cluster
    fits, model = head.library.fits, sketch(write_made_up(tmp_path / "small", SHAPES["tiny"]), tmp_path / "home")
    version = fits.look()
    first = await fits.of(model, frozenset())
    again = await fits.of(model, frozenset())
    assert all(one is other for one, other in zip(first, again, strict=True))
    assert fits.look() == version
    head.machines.surveyor.drained.add(head.view().nodes[0].id)
    assert fits.look() != version
    assert {node for each in await fits.of(model, frozenset()) for node in each.nodes} == {head.view().nodes[1].name}


def test_a_toy_has_one_form(tmp_path: Path) -> None:
    model = sketch(make_checksum_model(tmp_path / "toy"), tmp_path / "home")
    assert (model.family, list(model.specs)) == (TOY, [""])


@pytest.mark.parametrize("name", ["qwen2.5-0.5b", "llama-3.2-1b", "llama-3.1-8b"])
def test_speeds_are_those_of_a_plan_for_a_file_of_machines(name: str, tmp_path: Path) -> None:
    """The same figures of machines give the same time of a token, whoever makes the problem of them."""
    shape: ModelShape = SHAPES[name]
    spec = sketch(write_made_up(tmp_path / name, shape), tmp_path / "home").specs[""]
    machines = [
        Machine(each, 64e9, rate, rate * 50, measured=True, layer_ms=0.05, least_ms=0.0, stage_ms=0.4, overhead_bytes=0)
        for each, rate in (("anna", 40e9), ("berta", 90e9))
    ]
    demand = demand_of(name, summarize_config(name, shape.config("bf16")))
    by_file = problem_of(machines, demand, head="anna")
    links = (Link("anna", "berta", by_file.hop_ms),)
    bare = tuple(NodeProfile(each.name, 0.0, free_bytes=64e9) for each in machines)
    empty = Problem(model_size(spec, "bf16"), bare, head="anna", users=1)
    timed = with_speeds(empty, MachineSpeeds({each.name: each for each in machines}, links), spec, 1.0)
    for problem in (by_file, timed):
        assert recommend(problem) is not None
    split = recommend(by_file)
    assert split is not None
    ours, theirs = (score_of(problem, split).token_ms for problem in (timed, by_file))
    assert ours == pytest.approx(theirs, rel=0.02)


async def test_without_a_measured_machine_no_speed_is_told(cluster: tuple[Head, list[Node]], tmp_path: Path) -> None:
    head, _ = cluster
    model = sketch(write_made_up(tmp_path / "small", SHAPES["tiny"]), tmp_path / "home")
    outline = outlines(model, head.settings)[""]
    surveyor, speed = head.machines.surveyor, Machine("anna", 1e9, 1e9, 1e9)
    only_one = MachineSpeeds({"anna": speed})
    both = MachineSpeeds({"anna": speed, "berta": speed}, (Link("anna", "berta", 1.0),))
    for speeds, known in ((MachineSpeeds(), False), (only_one, False), (both, True)):
        planned = await plan_outline(outline, 1.0, head.settings, surveyor, speeds)
        assert isinstance(planned, PlannedModel)
        assert (planned.answer.score.computing_ms > 0) is known


async def test_speeds_are_told_once_the_machines_were_measured(tmp_path: Path) -> None:
    """With a node that computes; measuring takes it some seconds, once."""
    model = sketch(write_made_up(tmp_path / "small", SHAPES["tiny"]), tmp_path / "home")
    async with running_cluster(tmp_path / "home", "anna", backend=LIGHTEST, memory="2GB") as (head, _):
        fits = head.library.fits
        assert [each.tokens_per_second for each in await fits.of(model, frozenset())] == [None] * 4
        before = fits.look()
        assert fits.measure()
        await until(lambda: not fits.measuring)
        assert not fits.measure()
        assert fits.look() != before
        assert all(each.tokens_per_second for each in await fits.of(model, frozenset()))
