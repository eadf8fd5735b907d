"""One real node, asked as a head would ask it: what it grants, to whom, and what it says about it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import grpc.aio
import psutil
import pytest

from tests.support.checksum import make_checksum_model
from tests.support.cluster import Node, call, status_of, watch
from tests.support.orders import free_bytes, loaded, make_order, node_when, renamed, stage_when
from tests.support.patience import PATIENCE
from together.cluster_types import Caller, Endpoint, Holding, NodeState, RingName, StageState
from together.errors import BadPlan, BadSetting, BrokenModel, NotEnoughMemory
from together.ring import rpc, wire
from together.settings import Settings

MEGABYTE = 10**6


@pytest.fixture
def node(pair: list[Node]) -> Node:
    return pair[0]


# --- memory -----------------------------------------------------------------------------------------------------------


async def test_two_loads_at_once_cannot_both_take_the_memory(node: Node, settings: Settings, toy: Path) -> None:
    assert await free_bytes(node, settings) == 1000 * MEGABYTE
    orders = [make_order(toy, 600 * MEGABYTE, head=f"head{i}") for i in range(2)]
    answers = await asyncio.gather(*(call(node, rpc.LOAD, order) for order in orders), return_exceptions=True)
    refusals = [answer for answer in answers if isinstance(answer, BaseException)]
    assert [type(refusal) for refusal in refusals] == [NotEnoughMemory]
    assert "node twin: needs 0.6 GB for layers 0:4, has 0.4 GB free" in str(refusals[0])
    for order in orders:
        await call(node, rpc.UNLOAD, RingName(order.ring, order.head))
    assert await free_bytes(node, settings) == 1000 * MEGABYTE


async def test_the_same_load_twice_at_once_starts_one_stage(node: Node, settings: Settings, toy: Path) -> None:
    order = make_order(toy, 600 * MEGABYTE)
    async with loaded(node, order):
        await asyncio.gather(*(call(node, rpc.LOAD, order) for _ in range(3)))
        stage = await stage_when(node, settings, order, StageState.READY)
        assert await call(node, rpc.LOAD, order) == stage
        assert await free_bytes(node, settings) == 400 * MEGABYTE
        assert [process.pid for process in node.stages()] == [stage.pid]
    assert await free_bytes(node, settings) == 1000 * MEGABYTE
    assert node.stages() == []


async def test_unloading_while_loading_gives_everything_back(node: Node, settings: Settings, toy: Path) -> None:
    order = make_order(toy, 600 * MEGABYTE)
    async with loaded(node, order):
        pass
    assert await free_bytes(node, settings) == 1000 * MEGABYTE
    assert node.stages() == []
    await call(node, rpc.UNLOAD, RingName(order.ring, order.head))  # again: nothing to do, no error


async def test_another_heads_ring_is_not_unloaded(node: Node, settings: Settings, toy: Path) -> None:
    order = make_order(toy)
    async with loaded(node, order):
        with pytest.raises(BadSetting, match="belongs to another head"):
            await call(node, rpc.UNLOAD, RingName(order.ring, "stranger"))
        await stage_when(node, settings, order, StageState.READY)


# --- refusals ---------------------------------------------------------------------------------------------------------


async def test_an_unknown_device_is_refused_with_what_there_is(node: Node, toy: Path) -> None:
    with pytest.raises(BadPlan, match="has no device checksum/cuda:3; it has checksum/cpu"):
        await call(node, rpc.LOAD, make_order(toy, device="cuda:3"))


async def test_another_version_of_the_model_fails_with_both_fingerprints(
    node: Node, settings: Settings, toy: Path
) -> None:
    order = make_order(toy)
    async with loaded(node, renamed(order, fingerprint="f00d" * 16)):
        stage = await stage_when(node, settings, order, StageState.FAILED)
        assert f"another version of model: {order.model.fingerprint[:12]} there, f00d" in stage.cause
    assert await free_bytes(node, settings) == 1000 * MEGABYTE


async def test_a_model_that_is_nowhere_fails_with_where_to_put_it(node: Node, settings: Settings, toy: Path) -> None:
    order = renamed(make_order(toy), path="/no/such/folder", name="nowhere", fingerprint="f00d" * 16)
    assert await call(node, rpc.FIND, order.model) == Holding()
    async with loaded(node, order) as answer:
        assert answer.state is StageState.LOADING
        stage = await stage_when(node, settings, order, StageState.FAILED)
        assert "does not have nowhere; put its folder at /no/such/folder" in stage.cause


async def test_a_model_in_the_users_models_folder_is_found(node: Node, settings: Settings, toy: Path) -> None:
    folder = make_checksum_model(settings.home_path / "models" / "lab" / "toy", seed=9)
    order = renamed(make_order(folder), path="/no/such/folder", name="lab/toy")
    found = await call(node, rpc.FIND, order.model)
    layers = [f"layer-{layer:05d}.safetensors" for layer in range(4)]
    assert found == Holding(str(folder), ("embed.safetensors", "head.safetensors", *layers, "norm.safetensors"))


@pytest.mark.parametrize("name", ["../../model", "..", "a/../b", "/etc", "a\x00b", "<img onerror=alert(1)>"])
async def test_names_that_leave_the_models_folder_find_nothing(node: Node, toy: Path, name: str) -> None:
    order = renamed(make_order(toy), path="", name=name, fingerprint="f00d" * 16)
    assert await call(node, rpc.FIND, order.model) == Holding()


@pytest.mark.parametrize("fingerprint", ["", "../../model", "f00", "F00D" * 16])
async def test_what_is_no_fingerprint_is_refused(node: Node, toy: Path, fingerprint: str) -> None:
    with pytest.raises(BrokenModel, match="is not a model's fingerprint"):
        await call(node, rpc.FIND, renamed(make_order(toy), path="", fingerprint=fingerprint).model)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (
            {"protocol": 7, "version": "0.9+abc"},
            rf"speaks protocol {wire.PROTOCOL} and the head 7 \(together 0.1.0\S* and 0.9\+abc\); the node is older: "
            "bring it up to date there with: python3 launch.py update",
        ),
        ({"protocol": wire.OLDEST - 1}, "the head is older"),
        ({"cluster": "other"}, "is in cluster test-.*, not other"),
    ],
)
async def test_other_protocols_and_clusters_are_refused_with_both_values(
    node: Node, settings: Settings, changed: dict[str, object], reason: str
) -> None:
    caller = replace(Caller("head", settings.cluster, wire.PROTOCOL), **changed)  # type: ignore[arg-type]
    with pytest.raises(BadSetting, match=reason):
        await call(node, rpc.RENEW, caller)
    with pytest.raises(Exception, match=reason):
        await anext(aiter(watch(node, caller)))


# --- what it says -----------------------------------------------------------------------------------------------------


async def test_watch_tells_at_once_on_change_and_each_heartbeat(node: Node, settings: Settings, toy: Path) -> None:
    stream = watch(node, Caller("head", settings.cluster, wire.PROTOCOL))
    first = await asyncio.wait_for(anext(stream), PATIENCE)
    assert first.state is NodeState.IDLE
    began = asyncio.get_running_loop().time()
    for _ in range(4):
        again = await asyncio.wait_for(anext(stream), PATIENCE)
        assert replace(again, strain=None) == replace(first, strain=None)  # how busy the machine is may change
    assert asyncio.get_running_loop().time() - began > 2 * settings.heartbeat  # the first may have been under way
    async with loaded(node, make_order(toy)):
        async with asyncio.timeout(PATIENCE):
            while not (await anext(stream)).stages:
                pass


async def test_states_from_idle_over_loading_to_ready_and_back(node: Node, settings: Settings, tmp_path: Path) -> None:
    order = make_order(make_checksum_model(tmp_path / "slow", load_ms=600))
    seen: list[tuple[NodeState, float]] = []
    caller = Caller("head", settings.cluster, wire.PROTOCOL)
    async with loaded(node, order), asyncio.timeout(PATIENCE):
        async for status in watch(node, caller):
            seen += [(status.state, stage.progress) for stage in status.stages if stage.ring == order.ring]
            if status.state is NodeState.READY:
                break
    states = [state for state, _ in seen]
    assert states == sorted(states, key=[NodeState.LOADING, NodeState.READY].index)
    shown = [progress for _, progress in seen]
    assert shown == sorted(shown)
    assert len({progress for progress in shown if 0 < progress < 1}) >= 3
    assert (await status_of(node, settings)).state is NodeState.IDLE


async def test_a_killed_stage_makes_the_node_failed_with_the_cause(node: Node, settings: Settings, toy: Path) -> None:
    order = make_order(toy)
    async with loaded(node, order):
        stage = await stage_when(node, settings, order, StageState.READY)
        psutil.Process(stage.pid).kill()
        status = await node_when(node, settings, order, StageState.FAILED)
        assert status.state is NodeState.FAILED
        assert "layers 0:4 of model: its process was ended by SIGKILL" in status.cause
    assert (await status_of(node, settings)).state is NodeState.IDLE


async def test_a_stage_that_runs_out_of_memory_leaves_the_node_alive(node: Node, settings: Settings, toy: Path) -> None:
    order = make_order(toy, memory=10_000)
    async with loaded(node, order):
        status = await node_when(node, settings, order, StageState.FAILED)
        assert "10000 were granted" in status.cause
    async with loaded(node, make_order(toy)):
        pass


async def test_twins_are_told_apart(pair: list[Node], settings: Settings) -> None:
    first, second = [await status_of(node, settings) for node in pair]
    assert first.name == second.name == "twin"
    assert first.id != second.id
    assert first.machine == second.machine
    blocks = [set(range(status.ports[0], status.ports[1] + 1)) for status in (first, second)]
    assert [len(block) for block in blocks] == [16, 16]
    assert not blocks[0] & blocks[1]


async def test_a_stage_listens_within_its_nodes_block(node: Node, settings: Settings, toy: Path) -> None:
    order = make_order(toy)
    async with loaded(node, order):
        status = await node_when(node, settings, order, StageState.READY)
        endpoint = status.stages[0].endpoint
        assert endpoint is not None
        assert status.ports[0] < endpoint.port <= status.ports[1]


async def test_introductions_are_shown_to_heads_and_bounded(node: Node, settings: Settings) -> None:
    for port in range(1, 65):
        await call(node, rpc.MEET, Endpoint(("127.0.0.1",), port))
    with pytest.raises(BadSetting, match="told of 64 nodes"):
        await call(node, rpc.MEET, Endpoint(("127.0.0.1",), 65))
    assert len((await status_of(node, settings)).peers) == 64


async def test_random_bytes_are_refused_by_every_method(node: Node, settings: Settings) -> None:
    async with rpc.open_channel("127.0.0.1", node.port) as channel:
        for method in (rpc.LOAD, rpc.UNLOAD, rpc.RENEW, rpc.FIND, rpc.MEET):
            with pytest.raises(Exception, match="not a valid"):
                await _raw(channel, method.path)(b"\xff\xff\xff", timeout=PATIENCE)
    assert node.process.poll() is None
    assert (await status_of(node, settings)).stages == ()


def _raw(channel: grpc.aio.Channel, method: str) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
    return channel.unary_unary(method)
