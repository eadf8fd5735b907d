"""Stages that run out of memory, and stages that are killed from outside: only the first are given less after.

Real nodes, real kills: by hand, and by the kernel in memory cgroups where this system lets tests make them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.conftest import RealApp
from tests.head.test_recovery import TOKENS, disturbed, layout, stage_of
from tests.ring.stages import launches
from tests.support.cgroups import memory_cgroup, memory_root, run_out_of_memory, within
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
    start_node,
    until,
)
from tests.support.patience import PATIENCE
from together.cluster import survey
from together.cluster.loading import Placed, RingLoader
from together.cluster.supervisor import StageProcess
from together.cluster_types import StageState, StageStatus
from together.errors import BadPlan
from together.head import recovery
from together.head.head import Head
from together.head.recovery import Recovery
from together.types import Fault, LayerRange, Plan, StagePlan

ENDLESS = (*QUIET, EOS)
HEAVY = 2**12  # key-value heads: 3 of 6 layers take 134 MB


@pytest.fixture(autouse=True)
def long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a dead stage's memory comes back later than answers usually wait for it."""
    for name in ("FREED_WITHIN", "BACK_WITHIN", "MEND_WITHIN"):
        monkeypatch.setattr(recovery, name, PATIENCE)


@pytest.fixture
def cgroup() -> Iterator[Path]:
    if memory_root() is None:
        pytest.skip("no memory cgroup can be made here")
    with memory_cgroup(2**27) as folder:
        assert folder is not None
        yield folder


def heavy_toy(folder: Path, **config: int) -> Path:
    return make_checksum_model(folder, layers=6, quiet_ids=ENDLESS, step_ms=2, num_key_value_heads=HEAVY, **config)


# --- killed from outside ----------------------------------------------------------------------------------------------


async def test_a_stage_killed_by_hand_keeps_its_nodes_memory(tmp_path: Path, cgroup: Path) -> None:
    """Each node has room for its three layers and no more, so there is no other plan; and another program runs out."""
    toy = heavy_toy(tmp_path / "toy")
    async with running_cluster(tmp_path, "anna", "berta", memory="140MB") as (head, _):
        await head.load(toy, by_hand("anna=0:3,berta=3:6"))
        pid = stage_of(head, "berta").pid

        def kill() -> None:
            run_out_of_memory(cgroup)
            psutil.Process(pid).kill()

        outcome = await disturbed(head, kill)
        assert outcome.text == right_answer(toy, tokens=TOKENS)
        assert layout(head) == {"anna": [LayerRange(0, 3)], "berta": [LayerRange(3, 6)]}
        assert head.view().limits == ()


# --- killed by the system ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def crowded_cluster(home: Path, folder: Path, *names: str) -> AsyncIterator[tuple[Head, list[Node]]]:
    """As `running_cluster`, with all nodes and their stages in one cgroup."""
    settings = cluster_settings(home, memory="200MB")
    nodes = [start_node(replace(settings, name=name), within=within(folder)) for name in names]
    try:
        for node in nodes:
            node.wait_ready()
        async with running_head(settings, *nodes) as head:
            yield head, nodes
    finally:
        for node in nodes:
            node.stop()


async def test_a_stage_that_the_system_kills_for_memory_gets_fewer_layers_and_no_text_is_lost(tmp_path: Path) -> None:
    if memory_root() is None:
        pytest.skip("no memory cgroup can be made here")
    weak = heavy_toy(tmp_path / "weak", devour_at_position=40, most_layers=3)
    with memory_cgroup(1000 * 2**20) as folder:
        assert folder is not None
        async with crowded_cluster(tmp_path, folder, "anna", "berta") as (head, _):  # room for 4 layers each
            await head.load(weak, by_hand("anna=0:4,berta=4:6"))
            assert await ask(head, tokens=60) == right_answer(weak, tokens=60)
            assert max(len(layers) for held in layout(head).values() for layers in held) <= 3
            (limit,) = head.view().limits
            assert limit.name == "anna"
            assert "ended by SIGKILL: it ran out of memory, " in str(limit.text)


