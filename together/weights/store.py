"""The cache of model units on this disk (`home/shards/<fingerprint>/`), and its export as a folder."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from together.errors import BadInput, BrokenModel, TogetherError
from together.jsonfile import write_synced, write_whole
from together.models.fingerprint import PublishedFile
from together.models.folder import folder_name, read_bytes
from together.models.manifest import Manifest, check_small, describe, is_shard, read_manifest, small_files
from together.models.names import MANIFEST, is_sha256, model_name
from together.models.reading import read_unit, remember, require_here, require_samples, unit_digest, units_here
from together.models.units import Unit, units_for, words
from together.types import LayerRange
from together.weights.part import DiskFull, UnitWriter, require_space, writing
from together.wording import quoted


def export(folder: Path, manifest: Manifest, layers: LayerRange, target: Path) -> Manifest:
    """Write the units that a stage of `layers` needs, the small files and a manifest with the units' hashes.

    `manifest` is the one of `folder`. `target` is new or an empty folder; it appears whole or not at all. Raises
    BadInput, BrokenModel or DiskFull.
    """
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


# What goes with the store, under one name for those who use it.
__all__ = [
    "DiskFull",
    "KnownModel",
    "Store",
    "UnitBusy",
    "UnitWriter",
    "export",
    "known_model",
    "read_unit",
    "unit_digest",
]

_LOCK_WITHIN = 30.0  # seconds: a manifest is written in milliseconds


class UnitBusy(TogetherError):
    """Another process or task of this machine writes this unit now: ask again what is missing, a little later."""


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
        units = units_here(folder, manifest)
        size = _bytes(folder) if is_shard(folder) else _published(manifest)
    except (TogetherError, OSError) as error:
        return KnownModel(name, folder, fault=str(error))
    ordered = tuple(name for name in manifest.units if name in units)
    whole = len(units) == len(manifest.units)
    return KnownModel(
        manifest.name, folder, manifest.fingerprint, manifest.layers, ordered, whole, size, manifest.revision
    )


class Store:
    """Blocking: call it from a thread. Raises BrokenModel for a fingerprint that is none or a model not begun."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._root = home / "shards"

    @property
    def home(self) -> Path:
        return self._home

    def folder(self, fingerprint: str) -> Path:
        """Where this model's pieces lie, or would."""
        if not is_sha256(fingerprint):
            raise BrokenModel(f"{quoted(fingerprint)} is not a model's fingerprint; load the model again")
        return self._root / fingerprint

    def begin(self, manifest: Manifest, small: Mapping[str, bytes]) -> None:
        """Write the model's folder without units, unless it is there: the small files and the manifest, in one step.

        A folder that is there learns the hashes of units that it lacks. Where its words are others (a newer commit, or
        a mirror with the same weights), it gets these and keeps its units. Raises BrokenModel for files that are not
        the manifest's, or DiskFull.
        """
        check_small(manifest, small)
        manifest.verify(small["config.json"])
        folder = self.folder(manifest.fingerprint)
        require_space(folder, sum(map(len, small.values())), manifest.name)
        with writing(self._root, manifest.name), self._writes(manifest.fingerprint):
            if not self._is_begun(folder):
                self._create(folder, manifest, small)
            elif _same_words(read_manifest(folder), manifest):
                self._learn(folder, manifest.digests)
            else:
                self._reword(folder, manifest, small)

    def missing(self, fingerprint: str, layers: LayerRange) -> tuple[Unit, ...]:
        """The units that a stage of `layers` needs and that are not here, in the model's order."""
        folder = self.folder(fingerprint)
        manifest = read_manifest(folder)
        here = units_here(folder, manifest)
        return tuple(unit for unit in units_for(manifest, layers) if unit.name not in here)

    def require_space(self, fingerprint: str, units: tuple[Unit, ...]) -> None:
        """Raises DiskFull unless what these units still lack fits on the disk."""
        folder = self.folder(fingerprint)
        there = sum(_file_size(folder / f"{unit.name}.part") for unit in units)
        names = words(unit.name for unit in units)
        require_space(folder, sum(unit.size for unit in units) - there, f"{read_manifest(folder).name} ({names})")

    def part(self, fingerprint: str, unit: Unit | str) -> UnitWriter:
        """Open a unit for writing, where the last writer stopped. Raises UnitBusy, DiskFull or BrokenModel."""
        folder = self.folder(fingerprint)
        manifest = read_manifest(folder)
        name = unit if isinstance(unit, str) else unit.name
        if name not in manifest.units:
            raise BrokenModel(f"{manifest.name} has no unit {quoted(name)}; plan again")
        known = manifest.units[name]
        with writing(self._root, f"{name} of {manifest.name}"):
            lock = self._lock(f"{fingerprint}-{name}")
            try:
                lock.acquire(blocking=False)
            except Timeout:
                raise UnitBusy(f"{name} of {manifest.name} is being written by another task; wait for it") from None
        return UnitWriter(folder, manifest, known, lock, lambda digest: self._finished(folder, known, digest))

    def discard(self, fingerprint: str, units: Iterable[str]) -> None:
        """Delete units that proved wrong, and forget their hashes, so that the right bytes are taken next time."""
        folder, names = self.folder(fingerprint), set(units)
        with writing(self._root, fingerprint), self._writes(fingerprint):
            manifest = read_manifest(folder)
            kept = {name: digest for name, digest in manifest.digests.items() if name not in names}
            write_whole(folder / MANIFEST, replace(manifest, digests=kept).to_json())
            for name in names & manifest.units.keys():
                (folder / name).unlink(missing_ok=True)

    def holdings(self) -> list[KnownModel]:
        """All models that have a folder here."""
        return [known_model(folder, self._home) for folder in self._folders()]

    def published(self, name: str, revision: str) -> tuple[PublishedFile, ...]:
        """The files of a model at this commit of the hub, if it was begun here; else none."""
        for folder in self._folders():
            with suppress(BrokenModel):
                if revision.encode() not in read_bytes(folder, MANIFEST):
                    continue  # a manifest is parsed in a second or a tenth of it, and there may be many
                manifest = read_manifest(folder)
                if (manifest.name, manifest.revision) == (name, revision):
                    return manifest.files
        return ()

    def remove(self, fingerprint: str) -> None:
        """Delete a model's pieces; what never began is gone already. Raises UnitBusy while one is being written."""
        folder = self.folder(fingerprint)
        if not folder.is_dir():
            return
        self._require_idle(folder)
        gone = self._root / f".gone-{fingerprint}"
        with writing(self._root, fingerprint), self._writes(fingerprint):
            shutil.rmtree(gone, ignore_errors=True)
            os.replace(folder, gone)  # in one step: what is left of a half-deleted folder is nobody's model
            shutil.rmtree(gone)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _folders(self) -> list[Path]:
        folders = sorted(self._root.iterdir()) if self._root.is_dir() else []
        return [folder for folder in folders if is_sha256(folder.name)]

    def _is_begun(self, folder: Path) -> bool:
        """Whether the folder is good; one whose manifest was damaged is written anew around its units."""
        try:
            read_manifest(folder)
        except BrokenModel:
            return False
        return True

    def _create(self, folder: Path, manifest: Manifest, small: Mapping[str, bytes]) -> None:
        if folder.is_dir():  # its skeleton was damaged
            for name, data in small.items():
                write_whole(folder / name, data)
            write_whole(folder / MANIFEST, manifest.to_json())
            return
        draft = self._root / f".new-{manifest.fingerprint}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for name, data in small.items():
            write_synced(draft / name, data)
        write_synced(draft / MANIFEST, manifest.to_json())
        os.replace(draft, folder)

    def _reword(self, folder: Path, manifest: Manifest, small: Mapping[str, bytes]) -> None:
        """Other words for the same weights: units stay, and what is known of them. The manifest's lock is held."""
        before = read_manifest(folder)
        for name in {file.name for file in before.small} - small.keys():
            (folder / name).unlink(missing_ok=True)
        for name, data in small.items():
            write_whole(folder / name, data)
        here = units_here(folder, before)
        known = {name: digest for name, digest in before.digests.items() if name in here}
        write_whole(
            folder / MANIFEST, replace(manifest, digests={**before.digests, **manifest.digests, **known}).to_json()
        )

    def _learn(self, folder: Path, digests: Mapping[str, str]) -> None:
        """Take over hashes; of a unit that is here its own stands. The manifest's lock is held."""
        manifest = read_manifest(folder)
        here = units_here(folder, manifest)
        known = dict(manifest.digests)
        known |= {name: digest for name, digest in digests.items() if not (name in here and name in known)}
        if known != manifest.digests:
            write_whole(folder / MANIFEST, replace(manifest, digests=known).to_json())

    def _finished(self, folder: Path, unit: Unit, digest: str) -> None:
        with writing(folder, unit.name), self._writes(folder.name):
            self._learn(folder, {unit.name: digest})
            remember(folder, unit, digest, self._home)

    def _require_idle(self, folder: Path) -> None:
        for file in folder.glob("*.part"):
            lock = self._lock(f"{folder.name}-{file.name.removesuffix('.part')}")
            try:
                lock.acquire(blocking=False)
            except Timeout:
                raise UnitBusy(f"{file.name} in {folder} is being written; stop that first") from None
            lock.release()

    @contextmanager
    def _writes(self, fingerprint: str) -> Iterator[None]:
        """Only one process at a time changes a manifest."""
        lock = self._lock(f"{fingerprint}-manifest")
        try:
            lock.acquire(timeout=_LOCK_WITHIN)
        except Timeout:
            raise UnitBusy(f"{self._root / fingerprint} is being changed by another process; try again") from None
        try:
            yield
        finally:
            lock.release()

    def _lock(self, name: str) -> BaseFileLock:
        locks = self._root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / f"{name}.lock", thread_local=False)  # a transfer's calls come from a pool of threads


def _same_words(one: Manifest, other: Manifest) -> bool:
    return (one.name, one.revision, one.small) == (other.name, other.revision, other.small)


def _bytes(folder: Path) -> int:
    return sum(_file_size(file) for file in folder.iterdir())


def _published(manifest: Manifest) -> int:
    return sum(file.size for file in manifest.files) + sum(file.size for file in manifest.small)


def _file_size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
