"""Where this machine has a model or pieces of it, and which model a typed name means."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from together.errors import BadSetting, BrokenModel, TogetherError
from together.models.folder import snapshot, what_it_is
from together.models.manifest import CONFIG, Manifest, describe
from together.models.names import MANIFEST, is_model_name
from together.models.reading import units_here
from together.models.spec import fingerprint, read_shape
from together.processes import CHECKOUT
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
            f"node {node_name} has another version of {model.name}: {other[:12]} there, {model.fingerprint[:12]} at "
            "the head; copy the same files to both machines"
        )
    return BrokenModel(
        f"node {node_name} does not have {model.name}; put its folder at {model.path}, or under models/ in the app's "
        "home folder there, or on a drive that both machines see"
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


def _advice(text: str, folder: Path | None, home: Path) -> str:
    if folder is not None:
        neither = f"{cut(text, MOST)} has neither {CONFIG} nor {MANIFEST}; choose a folder that holds a model"
        return what_it_is(folder) or neither
    names = sorted({model.name for model in known_models(home) if not model.fault})
    return (
        f"there is no model {quoted(text)} on this machine ({', '.join(names) or 'none is here'}); "
        "name a folder, or a model of the hub as org/name"
    )
