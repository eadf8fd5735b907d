"""Every port that is open to the network, before members and strangers: who is let in, and what they may ask there."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from tests.support.members import STRANGERS, TLS_12, handshake, knocking, nameless
from tests.support.orders import make_order, renamed
from tests.support.patience import PATIENCE
from tests.trust.conftest import Open
from together.cluster.agent import MOST_OF_HEAD
from together.cluster_types import Blob, Caller, Endpoint, LinkOrder, RingName, StageLink, UnitRequest
from together.errors import FrameRefused, LoadFailed, Locked, NotAllowed, TogetherError, Unreachable
from together.ring import rpc, wire
from together.ring.doors import find_door
from together.ring.links import Outlet
from together.ring.stage import MOST_MISSED
from together.settings import Settings
from together.types import StreamKey

PORTS = ("node", "stage", "head")


pytestmark = pytest.mark.asyncio(loop_scope="module")


# --- strangers --------------------------------------------------------------------------------------------------------


def asked_by_anybody(settings: Settings, toy: Path) -> dict[str, tuple[str, bytes]]:
    """Every call that there is, as a stranger would make it."""
    order = make_order(toy)
    caller = Caller(order.head, settings.cluster, wire.PROTOCOL)
    link = StageLink("ring", 10**6, 0, Endpoint(("192.0.2.1",), 9, "ab"), order.model)
    methods: list[tuple[rpc.Unary, object]] = [
        (rpc.CONNECT, link),
        (rpc.LOAD, order),
        (rpc.UNLOAD, RingName(order.ring, order.head)),
        (rpc.RENEW, caller),
        (rpc.FIND, order.model),
        (rpc.MEET, Endpoint(("192.0.2.1",), 9)),
        (rpc.REACH, LinkOrder(Endpoint(("192.0.2.1",), 9), 0)),
        (rpc.ECHO, Blob(b"x")),
        (rpc.DESCRIBE, order.model),
        (rpc.DIGEST, UnitRequest(order.model.key, "norm.safetensors")),
    ]
    calls = {method.path: ("unary", method.request.encode(request)) for method, request in methods}
    streams = {rpc.WATCH: wire.CALLER.encode(caller), rpc.READ: wire.UNIT_REQUEST.encode(UnitRequest("a", "b"))}
    return calls | {path: ("stream", data) for path, data in streams.items()} | {rpc.PUSH: ("push", b"frame")}


async def _status(channel: grpc.aio.Channel, path: str, kind: str, data: bytes) -> grpc.StatusCode:
    asked: Any = {"unary": channel.unary_unary, "stream": channel.unary_stream, "push": channel.stream_unary}[kind]
    try:
        call = asked(path)(iter((data,)) if kind == "push" else data, timeout=PATIENCE)
        await (call.read() if kind == "stream" else call)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("kind", STRANGERS)
@pytest.mark.parametrize("door", PORTS)
async def test_no_stranger_gets_past_a_handshake(cluster: Open, door: str, kind: str) -> None:
    async with knocking(kind, cluster.doors[door], cluster.member, cluster.stranger) as channel:
        calls = asked_by_anybody(cluster.settings, cluster.toy)
        found = {path: await _status(channel, path, *call) for path, call in calls.items()}
    assert found == dict.fromkeys(found, grpc.StatusCode.UNAVAILABLE)
    await cluster.answers_as_before()


@pytest.mark.parametrize("door", PORTS)
async def test_only_tls_1_3_is_spoken(cluster: Open, door: str) -> None:
    with pytest.raises((ConnectionError, ssl.SSLError)):
        await handshake(cluster.doors[door], cluster.member, TLS_12)
    assert await handshake(cluster.doors[door], cluster.member, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"


@pytest.mark.parametrize("door", PORTS)
async def test_a_machine_with_another_code_hears_that_it_has_one(cluster: Open, door: str) -> None:
    with pytest.raises(Locked, match="has another join code"):
        await find_door(cluster.doors[door], cluster.stranger)


@pytest.mark.parametrize("door", PORTS)
async def test_one_member_is_not_taken_for_another(cluster: Open, door: str) -> None:
    there = replace(cluster.doors[door], id="0000000000000000")
    with pytest.raises(Unreachable, match="another member of the cluster answers"):
        await find_door(there, cluster.member)


async def test_nothing_is_said_where_nobody_could_be_told_apart(cluster: Open) -> None:
    """Off loopback there is no plain channel, whatever is asked for."""
    with pytest.raises(Unreachable, match="nobody said who"):
        rpc.open_channel("192.0.2.1", 9)
    with pytest.raises(Unreachable, match="speaks with its own machine alone"):
        await find_door(cluster.doors["node"])


async def test_connections_that_say_nothing_are_bounded_and_end(cluster: Open) -> None:
    door, many = cluster.doors["node"], 300
    opened = [await asyncio.open_connection(door.addresses[0], door.port) for _ in range(many)]

    async def ended(reader: asyncio.StreamReader) -> bool:
        try:
            return await reader.read() == b""
        except ConnectionError:
            return True

    async with asyncio.timeout(PATIENCE):
        assert all(await asyncio.gather(*(ended(reader) for reader, _ in opened)))
    for _, writer in opened:
        writer.transport.abort()
    await cluster.answers_as_before()


# --- members ----------------------------------------------------------------------------------------------------------


async def test_only_the_head_that_loaded_a_stage_gives_it_a_place(cluster: Open) -> None:
    order = replace(make_order(cluster.toy), ring=cluster.head.view().serving.ring)
    link = StageLink(order.ring, 10**6, 0, cluster.doors["node"], order.model)
    with pytest.raises(NotAllowed, match="loaded by another head"):
        await cluster.call("stage", rpc.CONNECT, link)
    own = cluster.head.machines.credentials
    with pytest.raises(FrameRefused, match="too far from"):
        await cluster.call("stage", rpc.CONNECT, link, own)
    await cluster.answers_as_before()


async def test_a_ring_mends_itself_whatever_epoch_a_stage_was_given(cluster: Open) -> None:
    """As by a program of the head's own machine, where that is on a plain port: all epochs that a stage takes."""
    (service,), own = cluster.head.services.all(), cluster.head.machines.credentials
    link = StageLink(service.loader.ring, 0, 0, cluster.doors["node"], make_order(cluster.toy).model)
    (before,) = cluster.head.view().nodes[0].stages
    for times in (1, 2, 3):
        with pytest.raises(TogetherError):  # the node is no stage, and the epoch has begun
            await cluster.call(
                "stage", rpc.CONNECT, replace(link, epoch=service.loader.epoch + times * MOST_MISSED), own
            )
    await cluster.answers_as_before()
    assert [stage.pid for stage in cluster.head.view().nodes[0].stages] != [before.pid]