@pytest.mark.full  # test_recovery.py has the parts: a machine that stands still, and one that comes back
@pytest.mark.parametrize("seconds", [1.5, 5.0])
async def test_so_it_is_where_the_machines_stand_still_meanwhile(tmp_path: Path, seconds: float) -> None:
    """As they do before the system kills anything. After two seconds they count as lost."""
    if memory_root() is None:
        pytest.skip("no memory cgroup can be made here")
    weak = heavy_toy(tmp_path / "weak", devour_at_position=40, most_layers=3)
    with memory_cgroup(1000 * 2**20) as folder:
        assert folder is not None
        async with crowded_cluster(tmp_path, folder, "anna", "berta") as (head, nodes):
            await head.load(weak, by_hand("anna=0:4,berta=4:6"))

            def thaw() -> None:
                for node in nodes:
                    node.thaw()

            def freeze() -> None:
                for node in nodes:
                    node.freeze()
                asyncio.get_running_loop().call_later(seconds, thaw)

            outcome = await disturbed(head, freeze, at=20)
            assert outcome.text == right_answer(weak, tokens=TOKENS)
            assert [limit.name for limit in head.view().limits] == ["anna"]


async def test_an_answer_waits_for_memory_that_is_on_its_way_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system takes back what a dead process had while plans are made already: the first ones find no room."""
    toy = heavy_toy(tmp_path / "toy")
    new_plan = Recovery._new_plan
    looks: list[Recovery] = []

    async def late(mending: Recovery) -> Plan | None:
        looks.append(mending)
        return await new_plan(mending) if len(looks) > 2 else None

    async def none(*_: object) -> None:
        """No other stages beside those that live."""

    monkeypatch.setattr(Recovery, "_new_plan", late)
    monkeypatch.setattr(recovery, "repair", none)
    async with running_cluster(tmp_path, "anna", "berta") as (head, _):
        await head.load(toy, by_hand("anna=0:4,berta=4:6"))
        outcome = await disturbed(head, psutil.Process(stage_of(head, "berta").pid).kill)
        assert outcome.text == right_answer(toy, tokens=TOKENS)
    assert len(looks) > 2


async def test_a_lack_of_memory_that_is_told_late_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring broke elsewhere before the system killed the stage that lacks memory."""
    toy = heavy_toy(tmp_path / "toy")
    new_plan, stages = Recovery._new_plan, RingLoader.stages
    victims: list[psutil.Process] = []

    def told(loader: RingLoader, placed: Placed | None = None) -> list[StageStatus | None]:
        starved = [process.pid for process in victims]
        return [replace(s, fault=Fault.OUT_OF_MEMORY) if s and s.pid in starved else s for s in stages(loader, placed)]

    async def late(mending: Recovery) -> Plan | None:
        if not victims:
            victims.append(psutil.Process(stage_of(head, "anna").pid))
            victims[0].kill()
        return await new_plan(mending) if head.view().limits else None

    async def none(*_: object) -> None:
        """No other stages beside those that live."""

    monkeypatch.setattr(RingLoader, "stages", told)
    monkeypatch.setattr(Recovery, "_new_plan", late)
    monkeypatch.setattr(recovery, "repair", none)
    async with running_cluster(tmp_path, "anna", "berta") as (head, _):
        await head.load(toy, by_hand("anna=0:4,berta=4:6"))
        outcome = await disturbed(head, psutil.Process(stage_of(head, "berta").pid).kill)
        assert outcome.text == right_answer(toy, tokens=TOKENS)
        assert [limit.name for limit in head.view().limits] == ["anna"]


# --- what is believed -------------------------------------------------------------------------------------------------


async def learned(head: Head, name: str, size: int = 10**9) -> tuple[survey.MemoryShortages, float]:
    """What is believed after a stage of `size` bytes ran out of memory on that node, and what plans may use there."""
    node = next(node for node in head.view().nodes if node.name == name)
    held = head.machines.surveyor.shortages
    held.learn(StagePlan(node.id, "checksum", "cpu", LayerRange(0, 1), size), "ran out of memory (no details)")
    return held, held.usable(node.id, "checksum/cpu")


