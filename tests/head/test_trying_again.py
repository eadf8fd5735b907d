"""A load that only a busy moment broke is tried again by itself; `load` after a start means what was loaded last."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.head.test_recovery import layout
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.cluster import (
    Node,
    ask,
    by_hand,
    cluster_settings,
    right_answer,
    running_cluster,
    running_head,
    running_nodes,
    until,
)
from tests.support.patience import PATIENCE
from together.errors import BadInput, LoadFailed, NotEnoughMemory, NotServing, StageLost, Unreachable
from together.head import load as load_module
from together.head.head import Head
from together.types import LayerRange
from together.view import ServingState
from together.weights.find import BUNDLED

NODES = ("anna", "berta")
ENDLESS = (*QUIET, EOS)


@pytest.fixture(scope="module")
def unhurried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Takes long enough to load for something to happen meanwhile."""
    folder = tmp_path_factory.mktemp("toy") / "unhurried"
    return make_checksum_model(folder, layers=6, quiet_ids=ENDLESS, load_ms=1500)


@pytest.fixture(autouse=True)
def _short_breath(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "BREATH", 0.1)


def step(head: Head) -> str:
    return str(head.view().serving.step)


# --- tried again ------------------------------------------------------------------------------------------------------


async def test_a_node_that_is_frozen_while_it_loads_is_waited_for(
    cluster: tuple[Head, list[Node]], unhurried: Path
) -> None:
    head, nodes = cluster
    loading = asyncio.create_task(head.load(unhurried, by_hand("anna=0:3,berta=3:6")))
    await until(lambda: all(node.stages() for node in nodes))
    nodes[1].freeze()
    await until(lambda: loading.done() or "its machine has been out of reach" in step(head))
    assert "node berta: stage 1 (layers 3:6): its machine has been out of reach" in step(head)
    assert head.view().serving.state is ServingState.LOADING
    nodes[1].thaw()
    await loading
    assert layout(head) == {"anna": [LayerRange(0, 3)], "berta": [LayerRange(3, 6)]}
    assert await ask(head) == right_answer(unhurried)
    stages = [stage for node in head.view().nodes for stage in node.stages]
    assert sum(len(stage.layers) for stage in stages) == 6  # nothing of the first try is left


async def test_an_unload_gives_up_a_load_that_waits(cluster: tuple[Head, list[Node]], unhurried: Path) -> None:
    head, nodes = cluster
    loading = asyncio.create_task(head.load(unhurried, by_hand("anna=0:3,berta=3:6")))
    await until(lambda: all(node.stages() for node in nodes))
    nodes[1].freeze()
    await until(lambda: "its machine has been out of reach" in step(head))
    await head.unload()
    with pytest.raises(NotServing, match="loading unhurried was given up"):
        await loading
    assert head.view().serving.state is ServingState.EMPTY
    nodes[1].thaw()
    await head.load(unhurried, by_hand("anna=0:6"))
    assert await ask(head) == right_answer(unhurried)


async def test_a_stage_that_is_killed_while_it_loads_is_started_again(
    cluster: tuple[Head, list[Node]], unhurried: Path
) -> None:
    head, nodes = cluster
    loading = asyncio.create_task(head.load(unhurried, by_hand("anna=0:3,berta=3:6")))
    await until(lambda: all(node.stages() for node in nodes))
    nodes[0].stages()[0].kill()
    await loading
    assert await ask(head) == right_answer(unhurried)


async def test_a_stage_that_stands_still_while_it_loads_is_started_again(tmp_path: Path, unhurried: Path) -> None:
    async with running_cluster(tmp_path, "anna", load_timeout=6.0) as (head, nodes):
        loading = asyncio.create_task(head.load(unhurried))
        await until(lambda: nodes[0].stages())
        nodes[0].stages()[0].suspend()
        await until(lambda: loading.done() or "without progress" in step(head))
        assert step(head).startswith("trying again (2 of 4): node anna: stage 0")
        await loading
        assert await ask(head) == right_answer(unhurried)


async def test_a_local_node_that_ended_is_not_waited_for(tmp_path: Path, unhurried: Path) -> None:
    head = Head(cluster_settings(tmp_path), local_nodes=2)
    await head.start()
    try:
        psutil.Process(head.local._nodes[0].process.pid).kill()
        async with asyncio.timeout(40):
            await head.load(unhurried)
        assert [len(layers) for layers in layout(head).values()] == [1]
    finally:
        await head.stop()


