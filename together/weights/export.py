"""Writes layers of a model as a self-contained shard folder, to be carried to another machine. Knows no network."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

from together.errors import BadInput, BrokenModel
from together.models.folder import write_synced
from together.models.manifest import Manifest, check_small, describe, is_shard, small_files
from together.models.names import MANIFEST
from together.models.reading import read_unit, require_here, require_samples
from together.models.units import Unit, units_for, words
from together.types import LayerRange
from together.weights.space import require_space, writing


def export(folder: Path, layers: LayerRange, target: Path) -> Manifest:
    """Write the units that a stage of `layers` needs, the small files and a manifest with the units' hashes.

    `target` is new or an empty folder; it appears whole or not at all. Raises BadInput, BrokenModel or DiskFull.
    """
    manifest = describe(folder)
    units = units_for(manifest, layers)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise BadInput(f"{target} is there already; choose a new folder for {words(u.name for u in units)}")
    if is_shard(folder):
        require_here(folder, manifest, units)
    require_space(target, sum(unit.size for unit in units), f"{manifest.name} layers {layers}")
    draft = target.absolute().with_name(f".{target.absolute().name}.new")
    try:
        with writing(target.absolute().parent, f"{manifest.name} layers {layers}"):
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            made = _fill(folder, manifest, units, draft)
            if target.exists():
                target.rmdir()
            os.replace(draft, target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return made


def _fill(folder: Path, manifest: Manifest, units: tuple[Unit, ...], draft: Path) -> Manifest:
    small = small_files(folder)
    check_small(manifest, small)
    for name, data in small.items():
        write_synced(draft / name, data)
    digests = {unit.name: _copy(folder, unit, draft / unit.name) for unit in units}
    for unit in units:
        require_samples(manifest, unit, draft / unit.name)
    for name, digest in digests.items():
        known = manifest.digests.get(name, digest)
        if digest != known:
            raise BrokenModel(f"{name} of {manifest.name} is broken: its sha256 is {digest}, it should be {known}")
    made = replace(manifest, digests=digests)
    write_synced(draft / MANIFEST, made.to_json())
    return made


def _copy(folder: Path, unit: Unit, file: Path) -> str:
    """Write one unit; returns its sha256."""
    digest = hashlib.sha256()
    with file.open("wb") as stream:
        for chunk in read_unit(folder, unit):
            stream.write(chunk)
            digest.update(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()
