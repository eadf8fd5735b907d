"""Real nodes that lack layers: they answer at once, fetch, tell how far they are, and can be stopped at any time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from tests.support.checksum import expected_tokens
from tests.support.cluster import GREEDY, Node, call, cluster_settings, running_node, start_node, status_of, until
from tests.support.orders import loaded, make_order, stage_when
from tests.support.proxy import proxy
from tests.support.suppliers import (
    FIRST,
    HOST,
    LAST,
    LAYERS,
    MEGABYTE,
    SLACK,
    at,
    hashed,
    heavy_toy,
    lab_ref,
    rot,
    small_weight,
    source,
    studio,
    weight_of,
)
from together.cluster_types import Endpoint, Holding, Source, StageOrder, StageState, UnitRequest
from together.errors import TogetherError
from together.models.manifest import describe
from together.models.names import layer_unit
from together.ring import rpc
from together.ring.client import RingClient, join_ring
from together.ring.links import Inlets
from together.sentences import NOTHING
from together.settings import Settings
from together.types import Batch, Frame, LayerRange, Row, SampleRequest
from together.weights.store import Store


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return heavy_toy(tmp_path / "studio")


def order_for(toy: Path, layers: LayerRange, slot: int, sources: tuple[Source, ...] = ()) -> StageOrder:
    order = make_order(toy, memory=64 * MEGABYTE, ring="ring", slot=slot)
    stage = replace(order.stage, layers=layers)
    return replace(order, model=lab_ref(toy), stage=stage, sources=sources)


@contextmanager
def two_nodes(tmp_path: Path) -> Iterator[tuple[tuple[Node, Settings], tuple[Node, Settings]]]:
    """One that has the toy, and one with an empty home; started together."""
    first = cluster_settings(tmp_path / "studio", name="studio")
    second = replace(cluster_settings(tmp_path / "laptop", name="laptop"), cluster=first.cluster)
    nodes = [start_node(first), start_node(second)]
    try:
        for node in nodes:
            node.wait_ready()
        yield (nodes[0], first), (nodes[1], second)
    finally:
        for node in nodes:
            node.stop()


async def generate(client: RingClient, prompt: list[int], tokens: int) -> list[int]:
    steps, position, ids, drawn = count(1), 0, tuple(prompt), list[int]()
    while len(drawn) < tokens:
        row = Row(1, position, ids, SampleRequest((len(ids) - 1,), GREEDY, len(prompt)))
        await client.push(Frame(next(steps), Batch((row,))))
        answer = await client.receive()
        assert answer.failure is None, answer.failure
        drawn.append(answer.results[0].sampled[0].token_id)
        position, ids = position + len(ids), (drawn[-1],)
    return drawn


async def test_a_ring_with_a_node_that_had_no_weights_answers_right(tmp_path: Path, toy: Path) -> None:
    prompt = [256, *b"hello", 260]
    async with AsyncExitStack() as stack:
        (first, its_settings), (second, other_settings) = stack.enter_context(two_nodes(tmp_path))
        link = await stack.enter_async_context(proxy(first.port))
        sources = (source(at(link.port), toy), source(second.endpoint, toy))  # of itself, too, as a head may say
        orders = (order_for(toy, FIRST, 0), order_for(toy, LAST, 1, sources))
        answers = [await stack.enter_async_context(loaded(n, o)) for n, o in zip((first, second), orders, strict=True)]
        assert {answer.state for answer in answers} == {StageState.LOADING}
        stages = [
            await stage_when(first, its_settings, orders[0], StageState.READY, StageState.FAILED),
            await stage_when(second, other_settings, orders[1], StageState.READY, StageState.FAILED),
        ]
        assert [stage.cause for stage in stages] == ["", ""]
        needed = weight_of(toy, LAST)
        assert [(stage.fetched_bytes, stage.fetch_bytes) for stage in stages] == [(0, 0), (needed, needed)]
        assert needed <= link.back.sent < (needed + small_weight(toy)) * SLACK
        inlets = Inlets()
        server = rpc.make_server({rpc.PUSH: inlets.handler()})
        own = Endpoint((HOST,), server.add_insecure_port(f"{HOST}:0"))
        await server.start()
        stack.push_async_callback(server.stop, 0)
        client = await join_ring(
            stages,
            orders[0].model,
            epoch=0,
            own=own,
            inlets=inlets,
            context=512,
            hidden_size=8192,
            dtype="fp32",
            describe=lambda _: NOTHING,
        )
        stack.push_async_callback(client.close)
        assert await generate(client, prompt, 8) == expected_tokens(toy, prompt, 8, GREEDY)

        found = await call(second, rpc.FIND, lab_ref(toy))
        units = ("head.safetensors", *map(layer_unit, range(3, LAYERS)), "norm.safetensors")
        folder = Store(tmp_path / "laptop").folder(lab_ref(toy).fingerprint)
        assert found == Holding(str(folder), units)


async def test_a_node_that_is_killed_while_it_fetches_resumes_and_then_moves_no_bytes(
    tmp_path: Path, toy: Path
) -> None:
    settings = cluster_settings(tmp_path / "laptop", name="laptop")
    part = Store(tmp_path / "laptop").folder(lab_ref(toy).fingerprint) / "embed.safetensors.part"
    async with studio(tmp_path, bytes_per_s=20e6) as link:
        order = order_for(toy, FIRST, 0, (source(at(link.port), toy),))
        with running_node(settings) as node:
            await call(node, rpc.LOAD, order)
            await until(lambda: part.is_file() and part.stat().st_size > 3 * MEGABYTE)
            node.kill()
        await until(lambda: not link.connected)
        kept, before = part.stat().st_size, link.back.sent
        link.bytes_per_s = None
        with running_node(settings) as node:
            async with loaded(node, order):
                stage = await stage_when(node, settings, order, StageState.READY, StageState.FAILED)
                assert stage.cause == ""
                assert link.back.sent - before < (weight_of(toy, FIRST) - kept) * SLACK
        await until(lambda: not link.connected)
        before = link.back.sent
        with running_node(settings) as node:
            async with loaded(node, order):
                stage = await stage_when(node, settings, order, StageState.READY)
                assert (stage.fetch_bytes, link.back.sent) == (0, before)


async def test_unloading_while_fetching_frees_the_memory_and_keeps_the_part(tmp_path: Path, toy: Path) -> None:
    settings = cluster_settings(tmp_path / "laptop", name="laptop")
    part = Store(tmp_path / "laptop").folder(lab_ref(toy).fingerprint) / "embed.safetensors.part"
    async with studio(tmp_path, bytes_per_s=5e6) as link:
        order = order_for(toy, FIRST, 0, (source(at(link.port), toy),))
        with running_node(settings) as node:
            async with loaded(node, order):
                await until(lambda: part.is_file() and part.stat().st_size > MEGABYTE)
                status = await status_of(node, settings)
                assert status.free_bytes == (1000 - 64) * MEGABYTE
                assert 0 < status.stages[0].fetched_bytes < status.stages[0].fetch_bytes == weight_of(toy, FIRST)
                assert node.stages() == []
            status = await status_of(node, settings)
            assert (status.free_bytes, status.stages, node.stages()) == (1000 * MEGABYTE, (), [])
            assert part.is_file()
            link.bytes_per_s = None
            async with loaded(node, order):  # at once: nobody holds the part any more
                stage = await stage_when(node, settings, order, StageState.READY, StageState.FAILED)
                assert stage.cause == ""


@pytest.mark.full
async def test_a_fetch_ends_with_its_heads_lease(tmp_path: Path, toy: Path) -> None:
    settings = cluster_settings(tmp_path / "laptop", name="laptop", lease=1.0)
    async with studio(tmp_path, bytes_per_s=1e6) as link:
        with running_node(settings) as node:
            await call(node, rpc.LOAD, order_for(toy, FIRST, 0, (source(at(link.port), toy),)))
            async with asyncio.timeout(15):
                while (await status_of(node, settings)).stages:
                    pass
            assert (await status_of(node, settings)).free_bytes == 1000 * MEGABYTE


async def test_a_failed_fetch_shows_on_the_stage_with_its_cause(tmp_path: Path, toy: Path) -> None:
    await hashed(tmp_path / "studio", toy)
    rot(toy / "model.safetensors", describe(toy).units[layer_unit(4)].pieces[0].start)
    settings = cluster_settings(tmp_path / "laptop", name="laptop")
    async with studio(tmp_path) as link:
        with running_node(settings) as node:
            order = order_for(toy, LAST, 0, (source(at(link.port), toy),))
            async with loaded(node, order):
                stage = await stage_when(node, settings, order, StageState.FAILED)
                assert "node laptop lacks layers 4:5 of lab/heavy" in stage.cause
                assert "layer-00004.safetensors of lab/heavy is broken: its sha256 is" in stage.cause
            with pytest.raises(TogetherError, match="does not have layers 4:5"):
                await call(node, rpc.DIGEST, UnitRequest(lab_ref(toy).fingerprint, layer_unit(4)))