async def test_a_node_that_does_not_come_back_is_done_without(
    tmp_path: Path, unhurried: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "BACK_WITHIN", 1.0)
    async with running_cluster(tmp_path, "anna", "berta") as (head, nodes):
        loading = asyncio.create_task(head.load(unhurried))
        await until(lambda: all(node.stages() for node in nodes))
        nodes[1].kill()
        await loading
        assert layout(head) == {"anna": [LayerRange(0, 6)]}


async def test_it_is_not_tried_for_ever(cluster: tuple[Head, list[Node]], unhurried: Path) -> None:
    head, nodes = cluster
    seen: set[int] = set()

    async def keep_killing() -> None:
        while True:
            for process in nodes[0].stages():
                with suppress(psutil.NoSuchProcess):
                    process.kill()
                    seen.add(process.pid)
            await asyncio.sleep(0.02)

    killing = asyncio.create_task(keep_killing())
    with pytest.raises(StageLost, match="killed from outside"):
        await head.load(unhurried, by_hand("anna=0:3,berta=3:6"))
    killing.cancel()
    assert len(seen) == load_module.MOST
    assert head.view().serving.state is ServingState.FAILED


async def test_what_no_waiting_mends_fails_at_once(cluster: tuple[Head, list[Node]], tmp_path: Path) -> None:
    head, _ = cluster
    steps: set[str] = set()

    async def follow() -> None:
        async for view in head.changes():
            steps.add(str(view.serving.step))

    following = asyncio.create_task(follow())
    with pytest.raises(NotEnoughMemory):
        await head.load(make_checksum_model(tmp_path / "huge", num_key_value_heads=2**20))
    with pytest.raises(LoadFailed, match="the checksum backend runs only its toy"):
        await head.load(BUNDLED)
    following.cancel()
    assert steps
    assert not any("trying again" in step for step in steps)


# --- the last one -----------------------------------------------------------------------------------------------------


async def test_load_after_a_start_is_what_was_loaded_last_and_not_the_demo(tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "toy", quiet_ids=ENDLESS)
    settings = cluster_settings(tmp_path / "home")
    with running_nodes(settings, "anna", "berta") as nodes:
        async with running_head(settings, *nodes) as head:
            await head.load(toy, by_hand("berta=0:3,anna=3:4"))
            before = layout(head)
        async with running_head(settings, *nodes) as again:
            await again.load()
            assert layout(again) == before
            assert await ask(again) == right_answer(toy)
            await again.load_demo()  # the app's first load, had it come later than the person's
            assert again.view().serving.model == "toy"
            assert await ask(again) == right_answer(toy)


async def test_load_again_is_what_failed_also_the_demo(cluster: tuple[Head, list[Node]]) -> None:
    """The button beside a failure is for what failed."""
    head, _ = cluster
    for load in (head.load_demo, head.load_again):
        with pytest.raises(LoadFailed):
            await load()
        assert head.view().serving.model == BUNDLED.name


async def test_load_again_is_also_a_model_whose_hub_was_out_of_reach(
    cluster: tuple[Head, list[Node]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another model must not come in its place; a plan of what serves stays one of what serves."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    head, _ = cluster
    toy = make_checksum_model(tmp_path / "toy", quiet_ids=ENDLESS)
    await head.load(toy, by_hand("anna=0:4"))
    for load in (lambda: head.load("acme/tiny"), head.load_again, head.load):
        with pytest.raises(Unreachable, match="acme/tiny"):
            await load()
    with pytest.raises(BadInput, match="nowhere"):  # a name that nothing has is no order to repeat
        await head.load(tmp_path / "nowhere")
    with pytest.raises(Unreachable, match="acme/tiny"):
        await head.load_again()
    assert await ask(head) == right_answer(toy)
    await head.drain("anna")
    assert layout(head) == {"berta": [LayerRange(0, 4)]}


async def test_others_have_their_moment_while_own_nodes_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that has listened for longer than that waits for none but its own nodes."""
    monkeypatch.setattr("together.head.machines.SETTLE", 10 * PATIENCE)
    clock = asyncio.get_running_loop().time
    head = Head(cluster_settings(tmp_path), local_nodes=1)
    await head.start()
    try:
        monkeypatch.setattr(head.machines, "_listening", clock() - 10 * PATIENCE)
        async with asyncio.timeout(PATIENCE):
            await head.machines.settle(1)
        assert len(head.view().nodes) == 1
    finally:
        await head.stop()
