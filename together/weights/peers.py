"""The Store service between machines: a client for units of a model, and a server of this machine's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from together.cluster_types import Blob, Endpoint, UnitDigest, UnitRequest
from together.errors import BrokenModel, TogetherError, Unreachable
from together.models.folder import read_bytes
from together.models.manifest import Manifest, describe, parse
from together.models.reading import CHUNK, read_unit, unit_digest, units_here
from together.models.spec import fingerprint
from together.models.units import Unit, words
from together.ring import rpc, wire
from together.types import ModelRef
from together.weights.find import known_models
from together.weights.store import local_name
from together.wording import quoted

ANSWER_WITHIN = 60.0  # seconds; a slow disk lists a large model
HASHED_WITHIN = 1800.0  # a source may have to hash a large unit first; keepalive notices one that is gone
SILENT = 30.0  # seconds without a byte: the connection is lost

Take = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class PeerLink:
    """An open connection to a source; `peer` is its address, for sentences."""

    channel: grpc.aio.Channel
    peer: str

    async def describe(self, model: ModelRef) -> Manifest:
        """The source's manifest of the model. Raises Unreachable, or BrokenModel for another model."""
        answer = await rpc.call(self.channel, rpc.DESCRIBE, model, self.peer, ANSWER_WITHIN)
        manifest = await asyncio.to_thread(parse, answer.data)
        if manifest.fingerprint != model.fingerprint:
            raise BrokenModel(
                f"{self.peer} gives the version {manifest.fingerprint[:12]} of {model.name}, not "
                f"{model.fingerprint[:12]}; start it again"
            )
        return manifest

    async def digest(self, request: UnitRequest) -> UnitDigest:
        """Size and sha256 of a file. Raises Unreachable, or BrokenModel where the source does not have it."""
        digest: UnitDigest = await rpc.call(self.channel, rpc.DIGEST, request, self.peer, HASHED_WITHIN)
        return digest

    async def read(self, request: UnitRequest, take: Take) -> None:
        """Pass every chunk to `take`, in order; the source waits while `take` does. Raises as `digest` does."""
        stub: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self.channel.unary_stream(rpc.READ)
        stream = stub(wire.UNIT_REQUEST.encode(request))
        try:
            while (chunk := await self._next(stream)) is not None:
                await take(chunk)
        finally:
            stream.cancel()

    async def small(self, model: ModelRef, name: str, size: int) -> bytes:
        """A small file of at most `size` bytes. Raises as `digest` does."""
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
async def connected(source: Endpoint) -> AsyncIterator[PeerLink]:
    """A connection to the address that answers first. Raises Unreachable."""
    address = await rpc.fastest(source)
    async with rpc.open_channel(address, source.port) as channel:
        yield PeerLink(channel, f"{address}:{source.port}")


@dataclass(frozen=True, slots=True)
class _Served:
    """A folder that has a model, and what the model is."""

    folder: Path
    manifest: Manifest


class StoreService:
    """Serves Describe, Digest and Read for the models that are known on this machine and those that were offered.

    Threads read the disk, at most one chunk ahead of each reader.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._folders: dict[str, Path] = {}  # by fingerprint, where it was offered or found
        self._served: dict[str, _Served] = {}
        self._hashing: dict[tuple[str, str], asyncio.Lock] = {}  # one task hashes a unit

    def handlers(self) -> dict[str, rpc.Handler]:
        return {
            rpc.READ: grpc.unary_stream_rpc_method_handler(self._read),
            **rpc.unary({rpc.DESCRIBE: self.describe, rpc.DIGEST: self.digest}),
        }

    def offer(self, model: ModelRef, folder: Path) -> None:
        """Serve `model` from `folder`, which need not be one that models are looked for in."""
        self._folders[model.fingerprint] = folder

    async def describe(self, model: ModelRef) -> Blob:
        """The model's manifest. Raises BrokenModel for a model that is not here."""
        served = await asyncio.to_thread(self._find, model.fingerprint)
        return Blob((await asyncio.to_thread(self._described, served.folder)).to_json())

    async def digest(self, request: UnitRequest) -> UnitDigest:
        """Size and sha256 of a unit or small file. Raises BrokenModel for any other name, and for a broken unit."""
        served = await asyncio.to_thread(self._find, request.fingerprint)
        small = next((file for file in served.manifest.small if file.name == request.unit), None)
        if small is not None:
            return UnitDigest(small.size, small.sha256)
        unit = await asyncio.to_thread(_unit, served, request)
        async with self._hashing.setdefault((request.fingerprint, unit.name), asyncio.Lock()):
            return UnitDigest(unit.size, await asyncio.to_thread(unit_digest, served.folder, unit, self._home))

    async def _read(self, data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        try:
            request = wire.UNIT_REQUEST.decode(data)
            chunks = await asyncio.to_thread(self._chunks, request)
            while chunk := await asyncio.to_thread(next, chunks, b""):
                yield wire.BLOB.encode(Blob(chunk))
        except TogetherError as error:
            await context.abort(rpc.status_of(error), str(error))

    def _chunks(self, request: UnitRequest) -> Iterator[bytes]:
        served = self._find(request.fingerprint)
        if any(file.name == request.unit for file in served.manifest.small):
            data = read_bytes(served.folder, request.unit)[request.offset :]
            return (data[at : at + CHUNK] for at in range(0, len(data), CHUNK))
        return read_unit(served.folder, _unit(served, request), request.offset)

    def _find(self, wanted: str) -> _Served:
        """The folder that holds this model now: its files may have been replaced since the last call."""
        folder = self._folders.get(wanted)
        if folder is None or _fingerprint(folder) != wanted:
            folder = self._search(wanted)
            self._folders[wanted] = folder
        served = self._served.get(wanted)
        if served is None or served.folder != folder:
            served = _Served(folder, self._described(folder))
            self._served[wanted] = served
        return served

    def _described(self, folder: Path) -> Manifest:
        return describe(folder, local_name(folder, self._home))

    def _search(self, wanted: str) -> Path:
        here = [known for known in known_models(self._home) if wanted and known.fingerprint == wanted]
        if not here:
            raise BrokenModel(f"this machine does not have the model {quoted(wanted[:12])}; look for it again")
        return max(here, key=lambda known: len(known.units)).folder


def _fingerprint(folder: Path) -> str:
    """The model in `folder` now; empty where there is none."""
    try:
        return fingerprint(folder)
    except TogetherError:
        return ""


def _unit(served: _Served, request: UnitRequest) -> Unit:
    """Raises BrokenModel for a name that is no unit of the model, and for a unit that is not here."""
    manifest = served.manifest
    if request.unit not in manifest.units:
        raise BrokenModel(f"{manifest.name} has no file {quoted(request.unit)}; plan again")
    if request.unit not in units_here(served.folder, manifest):
        raise BrokenModel(f"this machine does not have {words([request.unit])} of {manifest.name}; ask another")
    return manifest.units[request.unit]
