"""The models of this machine as a list: what each is, where it is from, how much of it is here, what may go."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from backends.base import BACKENDS
from together.errors import BadSetting, BrokenModel, TogetherError
from together.models.config import TOY
from together.models.form import asked_as, form_title
from together.models.gguf.sources import is_imported
from together.models.manifest import CONFIG, read_manifest
from together.types import LayerRange
from together.weights.find import BUNDLED, known_models
from together.weights.removal import delete_model, is_own
from together.weights.room import CacheRoom
from together.weights.serve import ListedModel
from together.weights.sketches import ModelSketch, sketch
from together.weights.store import KnownModel, Store

MOST_SKETCHES = 128


@dataclass(frozen=True, slots=True)
class LibraryModel:
    """A model of this machine, or a part of one. `load` is what orders call it; `place` is for who is here alone.

    `part` is how much of its bytes is here, 1 for a whole one. What is not known yet is 0 or empty.
    """

    id: str
    name: str
    form: str
    title: str  # of the form
    quantize: str  # what asks for the form
    key: str  # as ModelRef.key; empty where it was not read
    source: str  # bundled, models, cache, hub, nodes for another machine alone, or the program whose files they are
    place: str
    load: str
    bytes: int
    part: float
    held: str
    own: bool  # it may be deleted here
    loaded: str  # the name of its service
    family: str = ""
    context: int = 0
    bits: float = 0.0
    layers: int = 0
    backends: tuple[str, ...] = ()  # that run it
    fault: str = ""  # why it cannot be used
    unread: bool = False  # only its name and size are known
    nodes: tuple[str, ...] = ()  # other machines that have it, or a part of it


@dataclass(frozen=True, slots=True)
class FormUse:
    """What models of one form take of the disk."""

    title: str
    models: int
    bytes: int


@dataclass(frozen=True, slots=True)
class DiskUse:
    """The cache of models, and what may go of it: `spare` are ids of what can be made again and nobody has loaded."""

    folder: str
    bytes: int
    most: int
    forms: tuple[FormUse, ...]
    spare: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LibraryView:
    """All models of this machine, and what they take of its disk."""

    models: tuple[LibraryModel, ...]
    disk: DiskUse


@dataclass(slots=True)
class Shelf:
    """That of one home. Blocking: call it from a thread."""

    home: Path
    room: CacheRoom
    _sketches: OrderedDict[tuple[str, float, float], ModelSketch] = field(default_factory=OrderedDict)

    def view(self, loaded: dict[str, str]) -> LibraryView:
        """`loaded` are the names of services by the keys of their models."""
        known = known_models(self.home)
        models = tuple(self._model(model, loaded.get(model.key, "")) for model in known if not _only_planned(model))
        cache = [model for model in known if _is_cached(model, self.home)]
        count, size = Counter(model.form for model in cache), Counter[str]()
        for model in cache:
            size[model.form] += model.bytes
        forms = tuple(FormUse(form_title(form), count[form], size[form]) for form in sorted(count))
        spare = tuple(id_of(model) for model in self.room.spare())
        disk = DiskUse(str(self.room.folder), self.room.size, self.room.most, forms, spare)
        return LibraryView(models, disk)

    def _model(self, model: KnownModel, loaded: str) -> LibraryModel:
        try:
            seen = None if model.unread or model.fault else self.sketch(model.folder)
        except TogetherError:
            seen = None
        spec = None if seen is None else seen.specs.get(model.form)
        weights = None if spec is None else spec.stage_weights(LayerRange(0, spec.layers))
        bits = 8 * weights.nbytes(spec.dtype) / weights.elements if spec and weights and weights.elements else 0.0
        cached = _is_cached(model, self.home)
        return LibraryModel(
            id=id_of(model),
            name=model.name,
            form=model.form,
            title=form_title(model.form),
            quantize=asked_as(model.form),
            key=model.key if model.fingerprint else "",
            source=_source(model, self.home),
            place=model.where,
            load=model.name if cached else model.file or str(model.folder),
            bytes=model.bytes,
            part=_part(model, self.home),
            held=model.held if model.units else "",
            own=is_own(model.folder, self.home) and not model.unread,
            loaded=loaded,
            family=seen.family if seen else "",
            context=seen.context if seen else 0,
            bits=bits or (seen.bits if seen else 0.0),
            layers=model.layers,
            backends=_backends(seen),
            fault=model.fault or (str(seen.reason) if seen else ""),
            unread=model.unread,
        )

    def sketch(self, model: Path | str) -> ModelSketch:
        """Kept by its place and time; of the hub for as long as this head lives."""
        key = (str(model), *(_times(model) if isinstance(model, Path) else (0.0, 0.0)))
        found = self._sketches.get(key)
        if found is None:
            found = self._sketches[key] = sketch(model, self.home)
            if len(self._sketches) > MOST_SKETCHES:
                self._sketches.popitem(last=False)
        return found

    def delete(self, wanted: str, used: set[str]) -> None:
        """By its id; `used` are keys and folders of what is loaded. Raises BadSetting, UnitBusy."""
        found = next((model for model in known_models(self.home) if id_of(model) == wanted), None)
        if found is None:
            raise BadSetting("that model is not here any more; look at the list again")
        if not is_own(found.folder, self.home) or found.unread:
            raise BadSetting(
                "{name} is in {place}, which is not this app's own folder; delete it there yourself",
                name=found.name,
                place=found.where,
            )
        if found.key in used or str(found.folder.resolve()) in used or (found.key and self.room.in_use(found.key)):
            raise BadSetting("{name} is loaded; unload it first, then delete it", name=found.name)
        delete_model(found, self.home)


def with_nodes(
    models: tuple[LibraryModel, ...], nodes: Mapping[str, tuple[ListedModel, ...]]
) -> tuple[LibraryModel, ...]:
    """The same with which other machines have each, and those that they alone have; `nodes` by their names."""
    holders: dict[str, list[str]] = {}
    listed: dict[str, ListedModel] = {}
    for node, found in nodes.items():
        for each in found:
            holders.setdefault(each.ref.key, []).append(node)
            best = listed.get(each.ref.key)
            listed[each.ref.key] = each if best is None or each.bytes > best.bytes else best
    here = tuple(replace(model, nodes=tuple(holders.get(model.key, ()))) for model in models)
    known = {model.key for model in models}
    rest = (_elsewhere(each, tuple(holders[key])) for key, each in listed.items() if key not in known)
    return (*here, *sorted(rest, key=lambda model: (model.name, model.form)))


def _elsewhere(model: ListedModel, nodes: tuple[str, ...]) -> LibraryModel:
    return LibraryModel(
        id=hashlib.sha256(f"elsewhere {model.ref.key}".encode()).hexdigest()[:16],
        name=model.name,
        form=model.form,
        title=form_title(model.form),
        quantize=asked_as(model.form),
        key=model.ref.key,
        source="nodes",
        place="",
        load=model.name,
        bytes=model.bytes,
        part=1.0,
        held="",
        own=False,
        loaded="",
        layers=model.layers,
        nodes=nodes,
    )


def id_of(model: KnownModel) -> str:
    """Names it in orders, which then hold no path of this machine."""
    text = f"{model.folder} {model.file} {model.name} {model.form}"
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]


def _only_planned(model: KnownModel) -> bool:
    """Whether nothing of it is here but what a plan or a look at the hub needed."""
    nothing = not (model.units or model.fault or model.unread or model.whole)
    return nothing and not any(model.folder.glob("*.part"))


def _is_cached(model: KnownModel, home: Path) -> bool:
    return model.folder.parent == home / "shards"


def _source(model: KnownModel, home: Path) -> str:
    if model.program:
        return model.program
    if model.folder == BUNDLED:
        return "bundled"
    if _is_cached(model, home):
        return "cache"
    return "models" if home / "models" in model.folder.parents or is_imported(model.folder) else "hub"


def _part(model: KnownModel, home: Path) -> float:
    """How much of its bytes is here."""
    if model.whole or not _is_cached(model, home):
        return 1.0
    try:
        units = tuple(read_manifest(model.folder).units.values())
        lacks, _ = Store(home).lacking(model.key, units)
    except BrokenModel:
        return 0.0
    total = sum(unit.size for unit in units)
    return min(1 - lacks / total, 0.99) if total else 0.0


def _backends(seen: ModelSketch | None) -> tuple[str, ...]:
    if seen is None or not seen.specs:
        return ()
    return (TOY,) if seen.family == TOY else tuple(name for name in BACKENDS if name != TOY)


def _times(model: Path) -> tuple[float, float]:
    """When a folder's config.json, or a file, was written, and its bytes."""
    try:
        found = os.stat(model / CONFIG if model.is_dir() else model)
    except OSError:
        return (0.0, 0.0)
    return (found.st_mtime, float(found.st_size))
