"""What others may read of the models of this machine: their descriptions, hashes and bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from pydantic_core import to_json

from together.cluster_types import Blob, Holding, UnitDigest, UnitRequest
from together.errors import BrokenModel, TogetherError
from together.jsonfile import decode_json
from together.models.family import MAX_LAYERS
from together.models.folder import read_bytes
from together.models.form import PUBLISHED, is_form
from together.models.manifest import Manifest, describe
from together.models.names import is_model_name, is_sha256
from together.models.reading import CHUNK, read_unit, unit_digest, units_here
from together.models.spec import key_in
from together.models.units import Unit, words
from together.ring import rpc, wire
from together.types import ModelRef
from together.weights.find import find_units, plain_units, read_models
from together.weights.store import Store, begin_form, local_name
from together.wording import MOST, cut, quoted

Convert = Callable[[Path, str, Sequence[Unit]], Awaitable[None]]  # of the published units in a folder, for a key


MOST_LISTED = 1000


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model of another machine, or a part of one: what it is called, which bytes it has, how much of them."""

    name: str
    fingerprint: str
    form: str
    layers: int
    bytes: int
    whole: bool
    revision: str = ""

    @property
    def ref(self) -> ModelRef:
        return ModelRef(self.name, "", self.fingerprint, self.layers, self.revision, self.form)


def read_listed(data: bytes) -> tuple[ListedModel, ...]:
    """What another machine listed; what names no model is passed over. Raises BrokenModel for what is no list."""
    try:
        found = decode_json(data, tuple[ListedModel, ...])
    except ValueError as error:
        raise BrokenModel("that is no list of models: {reason}", reason=cut(str(error), MOST)) from None
    known = (each for each in found[:MOST_LISTED] if is_model_name(each.name) and is_sha256(each.fingerprint))
    return tuple(each for each in known if is_form(each.form) and 0 < each.layers <= MAX_LAYERS and each.bytes >= 0)


@dataclass(frozen=True, slots=True)
class _Served:
    """A folder that has a model, and what the model is."""

    folder: Path
    manifest: Manifest


