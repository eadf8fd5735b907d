"""Rows R1 to R5 and R12: parts of a ring die, freeze or run out of memory while people chat, and no text changes.

Real nodes and stages on loopback with the checksum toy, whose text shows any token that was lost, repeated or mixed up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from tests.support.checksum import EOS as END
from tests.support.checksum import QUIET, make_checksum_model
from tests.support.cluster import (
    GREEDY,
    Node,
    ask,
    by_hand,
    right_answer,
    running_cluster,
    start_node,
    until,
)
from tests.support.patience import PATIENCE
from together.cluster_types import NodeState, StageStatus
from together.errors import NotServing, RingBroken
from together.head import machines, recovery
from together.head.head import Head
from together.head.machines import cut_pairs
from together.requests import ChatRequest, Message
from together.types import LayerRange, Sampling
from together.view import ServingState

NODES = ("anna", "berta", "carla")
ENDLESS = (*QUIET, END)
TOKENS = 120
DRAWN = Sampling(temperature=1.0, seed=11)


@dataclass(slots=True)
class Outcome:
    """An answer that was disturbed, and the longest pause in it, in seconds."""

    text: str
    stall: float


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "model"
    return make_checksum_model(folder, layers=6, quiet_ids=ENDLESS, step_ms=2)


async def disturbed(head: Head, harm: Callable[[], None], sampling: Sampling = GREEDY, at: int = 30) -> Outcome:
    """One chat; `harm` happens after `at` pieces. No pause is as long as the step timeout: the ring mends itself."""
    clock = asyncio.get_running_loop().time
    request = ChatRequest((Message("user", "hello"),), sampling, TOKENS)
    text, stall, last, count = "", 0.0, clock(), 0
    async for piece in head.chat(request):
        text, count = text + piece.text, count + 1
        stall, last = max(stall, clock() - last), clock()
        if count == at:
            harm()
    assert stall < PATIENCE
    return Outcome(text, stall)


def stage_of(head: Head, name: str) -> StageStatus:
    node = next(node for node in head.view().nodes if node.name == name)
    return next(stage for stage in node.stages if stage.ring == head.view().serving.ring)


def layout(head: Head) -> dict[str, list[LayerRange]]:
    """Who runs which layers of the ring now."""
    plan = head.view().serving.plan
    assert plan is not None
    names = {node.id: node.name for node in head.view().nodes}
    found: dict[str, list[LayerRange]] = {}
    for stage in plan.stages:
        found.setdefault(names.get(stage.node, stage.node), []).append(stage.layers)
    return found


# --- R1, R2, R3, R4 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling", [pytest.param(GREEDY, id="greedy", marks=pytest.mark.full), pytest.param(DRAWN, id="drawn")]
)
async def test_a_killed_stage_costs_a_pause_and_no_text(
    cluster: tuple[Head, list[Node]], toy: Path, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("together.head.recovery.CAUSE_WITHIN", 10 * PATIENCE)  # its node's news end the wait for it
    head, _ = cluster
    await head.load(toy, by_hand("anna=0:3,berta=3:6"))
    others = [asyncio.create_task(ask(head, f"other {i}", 40, sampling)) for i in range(3)]
    for victim in ("berta", "anna"):
        pid = stage_of(head, next(iter(n for n in layout(head) if n == victim), "carla")).pid
        outcome = await disturbed(head, psutil.Process(pid).kill, sampling)
        assert outcome.text == right_answer(toy, tokens=TOKENS, sampling=sampling)
    texts = [right_answer(toy, f"other {i}", 40, sampling) for i in range(3)]
    assert await asyncio.gather(*others) == texts
    assert head.view().serving.state is ServingState.READY
    stages = [stage for node in head.view().nodes for stage in node.stages]
    assert sum(len(stage.layers) for stage in stages) == 6  # nothing of older plans is left


async def test_a_killed_stage_of_a_ring_that_cannot_go_back(cluster: tuple[Head, list[Node]], tmp_path: Path) -> None:
    """As of layers with a recurrent state: what the other stage has of the answer is no use, and it begins again."""
    toy = make_checksum_model(tmp_path / "model", layers=6, quiet_ids=ENDLESS, step_ms=2, rewind=0)
    head, _ = cluster
    await head.load(toy, by_hand("anna=0:3,berta=3:6"))
    outcome = await disturbed(head, psutil.Process(stage_of(head, "berta").pid).kill)
    assert outcome.text == right_answer(toy, tokens=TOKENS)


async def test_a_killed_node_is_replaced(tmp_path: Path, toy: Path) -> None:
    async with running_cluster(tmp_path, "anna", "berta", "carla") as (head, nodes):
        await head.load(toy, by_hand("anna=0:2,berta=2:6"))
        outcome = await disturbed(head, nodes[1].kill)
        assert outcome.text == right_answer(toy, tokens=TOKENS)
        assert "berta" not in layout(head)
        assert layout(head)["anna"][0] == LayerRange(0, 2)  # it was not loaded again


async def test_a_frozen_stage_is_noticed_and_replaced(cluster: tuple[Head, list[Node]], toy: Path) -> None:
    head, _ = cluster
    await head.load(toy, by_hand("anna=0:3,berta=3:6"))
    frozen = psutil.Process(stage_of(head, "berta").pid)
    outcome = await disturbed(head, frozen.suspend)
    assert outcome.text == right_answer(toy, tokens=TOKENS)
    await until(lambda: not frozen.is_running())  # its node ended it


@pytest.mark.full  # a frozen stage and a killed node are here
async def test_a_frozen_node_is_replaced_and_gives_back_its_layers_later(
    cluster: tuple[Head, list[Node]], toy: Path
) -> None:
    head, nodes = cluster
    await head.load(toy, by_hand("anna=0:3,berta=3:6"))
    stages = nodes[1].stages()

    def freeze() -> None:
        nodes[1].freeze()
        for stage in stages:
            stage.suspend()

    outcome = await disturbed(head, freeze)
    assert outcome.text == right_answer(toy, tokens=TOKENS)
    for stage in stages:
        stage.resume()
    nodes[1].thaw()
    await until(lambda: not any(stage.is_running() for stage in stages))
    await until(lambda: all(node.state is not NodeState.FAILED for node in head.view().nodes))


async def test_a_machine_that_stands_still_is_no_cut_link(
    cluster: tuple[Head, list[Node]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does whose memory is full: who cannot be asked says nothing of the way to others."""
    monkeypatch.setattr(machines, "LINK_WITHIN", 1.0)
    monkeypatch.setattr(machines, "ECHO_WITHIN", 0.5)
    head, nodes = cluster
    membership, ids = head.machines.membership, {node.name: node.id for node in head.view().nodes}
    ring = [ids[name] for name in NODES]
    assert await cut_pairs(ring, membership, head.machines.where) == {}
    nodes[1].freeze()
    assert await cut_pairs(ring, membership, head.machines.where) == {}
    nodes[1].thaw()


