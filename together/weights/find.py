"""Where this machine has a model, or pieces of it: the head's path (a shared folder), the bundled models, the user's
models folder, the hub's cache, and the app's own cache of pieces.

Knows no network: what is not here is not fetched.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from together.errors import BrokenModel, TogetherError
from together.models.manifest import CONFIG, Manifest, describe
from together.models.names import is_model_name
from together.models.reading import units_here
from together.models.spec import fingerprint, read_shape
from together.models.units import words
from together.types import ModelRef
from together.weights.store import KnownModel, Store, known_model

BUNDLED = Path(__file__).resolve().parents[2] / "examples" / "demo_model"


@dataclass(frozen=True, slots=True)
class Found:
    """The folder that has most of a model here, and which of its units; `folder` is None where nothing is here."""

    folder: Path | None
    units: frozenset[str]
    manifest: Manifest | None = None  # of what was found


def find_model(model: ModelRef, home: Path, node_name: str) -> Path:
    """The folder with exactly this model, and all of it.

    Raises BrokenModel, with both fingerprints where another version is here, or with the pieces that are here.
    """
    found = find_units(model, home)
    if found.folder is not None and found.manifest is not None:
        missing = found.manifest.units.keys() - found.units
        if not missing:
            return found.folder
        raise BrokenModel(
            f"node {node_name} has only {words(found.units)} of {model.name}, in {found.folder}; fetch the rest, or "
            "put the whole folder under models/ in the app's home folder there"
        )
    other = _other_version(model, home)
    if other:
        raise BrokenModel(
            f"node {node_name} has another version of {model.name}: {other[:12]} there, {model.fingerprint[:12]} at "
            "the head; copy the same files to both machines"
        )
    raise BrokenModel(
        f"node {node_name} does not have {model.name}; put its folder at {model.path}, or under models/ in the app's "
        "home folder there, or on a drive that both machines see"
    )


def find_units(model: ModelRef, home: Path) -> Found:
    """The best folder here for this very model: a whole one if there is one, else the one with most units."""
    best = Found(None, frozenset())
    for folder in _candidates(model, home):
        try:
            manifest = describe(folder)
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
    hub = [known_model(folder) for folder in _hub_folders(hub_cache()) if _runs(folder)]
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
    try:
        snapshots = sorted((root / "snapshots").iterdir())
        main = (
            (root / "refs" / "main").read_text(errors="replace").strip() if (root / "refs" / "main").is_file() else ""
        )
    except OSError:
        return []
    return sorted(snapshots, key=lambda folder: (folder.name != revision, folder.name != main))


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