class StoreService:
    """Serves Describe, Digest and Read for the models that are known on this machine and those that were offered.

    Threads read the disk, at most one chunk ahead of each reader. Converted units are made here when their hash is
    asked for, where the published ones are.
    """

    def __init__(self, home: Path, convert: Convert) -> None:
        """`convert` is `CacheRoom.convert`."""
        self._home = home
        self._convert = convert
        self._folders: dict[str, Path] = {}  # by key, where it was offered or found
        self._served: dict[str, _Served] = {}
        self._hashing: dict[tuple[str, str], asyncio.Lock] = {}  # one task hashes a unit
        self._converting = asyncio.Lock()  # a conversion uses all processors

    def handlers(self) -> dict[str, rpc.Handler]:
        return {
            rpc.READ: grpc.unary_stream_rpc_method_handler(self._read),
            **rpc.unary({rpc.DESCRIBE: self.describe, rpc.DIGEST: self.digest, rpc.LIST: self.listed}),
        }

    def offer(self, model: ModelRef, folder: Path) -> None:
        """Serve `model` from `folder`, which need not be one that models are looked for in.

        Of a form, `model.path` is where the published one may be.
        """
        self._folders[model.key] = folder
        if model.form != PUBLISHED and model.path:
            self._folders.setdefault(model.fingerprint, Path(model.path))

    def holds(self, model: ModelRef) -> Holding:
        """What can be fetched from here from now on: what is here, and what can be made of that."""
        found, plain = find_units(model, self._home), plain_units(model, self._home)
        if plain.folder is not None:
            self._folders[model.fingerprint] = plain.folder
        if found.folder is not None:
            self.offer(model, found.folder)
        folder = found.folder or plain.folder
        return Holding(str(folder), tuple(sorted(found.units | plain.units))) if folder else Holding()

    async def describe(self, model: ModelRef) -> Blob:
        """The model's manifest. Raises BrokenModel for a model that is not here."""
        served = await asyncio.to_thread(self._find, model.key)
        return Blob((await asyncio.to_thread(self._described, served.folder)).to_json())

    async def listed(self, _: Blob) -> Blob:
        """The models that are here, at least in part; no places, which are nobody else's business."""
        return Blob(await asyncio.to_thread(self._listed))

    def _listed(self) -> bytes:
        here = [model for model in read_models(self._home) if model.units and not model.fault]
        found = (
            ListedModel(each.name, each.fingerprint, each.form, each.layers, each.bytes, each.whole, each.revision)
            for each in here[:MOST_LISTED]
        )
        return to_json(tuple(found))

    async def digest(self, request: UnitRequest) -> UnitDigest:
        """Size and sha256 of a unit or small file. Raises BrokenModel for any other name, and for a broken unit."""
        served = await asyncio.to_thread(self._find, request.key)
        small = next((file for file in served.manifest.small if file.name == request.unit), None)
        if small is not None:
            return UnitDigest(small.size, small.sha256)
        async with self._hashing.setdefault((request.key, request.unit), asyncio.Lock()):
            await self._make(served, request)
            unit = await asyncio.to_thread(_unit, served, request)
            return UnitDigest(unit.size, await asyncio.to_thread(unit_digest, served.folder, unit, self._home))

    async def _make(self, served: _Served, request: UnitRequest) -> None:
        """Convert a unit that is asked for and not here yet, where that is possible. Raises BrokenModel, LoadFailed."""
        manifest = served.manifest
        unit = manifest.units.get(request.unit)
        if unit is None or manifest.form == PUBLISHED or unit.name in units_here(served.folder, manifest):
            return
        plain = await asyncio.to_thread(self._find, manifest.fingerprint)
        async with self._converting:
            await self._convert(plain.folder, manifest.key, [unit])

    async def _read(self, data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        try:
            request = wire.UNIT_REQUEST.decode(data)
            chunks = await asyncio.to_thread(self._chunks, request)
            while chunk := await asyncio.to_thread(next, chunks, b""):
                yield wire.BLOB.encode(Blob(chunk))
        except TogetherError as error:
            await context.abort(rpc.status_of(error), str(error))

    def _chunks(self, request: UnitRequest) -> Iterator[bytes]:
        served = self._find(request.key)
        if any(file.name == request.unit for file in served.manifest.small):
            data = read_bytes(served.folder, request.unit)[request.offset :]
            return (data[at : at + CHUNK] for at in range(0, len(data), CHUNK))
        return read_unit(served.folder, _unit(served, request), request.offset)

    def _find(self, wanted: str) -> _Served:
        """The folder that holds this model now: its files may have been replaced since the last call."""
        folder = self._folders.get(wanted)
        if folder is None or _key(folder) != wanted:
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
        here = [known for known in read_models(self._home) if not known.fault and known.key == wanted]
        fingerprint, _, form = wanted.partition(".")
        if not here and form:
            plain = self._find(fingerprint)
            return begin_form(plain.folder, plain.manifest, form, Store(self._home))
        if not here:
            message = "this machine does not have the model {model}; look for it again"
            raise BrokenModel(message, model=quoted(wanted[:12]))
        return max(here, key=lambda known: len(known.units)).folder


def _key(folder: Path) -> str:
    """The model in `folder` now; empty where there is none."""
    try:
        return key_in(folder)
    except TogetherError:
        return ""


def _unit(served: _Served, request: UnitRequest) -> Unit:
    """Raises BrokenModel for a name that is no unit of the model, and for a unit that is not here."""
    manifest = served.manifest
    if request.unit not in manifest.units:
        raise BrokenModel("{model} has no file {unit}; plan again", model=manifest.name, unit=quoted(request.unit))
    if request.unit not in units_here(served.folder, manifest):
        message = "this machine does not have {unit} of {model}; ask another"
        raise BrokenModel(message, unit=words([request.unit]), model=manifest.name)
    return manifest.units[request.unit]
