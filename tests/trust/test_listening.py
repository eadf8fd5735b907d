"""Row S2: who records what goes over the links of a ring learns nothing that the same links tell in the clear."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from backends.base import LoadRequest, open_backend
from tests.ring.stages import launches
from tests.support.checksum import expected_tokens, make_checksum_model
from tests.support.cluster import GREEDY, prompt_of, until
from tests.support.members import OPEN
from tests.support.proxy import proxy
from tests.support.suppliers import HOST, NOWHERE, all_units, check_whole, fetcher, lab_ref, quiet
from together.cluster.supervisor import StageProcess
from together.cluster_types import Endpoint, Source, StageState
from together.ring import rpc
from together.ring.client import join_ring
from together.ring.links import Inlets
from together.sentences import template
from together.trust.credentials import ALONE, Credentials
from together.types import Batch, Frame, LayerRange, Row, SampleRequest
from together.weights.room import CacheRoom
from together.weights.serve import StoreService
from together.weights.transfer import Suppliers

LAYERS, WIDTH = 4, 128
RANGES = (LayerRange(0, 2), LayerRange(2, LAYERS))
PROMPT = "a secret that nobody on this network may read"
TOKENS = 3
WINDOW, VARIED = 16, 8  # bytes that are looked for, of which so many differ: runs of zeros are in everything


async def test_who_records_a_ring_and_a_fetch_of_weights_reads_nothing(tmp_path: Path) -> None:
    home = tmp_path / "studio"
    toy = make_checksum_model(home / "models" / "lab" / "heavy", layers=LAYERS, width=WIDTH)
    ids, clear, sealed = prompt_of(toy, PROMPT), bytearray(), bytearray()
    for heard, who in ((clear, ALONE), (sealed, Credentials.of(home, "0123456789abcdef"))):
        assert await talk(toy, ids, who, heard) == expected_tokens(toy, ids, TOKENS, GREEDY)
        await fetch(home, toy, tmp_path / f"laptop {who.name}", who, heard)
    weights, states = (toy / "model.safetensors").read_bytes(), states_of(toy, ids)
    told = {
        "the prompt": bytes(ids[4:24]),  # ids below 128 are a byte each
        "a hidden state": states[len(states) // 2 :][:64],
        "a weight": weights[len(weights) // 2 :][:64],
        "the model": b"lab/heavy",
        "what is asked": rpc.PUSH.encode(),
    }
    assert [what for what, text in told.items() if text not in clear] == []
    assert [what for what, text in told.items() if text in sealed] == []
    assert not windows(clear) & windows(sealed)
    assert len(sealed) > len(clear) > len(weights)


async def talk(toy: Path, ids: tuple[int, ...], who: Credentials, heard: bytearray) -> list[int]:
    """An answer of two stages; the way to each of them, and back to the head, is recorded."""
    orders = launches(toy, RANGES, host=OPEN if who.name else HOST)
    head = who.name or "head"
    orders = [
        replace(each, order=replace(each.order, head=head), leaf=who.leaf if who.name else None) for each in orders
    ]
    async with AsyncExitStack() as stack:
        stages = [
            await stack.enter_async_context(started(StageProcess(each, (HOST,), lambda: None))) for each in orders
        ]
        inlets = Inlets()
        server = rpc.make_server({rpc.PUSH: inlets.handler()})
        port = rpc.bind(server, OPEN if who.name else HOST, range(31_500, 32_500), who)
        await server.start()
        stack.push_async_callback(server.stop, 0)
        ports = [stage.status.endpoint.port for stage in stages if stage.status.endpoint] + [port]
        links = [await stack.enter_async_context(proxy(each, heard=heard)) for each in ports]
        *places, own = (Endpoint((HOST,), link.port, who.name) for link in links)
        client = await join_ring(
            [replace(stage.status, endpoint=place) for stage, place in zip(stages, places, strict=True)],
            orders[0].order.model,
            epoch=0,
            own=own,
            inlets=inlets,
            context=256,
            hidden_size=WIDTH,
            dtype="fp32",
            describe=lambda index: template("stage {index}", index=index),
            nodes=[who.name] * len(stages),
            credentials=who,
        )
        stack.push_async_callback(client.close)
        tokens, fresh = list(ids), ids
        for step in range(1, TOKENS + 1):
            position = len(tokens) - len(fresh)
            row = Row(1, position, fresh, SampleRequest((len(fresh) - 1,), GREEDY, len(tokens)))
            await client.push(Frame(step, Batch((row,))))
            answer = await client.receive()
            assert answer.failure is None, answer.failure
            fresh = tuple(sampled.token_id for sampled in answer.results[0].sampled)
            tokens += fresh
        return tokens[len(ids) :]


@asynccontextmanager
async def started(stage: StageProcess) -> AsyncIterator[StageProcess]:
    await stage.start()
    try:
        await until(lambda: stage.status.state is not StageState.LOADING)
        assert stage.status.cause == ""
        yield stage
    finally:
        await stage.stop()


async def fetch(home: Path, toy: Path, to: Path, who: Credentials, heard: bytearray) -> None:
    """All layers, by another machine; the way is recorded."""
    server = rpc.make_server(StoreService(home, CacheRoom(home, None).convert).handlers())
    port = rpc.bind(server, OPEN if who.name else HOST, range(31_500, 32_500), who)
    await server.start()
    try:
        async with proxy(port, heard=heard) as link:
            suppliers = Suppliers(
                (Source(Endpoint((HOST,), link.port, who.name), all_units(toy)),), lambda: NOWHERE, who
            )
            layers = LayerRange(0, LAYERS)
            folder = await fetcher(to).fetch_from(suppliers, lab_ref(toy), layers, quiet, lambda whom: None)
            await asyncio.to_thread(check_whole, folder, toy, layers)
    finally:
        await server.stop(0)


def states_of(toy: Path, ids: tuple[int, ...]) -> bytes:
    """What the first stage sends on."""
    shard = open_backend("checksum").load(LoadRequest(toy, RANGES[0], "cpu", "fp32", 2**20, toy.parent))
    activation = shard.step(Batch((Row(1, 0, ids, None),)), None).activation
    assert activation is not None
    return bytes(activation.data)


def windows(data: bytearray) -> set[bytes]:
    """All pieces of a length, but those that say nothing."""
    found = (bytes(data[at : at + WINDOW]) for at in range(len(data) - WINDOW + 1))
    return {piece for piece in found if len(set(piece)) > VARIED}
