"""Where this machine has a model or pieces of it, and which model a typed name means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from together.errors import BadSetting, BrokenModel, TogetherError
from together.models.folder import snapshot, what_it_is
from together.models.form import PUBLISHED
from together.models.gguf.parts import title_of
from together.models.gguf.sources import imported_file
from together.models.manifest import CONFIG, Manifest, describe
from together.models.names import MANIFEST, hub_id, is_gguf, is_hub_name, is_model_name
from together.models.reading import units_here
from together.models.remarks import remarks
from together.models.spec import fingerprint, read_shape
from together.processes import CHECKOUT
from together.sentences import NOTHING, Sentence, template
from together.types import ModelRef
from together.weights.imports import gguf_in, imported, imports
from together.weights.offers import Offer, chosen, offer_at, offers, offers_named
from together.weights.places import hub_cache, hub_snapshots
from together.weights.short_names import only_file
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
        "node {machine} does not have {model}; put its folder {place}under models/ in the app's home folder there",
        machine=node_name,
        model=model.name,
        place=template("at {path}, or ", path=model.path) if model.path else NOTHING,
    )


def find_units(model: ModelRef, home: Path) -> Found:
    """The best folder here for this very model: a whole one if there is one, else the one with most units."""
    best = Found(None, frozenset())
    for folder in _candidates(model, home):
        try:
            manifest = describe(folder, local_name(folder, home))
        except TogetherError:
            continue  # another candidate may be whole; a broken one is nothing to run from
        if manifest.key != model.key:
            continue
        units = units_here(folder, manifest)
        if best.folder is None or len(units) > len(best.units):
            best = Found(folder, units, manifest)
        if len(units) == len(manifest.units):
            break
    return best


def plain_units(model: ModelRef, home: Path) -> Found:
    """What is here of the published model that a form of it is made from; nothing where `model` is that one itself."""
    return find_units(replace(model, form=PUBLISHED), home) if model.form else Found(None, frozenset())


def known_models(home: Path) -> tuple[KnownModel, ...]:
    """All models of this machine, by name: those of `read_models`, and those that are only offered so far."""
    offered = offers(home)
    programs = {(str(offer.weights), offer.title): offer.program for offer in offered}
    read = [replace(model, program=programs.pop((model.file, model.name), "")) for model in read_models(home)]
    rest = [_unread(offer) for offer in offered if (str(offer.weights), offer.title) in programs]
    return tuple(sorted([*read, *rest], key=lambda model: (model.name, str(model.folder))))


def read_models(home: Path) -> list[KnownModel]:
    """Those that are described here: bundled, in the models folder, GGUF files, in the app's and in the hub's cache."""
    with remarks():  # they are only listed
        own = [known_model(folder, home) for folder in (BUNDLED, *_own_folders(home / "models"), *imports(home))]
        hub = [known_model(folder, home) for folder in _hub_folders(hub_cache()) if _runs(folder)]
    return [*own, *Store(home).holdings(), *(model for model in hub if not model.fault)]


def _unread(offer: Offer) -> KnownModel:
    file = str(offer.weights) if offer.title else ""
    return KnownModel(offer.name, offer.path, whole=True, bytes=offer.bytes, file=file, program=offer.program)


def _candidates(model: ModelRef, home: Path) -> Iterator[Path]:
    """Folders that may have the model, whole ones first."""
    folders = [*map(Path, filter(None, (model.path,))), BUNDLED]  # Path("") would be the current folder
    if is_model_name(model.name):
        folders += [home / "models" / model.name, *hub_snapshots(hub_cache(), model.name, model.revision)]
    folders += [Store(home).folder(model.key), *imports(home)]
    yield from (folder for folder in folders if (folder / CONFIG).is_file())
    for offer in offers_named(model.name, offers(home)):
        with suppress(TogetherError):
            yield chosen(offer, home)


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
    """A folder that holds a model, a name that this machine knows, or a model's name on the hub, in this order.

    For a GGUF file, or a folder with one, it is the folder that stands for it here; see weights/imports.py. Names are
    also those that other programs give their models; see weights/offers.py.

    Only a name on the hub is a string; the address of the model's page there stands for it. Of several models with one
    name the most complete one is taken. Raises BadSetting, and what `imported` raises.
    """
    text = hub_id(text)
    folder = _existing(text)
    found = None if folder is None else _at(folder, home)
    found = found or _known(text, home) or _offered(text, home)
    if found is not None:
        return found
    if folder is None and is_hub_name(text):
        return text
    raise BadSetting(_advice(text, folder, home))


def _at(path: Path, home: Path) -> Path | None:
    """The folder of the model that lies at a path. Raises BadSetting, and what `imported` raises."""
    file = gguf_in(path)
    if path.is_file() and not is_gguf(path.name):
        offer = offer_at(path, offers(home))  # programs that keep files by their hashes know what they are called
        if offer is not None:
            return chosen(offer, home)
    if file is not None:
        return imported(file, home)
    return path if _is_model(path) else None


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
    here = [model for model in read_models(home) if not model.fault and not model.file]
    found = [model for model in here if model.name == name]
    if not found and is_hub_name(name) and (file := only_file(name, home)):
        found = [model for model in here if model.name == f"{name}/{file}"]
    best = max(found, key=lambda model: (model.form == PUBLISHED, model.whole, len(model.units)), default=None)
    return best.folder if best else None


def _offered(text: str, home: Path) -> Path | None:
    """The model that a program here calls so, or a file that was loaded before. Raises BadSetting for several."""
    found = offers(home)
    files = {str(offer.weights) for offer in found}
    loaded = [Path(file) for file in map(imported_file, imports(home)) if file not in files and Path(file).is_file()]
    more = [Offer("", file.name, file, file, 0, title_of(file.name)) for file in loaded]
    named = {offer.weights: offer for offer in offers_named(text, [*found, *more]) if _is_whole(offer, home)}
    if len(named) > 1:
        raise BadSetting(
            "{text} is the name of {count} models here; choose one of these: {places}",
            text=quoted(text),
            count=len(named),
            places=tuple(str(offer.path) for offer in named.values()),
        )
    return next((chosen(offer, home) for offer in named.values()), None)


def _is_whole(offer: Offer, home: Path) -> bool:
    """Whether it can be chosen by its name; a folder may be a download that goes on."""
    return bool(offer.title) or known_model(offer.weights, home).whole


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
        "there is no model {text} on this machine ({known}); name a folder, a GGUF file, or a model of the hub "
        "as org/name or org/name/file.gguf",
        text=quoted(text),
        known=names or template("none is here"),
    )