async def test_a_belief_ends_by_itself_with_a_new_start_of_its_node_or_by_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = cluster_settings(tmp_path)
    with running_nodes(settings, "anna", "berta") as nodes:
        async with running_head(settings, *nodes) as head:
            held, usable = await learned(head, "anna")
            await until(lambda: len(head.machines.membership.living()) == 2)
            assert usable == survey.LESS_MEMORY * 10**9
            (limit,) = head.view().limits
            assert (limit.name, limit.device, limit.memory_bytes) == ("anna", "checksum/cpu", 9 * 10**8)
            assert "a stage with 1.0 GB on checksum/cpu ran out of memory" in str(limit.text)
            assert "use at most 0.9 GB of it for another 10 minutes" in str(limit.text)
            assert str(limit.text).endswith("python3 launch.py forget anna")
            assert survey.SHORTAGE_LIFE - PATIENCE < limit.seconds <= survey.SHORTAGE_LIFE
            with pytest.raises(BadPlan, match="they use less of anna"):
                head.forget("berta")
            with pytest.raises(BadPlan, match="there is no node carla; there are: anna, berta"):
                head.forget("carla")
            head.forget("anna")
            assert head.view().limits == ()
            with pytest.raises(BadPlan, match="nothing to forget"):
                head.forget("anna")
            held, _ = await learned(head, "anna")
            monkeypatch.setattr(survey, "SHORTAGE_LIFE", 0.05)
            await until(lambda: not held.shown())
            monkeypatch.undo()
            await learned(head, "anna")
            nodes[0].stop()
            again = start_node(replace(settings, name="anna"))
            nodes.append(again)  # so that it is ended with the others
            again.wait_ready()
            await until(lambda: not head.view().limits)


async def test_less_and_less_is_believed_and_more_is_no_news(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, "anna") as (head, _):
        assert [(await learned(head, "anna", size))[1] for size in (1000, 500, 2000)] == [900, 450, 450]


def test_status_shows_what_is_believed_and_forget_ends_it(lent_app: RealApp, tmp_path: Path) -> None:
    weak = heavy_toy(tmp_path / "weak", fail_at_position=40, most_layers=3)
    lent_app.post("/control/load", {"model": str(weak), "layers": "0:4,4:6"}).raise_for_status()
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 60}
    assert lent_app.post("/v1/chat/completions", body).status_code == 200
    limits = lent_app.status()["limits"]
    assert limits
    said = lent_app.command("status").stdout
    for limit in limits:
        assert limit["text"] in said
        assert "the checksum toy has no memory for position 40" in limit["text"]
        done = lent_app.command("forget", limit["name"])
        assert done.returncode == 0, done.stderr
    assert lent_app.status()["limits"] == []
    again = lent_app.command("forget", limits[0]["name"])
    assert again.returncode == 1
    assert "nothing to forget" in again.stderr


# --- who says so ------------------------------------------------------------------------------------------------------


async def test_a_cause_that_speaks_of_memory_is_no_lack_of_memory(tmp_path: Path) -> None:
    """The kind of trouble travels beside the words."""
    toy = make_checksum_model(tmp_path / "ran out of memory")
    (launch,) = launches(toy, [LayerRange(0, 4)])
    (toy / "config.json").unlink()
    stage = StageProcess(launch, ("127.0.0.1",), lambda: None)
    try:
        await stage.start()
        await until(lambda: stage.status.state is StageState.FAILED)
        assert "ran out of memory" in stage.status.cause
        assert stage.status.fault is Fault.OTHER
    finally:
        await stage.stop()


def test_a_failed_allocation_of_torch_is_lack_of_memory_and_other_errors_are_not() -> None:
    torch = pytest.importorskip("torch")
    from together.ring.stage import explain, fault_of

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert fault_of("torch", caught.value) is Fault.OUT_OF_MEMORY
    assert explain(caught.value, Fault.OUT_OF_MEMORY).startswith("ran out of memory (")
    assert fault_of("torch", RuntimeError("out of memory, says somebody")) is Fault.OTHER
    assert fault_of("checksum", MemoryError()) is Fault.OUT_OF_MEMORY
    assert fault_of("no such backend", RuntimeError()) is Fault.OTHER
