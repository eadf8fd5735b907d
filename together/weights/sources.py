"""The asking side of a store: connects to a machine that has units of a model and reads them. Knows no disk.

One connection serves one transfer: parallel transfers do not share a window, and a lost one breaks nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc.aio

from together.errors import BrokenModel, Unreachable
from together.models.manifest import Manifest, parse
from together.ring import rpc, wire
from together.types import Endpoint, ModelRef, UnitDigest, UnitRequest

ANSWER_WITHIN = 60.0  # seconds; a slow disk lists a large model
HASHED_WITHIN = 1800.0  # a source may have to hash a large unit first; keepalive notices one that is gone
SILENT = 30.0  # seconds without a byte: the connection is lost

Take = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Link:
    """An open connection to a source; `peer` is its address, for sentences."""

    channel: grpc.aio.Channel
    peer: str

    async def describe(self, model: ModelRef) -> Manifest:
        """What the source says the model is. Raises Unreachable, or BrokenModel for another model."""
        answer = await rpc.call(self.channel, rpc.DESCRIBE_CALL, model, self.peer, ANSWER_WITHIN)
        manifest = await asyncio.to_thread(parse, answer.data)
        if manifest.fingerprint != model.fingerprint:
            raise BrokenModel(
                f"{self.peer} gives the version {manifest.fingerprint[:12]} of {model.name}, not "
                f"{model.fingerprint[:12]}; start it again"
            )
        return manifest

    async def digest(self, request: UnitRequest) -> UnitDigest:
        """Size and sha256 of a file. Raises Unreachable, or BrokenModel where the source does not have it."""
        digest: UnitDigest = await rpc.call(self.channel, rpc.DIGEST_CALL, request, self.peer, HASHED_WITHIN)
        return digest

    async def read(self, request: UnitRequest, take: Take) -> None:
        """Give every chunk to `take`, in order; the source waits while `take` does. Raises as `digest` does."""
        stub: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self.channel.unary_stream(rpc.READ)
        stream = stub(wire.UNIT_REQUEST.encode(request))
        try:
            while (chunk := await self._next(stream)) is not None:
                await take(chunk)
        finally:
            stream.cancel()

    async def small(self, model: ModelRef, name: str, size: int) -> bytes:
        """A small file, whole, and never more than it should have. Raises as `digest` does."""
        found = bytearray()

        async def take(chunk: bytes) -> None:
            found.extend(chunk)
            if len(found) > size:
                raise BrokenModel(f"{self.peer} sends more of {name} than its {size} bytes; start it again")

        await self.read(UnitRequest(model.fingerprint, name), take)
        return bytes(found)

    async def _next(self, stream: grpc.aio.UnaryStreamCall[bytes, bytes]) -> bytes | None:
        try:
            async with asyncio.timeout(SILENT):
                data = await stream.read()
        except grpc.aio.AioRpcError as error:
            raise rpc.error_of(error, self.peer) from error
        except TimeoutError:
            raise Unreachable(f"{self.peer} sent nothing for {SILENT:.0f} s") from None
        except (grpc.aio.UsageError, asyncio.CancelledError) as error:
            if rpc.is_cancelled():
                raise
            raise Unreachable(f"the connection to {self.peer} is gone") from error
        return wire.BLOB.decode(data).data if isinstance(data, bytes) else None  # else it is the stream's end


@asynccontextmanager
async def connected(source: Endpoint) -> AsyncIterator[Link]:
    """A connection to the address that answers first. Raises Unreachable."""
    address = await rpc.fastest(source)
    async with rpc.open_channel(address, source.port) as channel:
        yield Link(channel, f"{address}:{source.port}")
