"""Deletes models from the app's own folders, and from no others."""

from __future__ import annotations

import shutil
from pathlib import Path

from together.weights.store import KnownModel, Store


def is_own(folder: Path, home: Path) -> bool:
    """Whether it is a model in the app's cache, what a GGUF file was imported as, or a real folder under `models`."""
    if folder.is_symlink():
        return False
    root, place = home.resolve(), folder.resolve()
    imports = place.parent.parent == root / "imports"
    return place.parent == root / "shards" or imports or root / "models" in place.parents


def delete_model(model: KnownModel, home: Path) -> None:
    """Of a GGUF file what was read of it; the file stays. Raises UnitBusy while it is being written."""
    if model.folder.parent.name == "shards" and model.folder.parent.resolve() == home.resolve() / "shards":
        Store(home).remove(model.folder.name)
    elif model.folder.parent.parent.resolve() == home.resolve() / "imports":
        shutil.rmtree(model.folder.parent)  # named by the file's place and time: nothing else is in it
    else:
        shutil.rmtree(model.folder)
    if not model.form:
        shutil.rmtree(home / "hub" / f"models--{model.name.replace('/', '--')}", ignore_errors=True)  # its small files