@pytest.mark.parametrize("door", ["stage", "head"])
async def test_only_the_neighbour_in_the_ring_pushes(cluster: Open, door: str) -> None:
    ring = cluster.head.view().serving.ring
    for epoch in range(3):
        for sender in (-1, 0):
            with pytest.raises(TogetherError, match="of another machine"):
                await Outlet.open(cluster.doors[door], StreamKey(ring, epoch, sender), cluster.member)
    await cluster.answers_as_before()


@pytest.mark.parametrize("door", PORTS)
async def test_a_certificate_without_a_name_is_nobody_s(cluster: Open, door: str) -> None:
    """It would count as a program of the machine itself, which names paths and plain ports."""
    who = nameless(cluster.member)
    link = StageLink(cluster.head.view().serving.ring, 1, 0, cluster.doors["node"], make_order(cluster.toy).model)
    call = {"node": (rpc.FIND, link.model), "stage": (rpc.CONNECT, link), "head": (rpc.MEET, cluster.doors["node"])}
    with pytest.raises(NotAllowed, match="without a name"):
        await cluster.call(door, *call[door], who)
    await cluster.answers_as_before()


async def test_nobody_speaks_in_a_head_s_name(cluster: Open) -> None:
    ring, head = cluster.head.view().serving.ring, cluster.head.id
    caller = Caller(head, cluster.settings.cluster, wire.PROTOCOL)
    order = make_order(cluster.toy, head=head)
    asked: list[tuple[rpc.Unary, object]] = [
        (rpc.UNLOAD, RingName(ring, head)),
        (rpc.RENEW, caller),
        (rpc.LOAD, order),
        (rpc.LOAD, replace(order, ring=ring, slot=0)),
    ]
    for method, request in asked:
        with pytest.raises(NotAllowed, match="from that head alone"):
            await cluster.call("node", method, request)
    async with (await find_door(cluster.doors["node"], cluster.member)).open() as channel:
        watched = ("stream", wire.CALLER.encode(caller))
        assert await _status(channel, rpc.WATCH, *watched) is grpc.StatusCode.PERMISSION_DENIED
    await cluster.answers_as_before()


