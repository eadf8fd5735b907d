"""The cache of model units on this disk (`home/shards/<fingerprint>/`), and its export as a folder."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import AcquireReturnProxy, BaseFileLock, FileLock, Timeout

from together.errors import BadInput, BrokenModel, TogetherError
from together.jsonfile import write_whole
from together.models.folder import folder_name, read_bytes
from together.models.manifest import Manifest, check_small, describe, is_shard, read_manifest, small_files
from together.models.names import MANIFEST, is_sha256, model_name
from together.models.reading import (
    read_unit,
    remember,
    require_digest,
    require_here,
    require_samples,
    units_here,
)
from together.models.units import PublishedFile, Unit, units_for, words
from together.sentences import Sentence, template
from together.types import LayerRange
from together.weights.part import UnitWriter, require_space, size_of, writing
from together.wording import quoted

_LOCK_WITHIN = 30.0  # seconds: a manifest is written in milliseconds


class UnitBusy(TogetherError):
    """Another process or task of this machine writes this unit: ask again a little later what is missing."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model on this machine, or pieces of it. `fault` says why it cannot be used; the rest is empty then."""

    name: str
    folder: Path
    fingerprint: str = ""
    layers: int = 0  # of the whole model
    units: tuple[str, ...] = ()  # that are here
    whole: bool = False
    bytes: int = 0  # on disk
    revision: str = ""
    fault: str = ""

    @property
    def held(self) -> str:
        """What is here, in words."""
        return f"all {self.layers} layers" if self.whole else words(self.units)


def local_name(folder: Path, home: Path) -> str:
    """What the model in a plain folder is called here: under `home/models` by its place, as `name` or `org/name`."""
    root = home / "models"
    for place, top in ((folder.absolute(), root.absolute()), (folder.resolve(), root.resolve())):
        parts = place.relative_to(top).parts if place.is_relative_to(top) else ()
        if 1 <= len(parts) <= 2 and ".." not in parts:
            return "/".join(map(model_name, parts))
    return folder_name(folder)


def known_model(folder: Path, home: Path) -> KnownModel:
    """What `folder` has, a whole checkpoint or a shard folder."""
    name = local_name(folder, home)
    try:
        manifest = describe(folder, name)
        here = units_here(folder, manifest)
        sizes = [file.size for file in manifest.files] + [file.size for file in manifest.small]
        size = sum(map(size_of, folder.iterdir()) if is_shard(folder) else sizes)
    except (TogetherError, OSError) as error:
        return KnownModel(name, folder, fault=str(error))
    return KnownModel(
        manifest.name,
        folder,
        manifest.fingerprint,
        manifest.layers,
        units=tuple(name for name in manifest.units if name in here),
        whole=len(here) == len(manifest.units),
        bytes=size,
        revision=manifest.revision,
    )