async def test_a_link_that_is_cut_between_machines_that_answer_is_found(
    cluster: tuple[Head, list[Node]],
) -> None:
    head, _ = cluster
    membership, ids = head.machines.membership, {node.name: node.id for node in head.view().nodes}
    berta = membership._members[ids["berta"]]
    nowhere = replace(berta.status.endpoint, port=berta.status.endpoint.port + 60)  # where anna looks for it
    berta.status = replace(berta.status, endpoint=nowhere)
    found = await cut_pairs([ids["anna"], ids["berta"]], membership, head.machines.where)
    assert found == {0: (ids["anna"], ids["berta"])}


# --- R5, R12 ----------------------------------------------------------------------------------------------------------


async def test_without_room_every_request_ends_and_the_model_comes_back_with_a_node(tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "toy", layers=6, quiet_ids=ENDLESS, step_ms=2, num_key_value_heads=2**12)
    async with running_cluster(tmp_path, "anna", "berta", memory="140MB") as (head, nodes):  # room for 3 of 6 layers
        await head.load(toy, by_hand("anna=0:3,berta=3:6"))
        asking = [asyncio.create_task(disturbed(head, lambda: None)) for _ in range(2)]
        await until(lambda: head.view().serving.running == 2)
        nodes[1].kill()
        for error in await asyncio.gather(*asking, return_exceptions=True):
            assert isinstance(error, RingBroken)
            assert "node berta" in str(error)
            assert "no other machine has room" in str(error)
        assert head.view().serving.state is ServingState.WAITING
        with pytest.raises(NotServing, match="comes back by itself"):
            await ask(head)
        back = start_node(head.settings, nodes[0].endpoint)
        try:
            back.wait_ready()
            await until(lambda: head.view().serving.state is ServingState.READY)
            assert await ask(head) == right_answer(toy)
        finally:
            await head.unload()
            back.stop()


async def test_where_no_other_has_room_an_answer_waits_for_a_machine_that_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It went without a word, as one does that has no memory left, and comes back."""
    for name in ("FREED_WITHIN", "BACK_WITHIN", "MEND_WITHIN"):
        monkeypatch.setattr(recovery, name, PATIENCE)
    toy = make_checksum_model(tmp_path / "toy", layers=6, quiet_ids=ENDLESS, step_ms=2, num_key_value_heads=2**12)
    async with running_cluster(tmp_path, "anna", "berta", memory="140MB") as (head, nodes):
        await head.load(toy, by_hand("anna=0:3,berta=3:6"))
        stages = nodes[1].stages()

        def freeze() -> None:
            nodes[1].freeze()
            for stage in stages:
                stage.suspend()

        asking = asyncio.create_task(disturbed(head, freeze))
        await until(lambda: any(node.state is NodeState.FAILED for node in head.view().nodes))
        for stage in stages:
            stage.resume()
        nodes[1].thaw()
        assert (await asking).text == right_answer(toy, tokens=TOKENS)


@pytest.mark.full  # test_lack_of_memory.py has one that the system kills for it
async def test_a_stage_that_runs_out_of_memory_gets_fewer_layers_and_no_text_is_lost(
    cluster: tuple[Head, list[Node]], tmp_path: Path
) -> None:
    head, _ = cluster
    weak = make_checksum_model(
        tmp_path / "weak",
        layers=6,
        quiet_ids=ENDLESS,
        fail_at_position=40,
        most_layers=2,
        num_key_value_heads=2**14,  # so that a layer weighs something: 134 MB of cache
    )
    await head.load(weak, by_hand("anna=0:3,berta=3:6"))
    assert await ask(head, tokens=TOKENS) == right_answer(weak, tokens=TOKENS)
    sizes = [len(layers) for held in layout(head).values() for layers in held]
    assert sum(sizes) == 6
    assert max(sizes) <= 2
    assert all(node.state is not NodeState.FAILED for node in head.view().nodes)