@pytest.mark.parametrize("door", ["node", "head"])
async def test_a_node_introduces_itself_alone(cluster: Open, door: str) -> None:
    for name in ("", "0000000000000000"):
        with pytest.raises(NotAllowed, match="introduces itself"):
            await cluster.call(door, rpc.MEET, Endpoint(("192.0.2.1",), 9, name))
    for port in range(100):  # who moves about is at one place, and fills no table
        await cluster.call(door, rpc.MEET, Endpoint(("192.0.2.1",), 9 + port, cluster.member.name))


async def test_stages_are_bounded_for_a_head_and_for_a_node(cluster: Open) -> None:
    """They wait for a model that nobody has, so no process starts."""
    lost = renamed(make_order(cluster.toy, memory=1, head=cluster.member.name), path="", fingerprint="f00d" * 16)
    orders = [replace(lost, ring="many", slot=slot) for slot in range(MOST_OF_HEAD + 1)]
    try:
        for order in orders[:-1]:
            await cluster.call("node", rpc.LOAD, order)
        with pytest.raises(LoadFailed, match=f"runs {MOST_OF_HEAD + 1} stages, {MOST_OF_HEAD} of them this head's"):
            await cluster.call("node", rpc.LOAD, orders[-1])
    finally:
        await cluster.call("node", rpc.UNLOAD, RingName("many", cluster.member.name))
    await cluster.answers_as_before()


async def test_large_messages_are_refused_before_they_are_read(cluster: Open) -> None:
    with pytest.raises(TogetherError, match="larger than max"):
        await cluster.call("node", rpc.ECHO, Blob(bytes(rpc.CONTROL_LIMIT)))
    order = make_order(cluster.toy, head=cluster.member.name)
    for request in (replace(order, ring="r" * 2**21), renamed(order, name="n" * 2**21)):
        with pytest.raises(FrameRefused, match="bytes is none"):
            await cluster.call("node", rpc.LOAD, request)
    with pytest.raises(FrameRefused, match="bytes is none"):
        await cluster.call("node", rpc.RENEW, Caller(cluster.member.name, "c" * 10**6, wire.PROTOCOL))


# --- what another machine may name: one that is nobody's stands for it ------------------------------------------------

ELSEWHERE = rpc.Peer("feedfeedfeedfeed", "192.0.2.77")


async def test_an_address_without_its_id_is_not_connected_to() -> None:
    ELSEWHERE.require_known(Endpoint(("192.0.2.1",), 9, "ab"))
    for addresses in (("192.0.2.1",), ("127.0.0.1",), ("localhost",)):
        with pytest.raises(NotAllowed, match="without the id of who is there"):
            ELSEWHERE.require_known(Endpoint(addresses, 9))
    rpc.HERE.require_known(Endpoint(("127.0.0.1",), 9))
    rpc.Peer("feedfeedfeedfeed", "127.0.0.1").require_known(Endpoint(("127.0.0.1",), 9))
