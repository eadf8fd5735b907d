"""Plans that change while people chat: what fits stays loaded, answers go on, and nothing of an older plan is left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.head.test_recovery import disturbed, layout, stage_of
from tests.support.checksum import EOS as END
from tests.support.checksum import QUIET, make_checksum_model
from tests.support.cluster import Node, ask, by_hand, right_answer, running_cluster, until
from tests.support.patience import PATIENCE
from together.cluster.survey import Speeds, Surveyor
from together.cluster_types import ServingState
from together.errors import BadPlan, NotEnoughMemory
from together.head.head import Head
from together.models.spec import read_shape
from together.planning.explain import Infeasible
from together.planning.problem import Problem, Sizing
from together.planning.report import PlanReport
from together.planning.request import PlanRequest, plan_for
from together.types import LayerRange

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
    changing: list[asyncio.Task[None]] = []
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
