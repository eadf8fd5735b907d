"""One link of a ring: an Outlet pushes a stream of frames, and an Inlet takes it.

Both are bounded: a full inlet stops reading, and HTTP/2 flow control then stops the sender.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import grpc.aio

from together.cluster_types import Endpoint
from together.errors import EpochRefused, FrameRefused, NotAllowed, RingBroken, TogetherError
from together.ring import rpc
from together.ring.doors import find_door
from together.trust.credentials import ALONE, Credentials
from together.types import HEAD, StreamKey
from together.wording import quoted

log = logging.getLogger(__name__)

ACCEPTED = (("accepted", "yes"),)  # a refused stream's initial metadata is empty
DEPTH = 8  # frames that wait at a receiver; at most stages + 1 are in flight


@dataclass(frozen=True, slots=True)
class Arrival:
    """A frame's bytes and when they came; `data` None is the end of the stream."""

    key: StreamKey
    data: bytes | None
    at: float  # event loop time, seconds


class Inlet:
    """The receiving end of a link. It takes frames of one (ring, epoch, sender) at a time."""

    def __init__(self, ring: str) -> None:
        self._expected = StreamKey(ring, -1, HEAD)
        self._taken = False
        self._ended = False
        self._arrivals: asyncio.Queue[Arrival] = asyncio.Queue(DEPTH)
        self._taker: asyncio.Task[object] | None = None
        self._who = ""

    @property
    def key(self) -> StreamKey:
        return self._expected

    def expect(self, epoch: int, sender: int, who: str = "") -> None:
        """Accept one stream, of `epoch` from `sender`; drop what older ones still send.

        `who` is the id that its certificate must have. An epoch is joined once; another attempt needs the next one.
        Raises EpochRefused.
        """
        if epoch <= self._expected.epoch:
            raise self._over(epoch)
        self._expected = StreamKey(self._expected.ring, epoch, sender)
        self._who = who
        self._taken = False
        self._ended = False
        self.close()

    def close(self) -> None:
        """Take no more from the open stream, whose sender may be gone."""
        taker, self._taker = self._taker, None
        if taker is not None:
            taker.cancel()

    async def next(self) -> Arrival:
        """The next arrival of the current epoch. The end of its stream comes once, after the last frame."""
        while not (self._ended and self._arrivals.empty()):
            arrival = await self._arrivals.get()
            if arrival.key == self._expected and arrival.data is not None:
                return arrival
        self._ended = False
        return Arrival(self._expected, None, asyncio.get_running_loop().time())

    def claim(self, key: StreamKey, peer: rpc.Peer) -> None:
        """Accept a stream. Raises FrameRefused with what was expected, NotAllowed for one of another machine."""
        if not peer.speaks_for(self._who):
            raise NotAllowed("this place in the ring takes frames of another machine")
        if key != self._expected:
            raise FrameRefused("this stage expects {expected}, not {key}", expected=str(self._expected), key=str(key))
        if self._taken:
            raise FrameRefused("the stream {key} is open already", key=str(key))
        self._taken = True
        self._ended = False

    async def take(self, key: StreamKey, stream: AsyncIterator[bytes]) -> None:
        """Queue a claimed stream's frames until the stream or its epoch ends."""
        clock = asyncio.get_running_loop().time
        taker = self._taker = asyncio.current_task()
        try:
            async for data in stream:
                await self._arrivals.put(Arrival(key, data, clock()))
                if key != self._expected:
                    raise self._over(key.epoch)
        except asyncio.CancelledError:
            if self._taker is taker or taker is None:
                raise
            taker.uncancel()  # it was `close`
            raise self._over(key.epoch) from None
        finally:
            if self._taker is taker:
                self._taker = None

    def _over(self, epoch: int) -> EpochRefused:
        now = self._expected.epoch
        return EpochRefused("epoch {epoch} is over: the ring is at epoch {now}", epoch=epoch, now=now)

    def release(self, key: StreamKey) -> None:
        """End a claimed stream, whether it was taken or not."""
        if key == self._expected:
            self._taken = False
            self._ended = True
            if self._arrivals.empty():  # wake the reader; queued frames are read first
                self._arrivals.put_nowait(Arrival(key, None, asyncio.get_running_loop().time()))


