"""Links timed between real nodes, through a network that is slow, late, silent or cut; and that network itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import grpc.aio
import pytest

from tests.support.cluster import Node, call, cluster_settings, running_nodes
from tests.support.patience import PATIENCE
from tests.support.proxy import Proxy, proxy
from together.cluster_types import Blob, Endpoint, LinkOrder, LinkSpeed
from together.errors import Unreachable
from together.ring import rpc

MBIT = 125_000  # bytes/s


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    with running_nodes(cluster_settings(tmp_path_factory.mktemp("home")), "one", "other") as both:
        yield both


async def reach(node: Node, port: int, size: int) -> LinkSpeed:
    found: LinkSpeed = await call(node, rpc.REACH, LinkOrder(Endpoint(("127.0.0.1",), port), size))
    return found


async def test_an_echo_takes_bytes_and_says_so(nodes: list[Node]) -> None:
    assert await call(nodes[0], rpc.ECHO, Blob(bytes(10**6))) is None


async def test_a_link_on_one_machine_has_all_its_figures(nodes: list[Node]) -> None:
    found = await reach(nodes[0], nodes[1].port, 4096)
    assert min(found.rtt_ms, found.hop_ms, found.bytes_per_s) > 0


async def test_a_link_of_a_megabit_is_measured_by_what_it_carries_in_three_seconds(nodes: list[Node]) -> None:
    async with proxy(nodes[1].port, bytes_per_s=MBIT) as link:
        found = await reach(nodes[0], link.port, 4096)
        assert link.there.sent < 3 * MBIT
        assert 0 < found.bytes_per_s < 1.5 * MBIT
        assert found.hop_ms / 1000 > 4096 / MBIT * 0.9


async def test_a_late_link_is_late_both_ways(nodes: list[Node]) -> None:
    async with proxy(nodes[1].port, delay_ms=60) as link:
        found = await reach(nodes[0], link.port, 4096)
        assert found.rtt_ms > 120
        assert found.hop_ms > 30  # no less than a quarter of the round trip, however it was disturbed


async def test_larger_states_are_reckoned_by_bandwidth(nodes: list[Node]) -> None:
    async with proxy(nodes[1].port, bytes_per_s=4 * MBIT) as link:
        found = await reach(nodes[0], link.port, 10**7)
        assert link.there.sent < 10**7 / 2  # such a message is not sent
        assert found.hop_ms / (1e3 * 10**7 / (4 * MBIT)) > 0.6


async def test_without_a_size_only_the_round_trip_is_timed(nodes: list[Node]) -> None:
    async with proxy(nodes[1].port) as link:
        found = await reach(nodes[0], link.port, 0)
        assert found.hop_ms == found.rtt_ms / 2
        assert link.there.sent < 20_000


async def test_what_does_not_answer_is_unreachable(nodes: list[Node]) -> None:
    async with proxy(nodes[1].port) as link:
        port = link.port
    with pytest.raises(Unreachable, match=f"nothing answers at port {port}"):
        await reach(nodes[0], port, 4096)


async def test_a_link_that_is_cut_meanwhile_is_unreachable(nodes: list[Node]) -> None:
    async with proxy(nodes[1].port, bytes_per_s=MBIT) as link:
        measuring = asyncio.create_task(reach(nodes[0], link.port, 4096))
        await poll(lambda: link.there.sent > 0)
        link.cut()
        with pytest.raises(Unreachable):
            await measuring


async def test_random_bytes_are_refused(nodes: list[Node]) -> None:
    async with rpc.open_channel("127.0.0.1", nodes[0].port) as channel:
        for method in (rpc.MEASURE, rpc.REACH, rpc.ECHO):
            with pytest.raises(Exception, match="not a valid"):
                await raw(channel, method.path)(b"\xff\xff\xff", timeout=PATIENCE)
    assert (await reach(nodes[0], nodes[1].port, 0)).rtt_ms > 0


def raw(channel: grpc.aio.Channel, method: str) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
    return channel.unary_unary(method)


# --- the proxy --------------------------------------------------------------------------------------------------------


async def repeat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says what it hears."""
    while data := await reader.read(2**16):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def link_to_repeat(bytes_per_s: float | None = None) -> AsyncIterator[Proxy]:
    server = await asyncio.start_server(repeat, "127.0.0.1", 0)
    async with server, proxy(server.sockets[0].getsockname()[1], bytes_per_s=bytes_per_s) as link:
        yield link


async def poll(true: Callable[[], bool], seconds: float = PATIENCE) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  # what is waited for is no event
            await asyncio.sleep(0.005)


async def test_the_proxy_carries_all_bytes_and_the_end() -> None:
    async with link_to_repeat() as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        sent = bytes(range(256)) * 4000
        writer.write(sent)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(-1), PATIENCE) == sent
        assert (link.there.sent, link.back.sent, link.accepted) == (len(sent), len(sent), 1)
        writer.close()


async def test_the_proxys_bandwidth_is_shared_by_its_connections() -> None:
    async with link_to_repeat(bytes_per_s=200_000) as link:
        began = time.monotonic()

        async def send() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
            writer.write(bytes(50_000))
            writer.write_eof()
            assert len(await reader.read(-1)) == 50_000
            writer.close()

        await asyncio.gather(send(), send())
        assert time.monotonic() - began >= 0.5


async def test_a_frozen_link_keeps_what_it_was_given() -> None:
    async with link_to_repeat() as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        link.freeze()
        writer.write(b"hello")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(5), 0.2)
        link.thaw()
        assert await asyncio.wait_for(reader.readexactly(5), PATIENCE) == b"hello"
        writer.close()


async def test_a_cut_link_resets_refuses_and_heals() -> None:
    async with link_to_repeat() as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writer.write(b"hello")
        assert await asyncio.wait_for(reader.readexactly(5), PATIENCE) == b"hello"
        link.cut()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), PATIENCE)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", link.port)
        link.heal()
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writer.write(b"again")
        assert await asyncio.wait_for(reader.readexactly(5), PATIENCE) == b"again"
        writer.close()
