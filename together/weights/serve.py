"""Gives away pieces of the models that this machine has: what a model is, hashes of its units, their bytes.

Knows no node and no ring: whoever has a gRPC server and a home folder can serve. Only files of a model's manifest leave
this machine: its units, and the small files beside them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from together.errors import BrokenModel, TogetherError
from together.models.folder import read_bytes
from together.models.manifest import Manifest, describe
from together.models.reading import read_unit, unit_digest, units_here
from together.models.spec import fingerprint
from together.models.units import Unit, words
from together.quoting import quoted
from together.ring import rpc, wire
from together.types import Blob, ModelRef, UnitDigest, UnitRequest
from together.weights.find import known_models

CHUNK = 2**20  # bytes of one message


@dataclass(frozen=True, slots=True)
class _Served:
    """A folder that has a model, and what the model is."""

    folder: Path
    manifest: Manifest


class StoreService:
    """Serves Describe, Digest and Read over the models that are known on this machine and those that were offered.

    The disk is read in threads, one chunk ahead of the slowest reader at most: a stream is written to only when gRPC
    takes more.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._folders: dict[str, Path] = {}  # fingerprint → where it was offered or found
        self._served: dict[str, _Served] = {}
        self._hashing: dict[tuple[str, str], asyncio.Lock] = {}  # a unit that many ask for is hashed once

    def handlers(self) -> dict[str, rpc.Handler]:
        return {
            rpc.DESCRIBE: rpc.unary_handler(rpc.DESCRIBE_CALL, self.describe),
            rpc.DIGEST: rpc.unary_handler(rpc.DIGEST_CALL, self.digest),
            rpc.READ: grpc.unary_stream_rpc_method_handler(self._read),
        }

    def offer(self, model: ModelRef, folder: Path) -> None:
        """Serve `model` from `folder`, which is none of those that models are looked for in."""
        self._folders[model.fingerprint] = folder

    async def describe(self, model: ModelRef) -> Blob:
        """The model's manifest. Raises BrokenModel for a model that is not here."""
        served = await asyncio.to_thread(self._find, model.fingerprint)
        manifest = await asyncio.to_thread(describe, served.folder)
        return Blob(manifest.to_json())

    async def digest(self, request: UnitRequest) -> UnitDigest:
        """What a unit or small file must be. Raises BrokenModel for any other name, and for a broken unit."""
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
        """The folder of this model, which must still hold it: its files may have been replaced since the last call."""
        folder = self._folders.get(wanted)
        if folder is None or _fingerprint(folder) != wanted:
            folder = self._search(wanted)
            self._folders[wanted] = folder
        served = self._served.get(wanted)
        if served is None or served.folder != folder:
            served = _Served(folder, describe(folder))
            self._served[wanted] = served
        return served

    def _search(self, wanted: str) -> Path:
        here = [known for known in known_models(self._home) if wanted and known.fingerprint == wanted]
        if not here:
            raise BrokenModel(f"this machine does not have the model {quoted(wanted[:12])}; look for it again")
        return max(here, key=lambda known: len(known.units)).folder


def _fingerprint(folder: Path) -> str:
    """The model in `folder` now; empty where there is none any more."""
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