class Inlets:
    """The inlets behind one port: one of a stage, or one per ring of a head."""

    def __init__(self) -> None:
        self._by_ring: dict[str, Inlet] = {}

    def add(self, inlet: Inlet) -> None:
        self.remove(inlet.key.ring)
        self._by_ring[inlet.key.ring] = inlet

    def remove(self, ring: str) -> None:
        if (old := self._by_ring.pop(ring, None)) is not None:
            old.close()

    def handler(self) -> rpc.Handler:
        return grpc.stream_unary_rpc_method_handler(self._push)

    async def _push(self, stream: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        try:
            key = _key_of(context)
            inlet = self._by_ring.get(key.ring)
            if inlet is None:
                raise FrameRefused("ring {ring} is not here", ring=quoted(key.ring))
            inlet.claim(key, rpc.peer_of(context))
            try:
                await context.send_initial_metadata(ACCEPTED)  # a sender that leaves now cancels us here
                await inlet.take(key, stream)
            finally:
                inlet.release(key)
        except TogetherError as error:
            await context.abort(rpc.status_of(error), str(error))
        return b""


def _key_of(context: grpc.aio.ServicerContext[bytes, bytes]) -> StreamKey:
    sent = {str(key): str(value) for key, value in context.invocation_metadata() or ()}
    try:
        return StreamKey(sent["ring"], int(sent["epoch"]), int(sent["sender"]))
    except (KeyError, ValueError):
        raise FrameRefused("a stream must name its ring, epoch and sender") from None


class Outlet:
    """The sending end of a link."""

    def __init__(self, channel: grpc.aio.Channel, stream: grpc.aio.StreamUnaryCall[bytes, bytes], peer: str) -> None:
        self._channel = channel
        self._stream = stream
        self.peer = peer

    @classmethod
    async def open(
        cls, target: Endpoint, key: StreamKey, credentials: Credentials = ALONE, timeout: float = 10.0
    ) -> Outlet:
        """Connect to the fastest address and open the stream. Returns once the other side accepts it."""
        door = await find_door(target, credentials)
        peer = str(door)
        channel = door.open()
        metadata = (("ring", key.ring), ("epoch", str(key.epoch)), ("sender", str(key.sender)))
        push: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(rpc.PUSH)
        stream = push(metadata=metadata)
        outlet = cls(channel, stream, peer)
        try:
            async with asyncio.timeout(timeout):
                accepted = await stream.initial_metadata()
                if ACCEPTED[0] not in tuple(accepted or ()):
                    await stream  # raises with the refusal
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            await outlet.close()
            if isinstance(error, grpc.aio.AioRpcError):
                raise rpc.error_of(error, peer) from error
            raise RingBroken("{peer} does not accept the stream", peer=peer) from error
        return outlet

    async def send(self, data: bytes) -> None:
        """Push one frame; waits while the other side is full. Raises RingBroken."""
        try:
            await self._stream.write(data)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            reason = await self._reason(error)
            raise RingBroken("the link to {peer} is gone ({reason})", peer=self.peer, reason=reason) from error
        except asyncio.CancelledError:
            if rpc.is_cancelled():
                raise
            raise RingBroken("the link to {peer} was closed", peer=self.peer) from None

    async def ended(self) -> str:
        """Wait until the other side ends the stream, which it never should; return why."""
        try:
            await self._stream
        except grpc.aio.AioRpcError as error:
            return error.details() or error.code().name
        except asyncio.CancelledError:
            if not self._stream.cancelled():
                raise
        return "closed by the other side"

    async def close(self) -> None:
        self._stream.cancel()
        await self._channel.close()

    async def _reason(self, error: BaseException) -> str:
        if self._stream.done() and not self._stream.cancelled():
            return (await self._stream.details()) or (await self._stream.code()).name
        return str(error) or type(error).__name__
