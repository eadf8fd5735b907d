"""Plans that change while people chat: what fits stays loaded, answers go on, and nothing of an older plan is left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.head.test_recovery import disturbed, layout, stage_of
from tests.support.checksum import EOS as END
from tests.support.checksum import QUIET, make_checksum_model
from tests.support.cluster import Node, ask, by_hand, right_answer, running_cluster, until
from tests.support.patience import PATIENCE
from together.cluster.membership import Membership
from together.cluster.survey import Speeds, Surveyor
from together.cluster_types import LinkOrder, MeasureOrder
from together.errors import BadPlan, NotEnoughMemory
from together.head.head import Head
from together.head.plan import PlannedModel
from together.head.room import plans_without
from together.models.spec import read_shape
from together.planning.explain import Infeasible
from together.planning.problem import Problem, Sizing
from together.planning.report import PlanReport
from together.planning.request import PlanRequest, plan_for
from together.types import LayerRange
from together.view import ServingState

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENDLESS = (*QUIET, END)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "model"
    return make_checksum_model(folder, layers=6, quiet_ids=ENDLESS, step_ms=2)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Head, list[Node]]]:
    async with running_cluster(tmp_path_factory.mktemp("home"), "anna", "berta", "carla") as cluster:
        yield cluster


@pytest.fixture
def head(cluster: tuple[Head, list[Node]]) -> Head:
    return cluster[0]


async def stages_left(head: Head) -> None:
    """The ring's stages hold each layer once, and there are no others."""
    await until(lambda: sum(len(s.layers) for node in head.view().nodes for s in node.stages) == 6)


async def test_another_plan_keeps_the_stage_that_fits_and_the_answer_goes_on(head: Head, toy: Path) -> None:
    await head.load(toy, by_hand("anna=0:3,berta=3:6"))
    kept = stage_of(head, "anna").pid
    changing: list[asyncio.Task[str]] = []
    change = by_hand("anna=0:3,carla=3:5,berta=5:6")
    outcome = await disturbed(head, lambda: changing.append(asyncio.create_task(head.load(toy, change))))
    await changing[0]
    assert outcome.text == right_answer(toy, tokens=120)
    assert layout(head) == {"anna": [LayerRange(0, 3)], "carla": [LayerRange(3, 5)], "berta": [LayerRange(5, 6)]}
    assert stage_of(head, "anna").pid == kept
    await stages_left(head)
    assert await ask(head) == right_answer(toy)


async def test_a_drained_node_gives_its_layers_away_and_gets_none(head: Head, toy: Path) -> None:
    await head.load(toy, by_hand("anna=0:3,berta=3:6"))
    draining: list[asyncio.Task[None]] = []
    outcome = await disturbed(head, lambda: draining.append(asyncio.create_task(head.drain("berta"))))
    await draining[0]
    assert outcome.text == right_answer(toy, tokens=120)
    assert layout(head).keys() == {"anna", "carla"}
    await stages_left(head)
    await head.drain("berta", back=True)
    await head.load(toy, PlanRequest(strategy="uniform"))
    assert layout(head).keys() == {"anna", "berta", "carla"}
    with pytest.raises(BadPlan, match="there is no node dora; there are: anna, berta, carla"):
        await head.drain("dora")


async def test_what_an_end_would_mean_is_foreseen_apart_from_other_plans(head: Head, toy: Path) -> None:
    await head.load(toy, by_hand("anna=0:3,berta=3:6"))
    berta = next(node.id for node in head.machines.membership.living() if node.name == "berta")
    foreseeing = asyncio.create_task(plans_without(berta, [head.ready()]))
    await asyncio.sleep(0)
    assert not foreseeing.done()
    assert berta in {place.node for place in head.machines.surveyor.placements()}  # for whoever loads meanwhile
    (foreseen,) = await foreseeing
    assert isinstance(foreseen, PlannedModel)
    assert "berta" not in foreseen.answer.split.nodes


async def test_a_plan_that_does_not_fit_changes_nothing(head: Head, toy: Path) -> None:
    await head.load(toy, by_hand("anna=0:3,berta=3:6"))
    with pytest.raises(NotEnoughMemory):
        await head.load(toy, PlanRequest(strategy="uniform", max_bytes=1000))
    assert head.view().serving.state is ServingState.READY
    assert layout(head) == {"anna": [LayerRange(0, 3)], "berta": [LayerRange(3, 6)]}
    assert await ask(head) == right_answer(toy)


async def test_the_recommendation_is_measured_on_the_machines_that_are_there(head: Head, toy: Path) -> None:
    answer = await head.plan(str(toy), PlanRequest(users=2, context=256))
    assert isinstance(answer, PlanReport)
    assert {node.name for node in answer.problem.nodes} == {"anna", "berta", "carla"}
    assert all(node.ms_per_layer > 0 for node in answer.problem.nodes)
    assert len(answer.problem.links) == 3
    assert all(link.ms is not None and link.ms > 0 for link in answer.problem.links), answer.problem.links
    assert answer.why
    assert {node.processor for node in answer.problem.nodes} == {"anna"}  # they are all on this machine
    assert len(answer.split.shares) == 1
    await head.load(toy, PlanRequest(users=2, context=256))
    assert len(layout(head)) == len(answer.split.shares)
    assert await ask(head) == right_answer(toy)


