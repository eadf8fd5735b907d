"""Links over real sockets: who may send, what back-pressure does, what a receiver sees of an end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.support.patience import PATIENCE
from together.cluster_types import Endpoint
from together.errors import BadSetting, FrameRefused, RingBroken, Unreachable
from together.ring import rpc
from together.ring.doors import find_door
from together.ring.links import DEPTH, Inlet, Inlets, Outlet
from together.trust.credentials import Credentials
from together.types import StreamKey

PORTS = range(31_500, 32_500)
KEY = StreamKey("ring", 3, 0)


@asynccontextmanager
async def listening(inlet: Inlet, host: str = "127.0.0.1") -> AsyncIterator[Endpoint]:
    inlets = Inlets()
    inlets.add(inlet)
    server = rpc.make_server({rpc.PUSH: inlets.handler()})
    port = rpc.bind(server, host, PORTS)
    await server.start()
    try:
        yield Endpoint((host,), port)
    finally:
        await server.stop(0)


@pytest.fixture
def inlet() -> Inlet:
    inlet = Inlet(KEY.ring)
    inlet.expect(KEY.epoch, KEY.sender)
    return inlet


async def received(inlet: Inlet) -> bytes | None:
    async with asyncio.timeout(PATIENCE):
        return (await inlet.next()).data


async def test_frames_arrive_whole_and_in_order(inlet: Inlet) -> None:
    frames = [b"", b"a", bytes(5 * 2**20), b"last"]  # the third is beyond gRPC's own default limit
    async with listening(inlet) as there:
        outlet = await Outlet.open(there, KEY)
        for frame in frames:
            await outlet.send(frame)
        assert [await received(inlet) for _ in frames] == frames
        await outlet.close()


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (StreamKey("ring", 2, 0), "epoch=3.*not.*epoch=2"),
        (StreamKey("ring", 4, 0), "epoch=3.*not.*epoch=4"),
        (StreamKey("ring", 3, 1), "sender=0.*not.*sender=1"),
        (StreamKey("other", 3, 0), "ring 'other' is not here"),
    ],
)
async def test_a_stream_of_another_ring_epoch_or_sender_is_refused(inlet: Inlet, key: StreamKey, reason: str) -> None:
    async with listening(inlet) as there:
        with pytest.raises(FrameRefused, match=reason):
            await Outlet.open(there, key)
        outlet = await Outlet.open(there, KEY)  # the right one still may
        await outlet.close()


@pytest.mark.parametrize("metadata", [(), (("ring", "ring"), ("epoch", "x"), ("sender", "0"))])
async def test_a_stream_without_its_names_is_refused(inlet: Inlet, metadata: tuple[tuple[str, str], ...]) -> None:
    async with listening(inlet) as there, rpc.open_channel("127.0.0.1", there.port) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="must name its ring, epoch and sender"):
            await channel.stream_unary(rpc.PUSH)(metadata=metadata)


async def test_a_second_stream_is_refused_while_the_first_is_open(inlet: Inlet) -> None:
    async with listening(inlet) as there:
        first = await Outlet.open(there, KEY)
        with pytest.raises(FrameRefused, match="is open already"):
            await Outlet.open(there, KEY)
        await first.send(b"still here")
        assert await received(inlet) == b"still here"
        await first.close()


async def test_a_full_inlet_stalls_its_sender_and_holds_little(inlet: Inlet) -> None:
    frame = bytes(2**20)
    async with listening(inlet) as there:
        outlet = await Outlet.open(there, KEY)
        sent = 0
        while await _done_within(0.6, pushed := asyncio.create_task(outlet.send(frame))):
            sent += 1
        assert DEPTH <= sent < DEPTH + 128  # the queue, and what HTTP/2 keeps on the way: more on a busy machine
        for _ in range(sent + 1):
            assert await received(inlet) == frame
        await asyncio.wait_for(pushed, PATIENCE)  # taken up: the sender goes on
        await outlet.close()


async def test_the_end_of_a_stream_is_seen_once_after_its_frames(inlet: Inlet) -> None:
    async with listening(inlet) as there:
        outlet = await Outlet.open(there, KEY)
        await outlet.send(b"one")
        assert await received(inlet) == b"one"
        waiting = asyncio.create_task(inlet.next())
        await outlet.close()
        assert (await asyncio.wait_for(waiting, PATIENCE)).data is None
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(inlet.next(), 0.1)


async def test_an_end_that_nobody_waited_for_is_not_lost(inlet: Inlet) -> None:
    async with listening(inlet) as there:
        outlet = await Outlet.open(there, KEY)
        await outlet.close()
        assert await received(inlet) is None


class LeftAtOnce:
    """gRPC's side of a stream whose sender has gone while its acceptance was on the way: gRPC cancels the handler."""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("ring", KEY.ring), ("epoch", str(KEY.epoch)), ("sender", str(KEY.sender)))

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def send_initial_metadata(self, metadata: object) -> None:
        raise asyncio.CancelledError


async def test_a_sender_that_left_at_once_has_ended_its_stream(inlet: Inlet) -> None:
    inlets = Inlets()
    inlets.add(inlet)
    push: Any = inlets.handler().stream_unary
    with pytest.raises(asyncio.CancelledError):
        await push(iter(()), LeftAtOnce())
    assert await received(inlet) is None
    inlet.claim(KEY, rpc.HERE)  # another one may come


