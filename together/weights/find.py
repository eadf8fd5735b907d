"""Where this machine has a model or pieces of it, which model a typed name means, and what others may read of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from together.cluster_types import Blob, UnitDigest, UnitRequest
from together.errors import BadSetting, BrokenModel, TogetherError
from together.models.folder import read_bytes, snapshot, what_it_is
from together.models.manifest import CONFIG, Manifest, describe
from together.models.names import MANIFEST, is_model_name
from together.models.reading import CHUNK, read_unit, unit_digest, units_here
from together.models.spec import fingerprint, read_shape
from together.models.units import Unit, words
from together.processes import CHECKOUT
from together.ring import rpc, wire
from together.sentences import Sentence, template
from together.types import ModelRef
from together.weights.store import KnownModel, Store, known_model, local_name
from together.wording import MOST, cut, quoted

BUNDLED = CHECKOUT / "examples" / "demo_model"  # needed at run time, unlike the rest of examples/


@dataclass(frozen=True, slots=True)
class Found:
    """The folder that has most of a model here, and which of its units; `folder` is None where nothing is here."""

    folder: Path | None
    units: frozenset[str]
    manifest: Manifest | None = None  # of what was found


def not_here(model: ModelRef, home: Path, node_name: str) -> BrokenModel:
    """The error for a model that `find_units` did not find: with both fingerprints where another version is here."""
    other = _other_version(model, home)
    if other:
        return BrokenModel(
            "node {machine} has another version of {model}: {there} there, {here} at the head; copy the same files to "
            "both machines",
            machine=node_name,
            model=model.name,
            there=other[:12],
            here=model.fingerprint[:12],
        )
    return BrokenModel(
        "node {machine} does not have {model}; put its folder at {path}, or under models/ in the app's home folder "
        "there, or on a drive that both machines see",
        machine=node_name,
        model=model.name,
        path=model.path,
    )


def find_units(model: ModelRef, home: Path) -> Found:
    """The best folder here for this very model: a whole one if there is one, else the one with most units."""
    best = Found(None, frozenset())
    for folder in _candidates(model, home):
        try:
            manifest = describe(folder, local_name(folder, home))
        except TogetherError:
            continue  # another candidate may be whole; a broken one is nothing to run from
        if manifest.fingerprint != model.fingerprint:
            continue
        units = units_here(folder, manifest)
        if best.folder is None or len(units) > len(best.units):
            best = Found(folder, units, manifest)
        if len(units) == len(manifest.units):
            break
    return best


def known_models(home: Path) -> tuple[KnownModel, ...]:
    """All models of this machine, by name: bundled, in the models folder, in the app's cache, in the hub's cache."""
    own = [known_model(folder, home) for folder in (BUNDLED, *_own_folders(home / "models"))]
    hub = [known_model(folder, home) for folder in _hub_folders(hub_cache()) if _runs(folder)]
    whole = [model for model in hub if not model.fault]
    return tuple(sorted([*own, *Store(home).holdings(), *whole], key=lambda model: (model.name, str(model.folder))))


def hub_cache(environment: Mapping[str, str] | None = None) -> Path:
    """The folder where the hub's own tools keep what they download; see huggingface_hub's environment variables."""
    known = os.environ if environment is None else environment
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if known.get(name):
            return Path(known[name]).expanduser()
    cache = Path(known.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()
    return Path(known.get("HF_HOME") or cache / "huggingface").expanduser() / "hub"


def _candidates(model: ModelRef, home: Path) -> Iterator[Path]:
    """Folders that may have the model, whole ones first."""
    folders = [Path(model.path), BUNDLED]
    if is_model_name(model.name):
        folders += [home / "models" / model.name, *_snapshots(hub_cache(), model.name, model.revision)]
    folders.append(Store(home).folder(model.fingerprint))
    yield from (folder for folder in folders if (folder / CONFIG).is_file())


def _other_version(model: ModelRef, home: Path) -> str:
    """The fingerprint of a model with this name that is not this one; empty where there is none."""
    for folder in _candidates(model, home):
        if folder == BUNDLED and model.name != BUNDLED.name:
            continue  # every machine has that one, whatever is looked for
        try:
            return fingerprint(folder)
        except TogetherError:
            continue
    return ""


def _snapshots(cache: Path, name: str, revision: str) -> list[Path]:
    """The model's snapshots in the hub's cache: the asked revision first, then what `main` was."""
    root = cache / f"models--{name.replace('/', '--')}"
    main = root / "refs" / "main"
    try:
        current = main.read_text(errors="replace").strip() if main.is_file() else ""
        snapshots = list((root / "snapshots").iterdir())
    except OSError:
        return []
    return sorted(snapshots, key=lambda folder: (folder.name != revision, folder.name != current, folder.name))


def _hub_folders(cache: Path) -> Iterator[Path]:
    for root in sorted(cache.glob("models--*")):
        yield from (folder for folder in sorted(root.glob("snapshots/*")) if (folder / CONFIG).is_file())


def _own_folders(models: Path) -> Iterator[Path]:
    """`models/name` and `models/org/name`."""
    for config in sorted([*models.glob(f"*/{CONFIG}"), *models.glob(f"*/*/{CONFIG}")]):
        yield config.parent


def _runs(folder: Path) -> bool:
    """Whether its family runs here: the hub's cache is full of other things."""
    try:
        read_shape(folder)
    except TogetherError:
        return False
    return True