async def test_the_head_goes_on_while_a_plan_is_searched(
    head: Head, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With eight machines the search takes longer than anybody should wait for `/health`."""
    searching, searched = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def search(request: PlanRequest, problem: Problem) -> PlanReport | Infeasible:
        loop.call_soon_threadsafe(searching.set)
        assert searched.wait(PATIENCE), "the loop went on only after the search"
        return plan_for(request, problem)

    monkeypatch.setattr("together.head.plan.plan_for", search)
    planning = asyncio.create_task(head.plan(str(toy), PlanRequest(users=2, context=256)))
    await asyncio.wait_for(searching.wait(), PATIENCE)
    searched.set()
    assert isinstance(await planning, PlanReport)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "default"])
async def test_speeds_are_asked_for_in_the_mode_that_will_run(
    head: Head, toy: Path, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[bool] = []
    given = Membership.call

    async def noted(self: Membership, node: str, call: Any, request: Any, *more: Any, **others: Any) -> Any:
        if isinstance(request, MeasureOrder):
            modes.append(request.packed.exact)
        return await given(self, node, call, request, *more, **others)

    monkeypatch.setattr(Membership, "call", noted)
    monkeypatch.setattr(head, "settings", replace(head.settings, exact=exact))
    assert isinstance(await head.plan(str(toy), PlanRequest(users=2, context=256)), PlanReport)
    assert modes
    assert set(modes) == {exact}


async def test_in_a_hurry_a_machine_is_as_fast_as_it_said_last(
    head: Head, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    surveyor, config = Surveyor(head.machines.membership, ""), (toy / "config.json").read_bytes()

    async def ms_per_layer(speeds: Speeds) -> list[float]:
        sizing, placements = Sizing(256, 1, "fp32"), surveyor.placements()
        found = await surveyor.survey(read_shape(toy), config, sizing, speeds, placements)
        return [node.ms_per_layer for node in found.problem.nodes if node.name in found.placements]

    monkeypatch.setattr("together.cluster.survey.HURRY", 0.0)  # nobody answers so fast
    assert await ms_per_layer(Speeds.KNOWN) == [0, 0, 0]
    known = await ms_per_layer(Speeds.MEASURE)
    assert min(known) > 0
    assert await ms_per_layer(Speeds.KNOWN) == known


async def test_what_the_head_adds_is_in_the_problem(head: Head, toy: Path) -> None:
    """Measured where there is time for it, and known from then on."""
    surveyor, config = head.machines.surveyor, (toy / "config.json").read_bytes()

    async def own(speeds: Speeds) -> float:
        sizing, placements = Sizing(256, 1, "fp32"), surveyor.placements()
        problem = (await surveyor.survey(read_shape(toy), config, sizing, speeds, placements)).problem
        assert problem.head_row_ms >= 0
        assert all(node.ms_per_step > 0 for node in problem.nodes) is (speeds is Speeds.MEASURE)
        return problem.head_step_ms

    assert await own(Speeds.NONE) == 0
    measured = await own(Speeds.MEASURE)
    assert measured > 0
    assert await own(Speeds.MEASURE) == measured


async def test_in_a_hurry_nothing_is_measured_that_is_known(
    head: Head, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a machine nor a link, however old what is known of it is."""
    asked: list[object] = []
    given = Membership.call

    async def noted(self: Membership, node: str, call: Any, request: Any, *more: Any, **others: Any) -> Any:
        if isinstance(request, MeasureOrder | LinkOrder):  # the head asks nodes for their state all the time
            asked.append(request)
        return await given(self, node, call, request, *more, **others)

    monkeypatch.setattr(Membership, "call", noted)
    monkeypatch.setattr("together.cluster.survey.LINK_LIFE", -1.0)
    surveyor, config = Surveyor(head.machines.membership, ""), (toy / "config.json").read_bytes()
    sizing, placements = Sizing(256, 1, "fp32"), surveyor.placements()
    measured = await surveyor.survey(read_shape(toy), config, sizing, Speeds.MEASURE, placements)
    kinds = {type(request) for request in asked}
    assert kinds == {MeasureOrder, LinkOrder}
    asked.clear()
    known = await surveyor.survey(read_shape(toy), config, sizing, Speeds.KNOWN, placements)
    assert asked == []
    assert known.problem.links == measured.problem.links


async def test_context_and_users_stay_as_asked_where_a_new_split_leaves_them_open(head: Head, toy: Path) -> None:
    def sizing() -> tuple[int, int]:
        plan = head.view().serving.plan
        assert plan is not None
        return plan.context, plan.users

    await head.load(toy, replace(by_hand("anna=0:6"), context=256, users=3))
    planned = await head.plan(None, PlanRequest())
    assert isinstance(planned, PlanReport)
    assert (planned.problem.context, planned.problem.users) == sizing() == (256, 3)
    await head.load(None, by_hand("anna=0:3,berta=3:6"))
    assert sizing() == (256, 3)
    await head.load(None, replace(by_hand("anna=0:6"), context=768))
    assert sizing() == (768, 3)
    await head.load(toy, by_hand("anna=0:6"))  # named, so it is a new wish
    assert sizing() == (head.settings.context, head.settings.users)