async def test_a_link_opens_again_after_a_break(inlet: Inlet) -> None:
    async with listening(inlet) as there:
        first = await Outlet.open(there, KEY)
        await first.send(b"of the old stream")
        await first.close()
        inlet.expect(KEY.epoch + 1, KEY.sender)
        second = await Outlet.open(there, StreamKey(KEY.ring, KEY.epoch + 1, KEY.sender))
        await second.send(b"of the new one")
        assert await received(inlet) == b"of the new one"
        with pytest.raises(FrameRefused, match="epoch 3 is over"):
            inlet.expect(KEY.epoch, KEY.sender)
        await second.close()


async def test_an_old_streams_sender_learns_that_its_epoch_is_over(inlet: Inlet) -> None:
    async with listening(inlet) as there:
        old = await Outlet.open(there, KEY)
        inlet.expect(KEY.epoch + 1, KEY.sender)
        await old.send(b"too late")
        assert "epoch 3 is over" in await asyncio.wait_for(old.ended(), PATIENCE)
        with pytest.raises(RingBroken, match="epoch 3 is over"):
            await old.send(b"again")
        await old.close()


async def test_an_old_stream_that_says_nothing_is_ended_with_its_epoch(inlet: Inlet) -> None:
    """As after a move: its sender's address is gone, and no end of the connection will ever come."""
    async with listening(inlet) as there:
        old = await Outlet.open(there, KEY)
        inlet.expect(KEY.epoch + 1, KEY.sender)
        async with asyncio.timeout(PATIENCE):
            assert await old.ended() == f"epoch {KEY.epoch} is over: the ring is at epoch {KEY.epoch + 1}"
        new = await Outlet.open(there, StreamKey(KEY.ring, KEY.epoch + 1, KEY.sender))
        await new.send(b"new")
        assert await received(inlet) == b"new"
        await old.close()
        await new.close()


async def test_sending_after_the_receiver_went_away_breaks(inlet: Inlet) -> None:
    async with listening(inlet) as there:
        outlet = await Outlet.open(there, KEY)
    with pytest.raises(RingBroken, match=r"the link to 127\.0\.0\.1:\d+ is gone"):
        await asyncio.wait_for(_send_for_ever(outlet), PATIENCE)
    await outlet.close()


async def test_closing_an_outlet_ends_a_stalled_send_with_an_error_of_ours(inlet: Inlet) -> None:
    async with listening(inlet) as there:
        outlet = await Outlet.open(there, KEY)
        stalled = asyncio.create_task(_send_for_ever(outlet, bytes(2**20)))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(stalled), 0.5)
        await outlet.close()
        with pytest.raises(RingBroken):
            await asyncio.wait_for(stalled, PATIENCE)


async def _done_within(seconds: float, task: asyncio.Task[None]) -> bool:
    done, _ = await asyncio.wait({task}, timeout=seconds)
    return bool(done)


async def _send_for_ever(outlet: Outlet, data: bytes = b"") -> None:
    while True:
        await outlet.send(data)


# --- addresses --------------------------------------------------------------------------------------------------------


async def test_the_address_that_answers_is_taken_among_dead_ones(inlet: Inlet) -> None:
    async with listening(inlet) as there:
        dead = ("127.77.0.1", "192.0.2.1")  # nobody listens there; the second is nobody's
        assert str(await find_door(Endpoint((*dead, "127.0.0.1"), there.port))) == f"127.0.0.1:{there.port}"
        outlet = await Outlet.open(Endpoint((*dead, "127.0.0.1"), there.port), KEY)
        await outlet.close()


@pytest.mark.parametrize("addresses", [("127.0.0.1",), ("no such name.invalid",), ()])
async def test_nobody_there_is_said_with_port_and_addresses(addresses: tuple[str, ...], tmp_path: Path) -> None:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(Unreachable, match=f"nothing answers at port {port} of"):
        await find_door(Endpoint(addresses, port), Credentials.of(tmp_path, "node"), timeout=1.0)


async def test_a_port_that_is_no_port_is_unreachable() -> None:
    with pytest.raises(Unreachable):
        await find_door(Endpoint(("127.0.0.1",), 70_000), timeout=1.0)


async def test_a_server_that_says_nothing_does_not_accept() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:  # the system takes the connection, nobody reads
        there = Endpoint(("127.0.0.1",), silent.getsockname()[1])
        with pytest.raises(RingBroken, match="does not accept the stream"):
            await Outlet.open(there, KEY, timeout=0.5)


def _has_ipv6() -> bool:
    try:
        with closing(socket.socket(socket.AF_INET6)) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback")
async def test_a_link_over_ipv6(inlet: Inlet) -> None:
    async with listening(inlet, "::1") as there:
        outlet = await Outlet.open(there, KEY)
        await outlet.send(b"six")
        assert await received(inlet) == b"six"
        await outlet.close()


async def test_no_free_port_is_said_with_the_range(inlet: Inlet) -> None:
    async with listening(inlet) as there:
        server = rpc.make_server({})
        with pytest.raises(BadSetting, match=f"no free port among {there.port}–{there.port} on"):
            rpc.bind(server, "127.0.0.1", range(there.port, there.port + 1))