class Store:
    """The cache in `home`. Blocking: call it from a thread.

    Methods raise BrokenModel for a fingerprint that is none, or of a model that was not begun.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._root = home / "shards"

    def folder(self, fingerprint: str) -> Path:
        """Where this model's units are, or would be."""
        if not is_sha256(fingerprint):
            message = "{fingerprint} is not a model's fingerprint; load the model again"
            raise BrokenModel(message, fingerprint=quoted(fingerprint))
        return self._root / fingerprint

    def begin(self, manifest: Manifest, small: Mapping[str, bytes]) -> None:
        """Write the model's folder without units, in one step: the small files and the manifest.

        A folder that exists keeps its units and learns the hashes of those it lacks. Its small files are replaced where
        they are others (of a newer commit, or of a mirror with the same weights) or damaged. Raises BrokenModel for
        files that are not the manifest's, or DiskFull.
        """
        check_small(manifest, small)
        manifest.verify(small["config.json"])
        folder = self.folder(manifest.fingerprint)
        require_space(folder, sum(map(len, small.values())), manifest.name)
        with writing(self._root, manifest.name), self._changing(manifest.fingerprint):
            if folder.is_dir():
                _update(folder, manifest, small)
            else:
                with _drafted(folder, self._root / f".new-{manifest.fingerprint}") as draft:
                    _write_skeleton(draft, manifest, small)

    def missing(self, fingerprint: str, layers: LayerRange) -> tuple[Unit, ...]:
        """The units that a stage of `layers` needs and that are not here, in the model's order."""
        folder = self.folder(fingerprint)
        manifest = read_manifest(folder)
        here = units_here(folder, manifest)
        return tuple(unit for unit in units_for(manifest, layers) if unit.name not in here)

    def require_space(self, fingerprint: str, units: tuple[Unit, ...]) -> None:
        """Raises DiskFull unless what these units still lack fits on the disk."""
        folder = self.folder(fingerprint)
        lacking = sum(unit.size - size_of(folder / f"{unit.name}.part") for unit in units)
        require_space(folder, lacking, f"{read_manifest(folder).name} ({words(unit.name for unit in units)})")

    def part(self, fingerprint: str, name: str) -> UnitWriter:
        """Open a unit for writing, where the last writer stopped. Raises UnitBusy, DiskFull or BrokenModel."""
        folder = self.folder(fingerprint)
        manifest = read_manifest(folder)
        if name not in manifest.units:
            raise BrokenModel("{model} has no unit {unit}; plan again", model=manifest.name, unit=quoted(name))
        unit, what = manifest.units[name], f"{name} of {manifest.name}"
        busy = template("{what} is being written by another task; wait for it", what=what)
        with writing(self._root, what):
            lock = self._locked(f"{fingerprint}-{name}", busy).lock
        return UnitWriter(folder, manifest, unit, lock, lambda digest: self._finished(folder, unit, digest))

    def discard(self, fingerprint: str, units: Iterable[str]) -> None:
        """Delete units that proved wrong, and forget their hashes, so that the right bytes are taken next time."""
        folder, names = self.folder(fingerprint), set(units)
        with writing(self._root, fingerprint), self._changing(fingerprint):
            manifest = read_manifest(folder)
            kept = {name: digest for name, digest in manifest.digests.items() if name not in names}
            write_whole(folder / MANIFEST, replace(manifest, digests=kept).to_json())
            for name in names & manifest.units.keys():
                (folder / name).unlink(missing_ok=True)

    def holdings(self) -> list[KnownModel]:
        """All models that have a folder here."""
        return [known_model(folder, self.home) for folder in self._folders()]

    def published(self, name: str, revision: str) -> tuple[PublishedFile, ...]:
        """The files of a model at this commit of the hub, if it was begun here; else none."""
        for folder in self._folders():
            with suppress(BrokenModel):
                if revision.encode() not in read_bytes(folder, MANIFEST):
                    continue  # parsing a manifest takes up to a second, and there may be many
                manifest = read_manifest(folder)
                if (manifest.name, manifest.revision) == (name, revision):
                    return manifest.files
        return ()

    def remove(self, fingerprint: str) -> None:
        """Delete a model's units; one that never began is gone already. Raises UnitBusy while one is being written."""
        folder = self.folder(fingerprint)
        if not folder.is_dir():
            return
        for file in folder.glob("*.part"):
            busy = template("{file} in {folder} is being written; stop that first", file=file.name, folder=str(folder))
            self._locked(f"{fingerprint}-{file.name.removesuffix('.part')}", busy).lock.release()
        gone = self._root / f".gone-{fingerprint}"
        with writing(self._root, fingerprint), self._changing(fingerprint):
            shutil.rmtree(gone, ignore_errors=True)
            os.replace(folder, gone)  # in one step: what is left of a half-deleted folder is nobody's model
            shutil.rmtree(gone)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _folders(self) -> list[Path]:
        folders = sorted(self._root.iterdir()) if self._root.is_dir() else []
        return [folder for folder in folders if is_sha256(folder.name)]

    def _finished(self, folder: Path, unit: Unit, digest: str) -> None:
        with writing(folder, unit.name), self._changing(folder.name):
            manifest = read_manifest(folder)
            _learn(folder, manifest, manifest, {unit.name: digest})
            remember(folder, unit, digest, self.home)

    def _changing(self, fingerprint: str) -> AcquireReturnProxy[BaseFileLock]:
        """Only one process at a time changes a manifest. Raises UnitBusy."""
        folder = str(self._root / fingerprint)
        busy = template("{folder} is being changed by another process; try again", folder=folder)
        return self._locked(f"{fingerprint}-manifest", busy, _LOCK_WITHIN)

    def _locked(self, name: str, busy: Sentence, within: float = 0.0) -> AcquireReturnProxy[BaseFileLock]:
        """A lock of ours until it is released. Raises UnitBusy with the sentence `busy` after `within` seconds."""
        locks = self._root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        # a transfer's calls come from a pool of threads
        lock: BaseFileLock = FileLock(locks / f"{name}.lock", thread_local=False)
        try:
            return lock.acquire(timeout=within)
        except Timeout:
            raise UnitBusy(busy) from None