def resolve_model(text: str, home: Path) -> Path | str:
    """A folder that holds a model, a name that this machine knows, or an id of the hub, `org/name`, in this order.

    Only an id is a string. Of several models with one name the most complete one is taken. Raises BadSetting.
    """
    folder = _existing(text)
    if folder is not None and _is_model(folder):
        return folder
    known = _known(text, home)
    if known is not None:
        return known
    if folder is None and is_model_name(text) and text.count("/") == 1:
        return text
    raise BadSetting(_advice(text, folder, home))


def _existing(text: str) -> Path | None:
    """`text` as a path, if it is one; a folder of the hub's cache above a snapshot stands for the snapshot."""
    if not text:
        return None  # Path("") would be the current folder
    path = Path(text).expanduser()
    try:
        return snapshot(path) if path.exists() else None
    except (OSError, ValueError):  # a name too long for a path, or with a zero in it
        return None


def _is_model(folder: Path) -> bool:
    try:
        return any((folder / name).is_file() for name in (CONFIG, MANIFEST))
    except OSError:  # a folder that this user may not read
        return False


def _known(name: str, home: Path) -> Path | None:
    if not is_model_name(name):
        return None
    if name == BUNDLED.name:
        return BUNDLED
    own = home / "models" / name
    if _is_model(own):
        return own
    found = [model for model in known_models(home) if model.name == name and not model.fault]
    best = max(found, key=lambda model: (model.whole, len(model.units)), default=None)
    return best.folder if best else None


def _advice(text: str, folder: Path | None, home: Path) -> str | Sentence:
    if folder is not None:
        return what_it_is(folder) or template(
            "{folder} has neither {config} nor {manifest}; choose a folder that holds a model",
            folder=cut(text, MOST),
            config=CONFIG,
            manifest=MANIFEST,
        )
    names = tuple(sorted({model.name for model in known_models(home) if not model.fault}))
    return template(
        "there is no model {text} on this machine ({known}); name a folder, or a model of the hub as org/name",
        text=quoted(text),
        known=names or template("none is here"),
    )


# --- what others may read ---------------------------------------------------------------------------------------------


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
            message = "this machine does not have the model {model}; look for it again"
            raise BrokenModel(message, model=quoted(wanted[:12]))
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
        raise BrokenModel("{model} has no file {unit}; plan again", model=manifest.name, unit=quoted(request.unit))
    if request.unit not in units_here(served.folder, manifest):
        message = "this machine does not have {unit} of {model}; ask another"
        raise BrokenModel(message, unit=words([request.unit]), model=manifest.name)
    return manifest.units[request.unit]
