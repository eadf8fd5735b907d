"""Rows R9 and R10: nodes of one name, nodes that come back elsewhere, and machines that do not belong together."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest

from tests.support.checksum import VOCABULARY, make_checksum_model
from tests.support.cluster import (
    ask,
    by_hand,
    call,
    cluster_settings,
    free_port_block,
    right_answer,
    running_cluster,
    running_head,
    running_node,
    running_nodes,
    start_node,
    status_of,
    until,
    watch,
)
from together.cluster_types import Caller, StageOrder, StageState
from together.errors import BrokenModel, TogetherError
from together.head.plan import open_model
from together.models.spec import read_spec
from together.ring import rpc, wire
from together.types import LayerRange, StagePlan

# --- R9 ---------------------------------------------------------------------------------------------------------------


async def test_two_nodes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "toy")
    settings = cluster_settings(tmp_path)
    with running_nodes(settings, "anna", "anna") as nodes:
        async with running_head(settings, *nodes) as head:
            first, second = head.view().nodes
            assert {first.name, second.name} == {f"anna-{first.id[:4]}", f"anna-{second.id[:4]}"}
            await head.load(toy, by_hand(f"anna-{second.id[:4]}=0:1,anna-{first.id[:4]}=1:4"))
            plan = head.view().serving.plan
            assert plan is not None
            assert [(s.node, len(s.layers)) for s in plan.stages] == [(second.id, 1), (first.id, 3)]
            assert await ask(head) == right_answer(toy)


async def test_a_node_that_comes_back_with_a_new_address_rejoins(tmp_path: Path) -> None:
    """Nobody tells the head where: it hears of it."""
    toy = make_checksum_model(tmp_path / "toy")
    settings = cluster_settings(tmp_path)
    with running_nodes(settings, "anna", "berta") as nodes:
        async with running_head(settings, *nodes) as head:
            before = await status_of(nodes[1], settings)
            nodes[1].kill()
            await until(lambda: not any(node.id == before.id for node in head.view().nodes if not node.cause))
            back = start_node(replace(settings, name="berta", node_port=free_port_block()))
            try:
                back.wait_ready()
                began = asyncio.get_running_loop().time()
                known = lambda: [n for n in head.view().nodes if n.id == before.id and not n.cause]  # noqa: E731
                await until(known)
                print(f"rejoined after {asyncio.get_running_loop().time() - began:.1f} s")
                assert known()[0].endpoint.port == back.port != before.endpoint.port
                assert len(head.view().nodes) == 2  # it is the same node, not another one
                await head.load(toy, by_hand("berta=0:2,anna=2:4"))
                assert await ask(head) == right_answer(toy)
                await head.unload()
            finally:
                back.stop()


async def test_a_pause_of_the_head_itself_loses_no_node(tmp_path: Path) -> None:
    """As of a laptop that slept: its nodes were silent only to it."""
    async with running_cluster(tmp_path, "anna", "berta") as (head, _):
        changes = head.changes()
        time.sleep(2.5 * head.settings.node_timeout)  # noqa: ASYNC251  # this is the pause
        causes = [node.cause for _ in range(8) for node in (await anext(changes)).nodes]
        assert causes == [""] * 16


# --- R10 --------------------------------------------------------------------------------------------------------------


async def test_another_protocol_version_is_refused_with_both(tmp_path: Path) -> None:
    settings = cluster_settings(tmp_path, name="anna")
    with running_node(settings) as node:
        stranger = Caller("head", settings.cluster, wire.PROTOCOL + 7)
        both = f"node anna speaks protocol {wire.PROTOCOL} and the head {wire.PROTOCOL + 7}"
        with pytest.raises(TogetherError, match=both):
            await call(node, rpc.RENEW, stranger)
        with pytest.raises(grpc.aio.AioRpcError, match=both):
            await anext(aiter(watch(node, stranger)))
        newer = replace(stranger, oldest=wire.PROTOCOL)  # it still speaks ours
        assert (await anext(aiter(watch(node, newer)))).name == "anna"


async def test_another_cluster_is_refused_with_both(tmp_path: Path) -> None:
    settings = cluster_settings(tmp_path, name="anna")
    both = f"node anna is in cluster {settings.cluster}, not elsewhere"
    with running_node(settings) as node, pytest.raises(TogetherError, match=both):
        await call(node, rpc.RENEW, Caller("head", "elsewhere", wire.PROTOCOL))


async def test_another_version_of_the_model_is_refused_with_both_hashes(tmp_path: Path) -> None:
    """The node has a model of that name whose weights are others; nobody else has the head's."""
    theirs = make_checksum_model(tmp_path / "models" / "toy", seed=1)
    asked = read_spec(make_checksum_model(tmp_path / "else" / "toy")).ref(tmp_path / "gone" / "toy")
    settings = cluster_settings(tmp_path, name="anna")
    order = StageOrder("ring", "head", 0, asked, StagePlan("", "checksum", "cpu", LayerRange(0, 4), 2**20), "fp32")
    with running_node(settings) as node:
        await call(node, rpc.LOAD, order)
        async for status in watch(node, Caller("head", settings.cluster, wire.PROTOCOL)):
            if status.stages[0].state is not StageState.LOADING:
                break
        assert status.stages[0].state is StageState.FAILED
        for fingerprint in (read_spec(theirs).fingerprint, asked.fingerprint):
            assert fingerprint[:12] in status.stages[0].cause
        assert "another version of toy" in status.stages[0].cause


async def test_another_models_tokenizer_is_refused_with_both_sizes(tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "toy")
    tokenizer = json.loads((toy / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"] |= {f"word{index}": 256 + index for index in range(100)}
    (toy / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(BrokenModel, match=f"toy has a tokenizer of 356 tokens and weights for {VOCABULARY}"):
        await open_model(str(toy), cluster_settings(tmp_path))