def _update(folder: Path, manifest: Manifest, small: Mapping[str, bytes]) -> None:
    """Write the small files around the units of a folder that exists. The manifest's lock is held."""
    try:
        before = read_manifest(folder)
    except BrokenModel:  # damaged: its units may be good
        _write_skeleton(folder, manifest, small)
        return
    if (before.name, before.revision, before.small) != (manifest.name, manifest.revision, manifest.small):
        for name in {file.name for file in before.small} - small.keys():
            (folder / name).unlink(missing_ok=True)
        for name, data in small.items():
            write_whole(folder / name, data)
    _learn(folder, before, manifest, manifest.digests)


def _learn(folder: Path, before: Manifest, manifest: Manifest, digests: Mapping[str, str]) -> None:
    """Replace the manifest `before` by `manifest`; of a unit that is here, the known hash stays.

    The manifest's lock is held.
    """
    here = units_here(folder, before)
    own = {name: digest for name, digest in before.digests.items() if name in here}
    made = replace(manifest, digests={**before.digests, **digests, **own})
    if made != before:
        write_whole(folder / MANIFEST, made.to_json())


def _write_skeleton(folder: Path, manifest: Manifest, small: Mapping[str, bytes]) -> None:
    for name, data in small.items():
        write_whole(folder / name, data)
    write_whole(folder / MANIFEST, manifest.to_json())


@contextmanager
def _drafted(folder: Path, draft: Path) -> Iterator[Path]:
    """A `draft` on the same disk, to fill: it becomes `folder`, new or empty, or nothing is left of it."""
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        if folder.exists():
            folder.rmdir()
        os.replace(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


# --- export -----------------------------------------------------------------------------------------------------------


def export(folder: Path, manifest: Manifest, layers: LayerRange, target: Path) -> Manifest:
    """Write the units that a stage of `layers` needs, the small files and a manifest with the units' hashes.

    `manifest` is the one of `folder`. `target` is new or an empty folder; it appears whole or not at all. Raises
    BadInput, BrokenModel or DiskFull.
    """
    units, target = units_for(manifest, layers), target.absolute()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        message = "{folder} exists already; choose a new folder for {units}"
        raise BadInput(message, folder=str(target), units=words(unit.name for unit in units))
    if is_shard(folder):
        require_here(folder, manifest, units)
    what = f"{manifest.name} layers {layers}"
    require_space(target, sum(unit.size for unit in units), what)
    with writing(target.parent, what), _drafted(target, target.with_name(f".{target.name}.new")) as draft:
        small = small_files(folder)
        check_small(manifest, small)
        digests = {unit.name: _copy(folder, unit, draft / unit.name) for unit in units}
        for unit in units:
            require_samples(manifest, unit, draft / unit.name)
            require_digest(manifest, unit, digests[unit.name])
        made = replace(manifest, digests=digests)
        _write_skeleton(draft, made, small)
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
