"""The cache of model units on this disk (`home/shards/<key>/`), and its export as a folder.

The key of a model is its fingerprint, with its form where it is not as published.
"""

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
from together.models.gguf.sources import imported_file
from together.models.manifest import Manifest, check_small, describe, is_shard, read_manifest, small_files
from together.models.names import MANIFEST, is_model_key, model_name
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
from together.types import LayerRange, model_key
from together.weights.part import UnitWriter, require_space, size_of, writing
from together.wording import quoted

_LOCK_WITHIN = 30.0  # seconds: a manifest is written in milliseconds


class UnitBusy(TogetherError):
    """Another process or task of this machine writes this unit: ask again a little later what is missing."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model on this machine, or pieces of it. `fault` says why it cannot be used; the rest is empty then.

    Of one that another program keeps, or of a GGUF file, no more than name and size is known before it is chosen;
    `folder` is what stands for it then.
    """

    name: str
    folder: Path
    fingerprint: str = ""
    form: str = ""  # see models/form.py
    layers: int = 0  # of the whole model
    units: tuple[str, ...] = ()  # that are here
    whole: bool = False
    bytes: int = 0  # on disk
    revision: str = ""
    fault: str = ""
    file: str = ""  # the GGUF file that `folder` stands for, which is its owner's and stays where it is
    program: str = ""  # whose files they are, if another program's

    @property
    def unread(self) -> bool:
        """Whether only its name and size are known."""
        return not self.fingerprint and not self.fault

    @property
    def where(self) -> str:
        """Its place, for a person."""
        place = self.file if self.file and not self.unread else str(self.folder)
        return f"{self.program}: {place}" if self.program else place

    @property
    def key(self) -> str:
        """As ModelRef.key; empty where it cannot be used."""
        return model_key(self.fingerprint, self.form)

    @property
    def held(self) -> str:
        """What is here, in words."""
        if self.unread:
            return "all layers"
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
    name, file = local_name(folder, home), imported_file(folder)
    try:
        manifest = describe(folder, name)
        here = units_here(folder, manifest)
        sizes = [file.size for file in manifest.files] + [file.size for file in manifest.small]
        size = sum(map(size_of, folder.iterdir()) if is_shard(folder) else sizes)
    except (TogetherError, OSError) as error:
        return KnownModel(name, folder, fault=str(error), file=file)
    return KnownModel(
        manifest.name,
        folder,
        manifest.fingerprint,
        manifest.form,
        manifest.layers,
        units=tuple(name for name in manifest.units if name in here),
        whole=len(here) == len(manifest.units),
        bytes=size,
        revision=manifest.revision,
        file=file,
    )


class Store:
    """The cache in `home`. Blocking: call it from a thread.

    Methods raise BrokenModel for a key that is none, or of a model that was not begun.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._root = home / "shards"

    def folder(self, key: str) -> Path:
        """Where this model's units are, or would be."""
        if not is_model_key(key):
            message = "{fingerprint} is not a model's fingerprint; load the model again"
            raise BrokenModel(message, fingerprint=quoted(key))
        return self._root / key

    def begin(self, manifest: Manifest, small: Mapping[str, bytes]) -> None:
        """Write the model's folder without units, in one step: the small files and the manifest.

        A folder that exists keeps its units and learns the hashes of those it lacks. Its small files are replaced where
        they are others (of a newer commit, or of a mirror with the same weights) or damaged. Raises BrokenModel for
        files that are not the manifest's, or DiskFull.
        """
        check_small(manifest, small)
        manifest.verify(small["config.json"])
        folder = self.folder(manifest.key)
        require_space(folder, sum(map(len, small.values())), manifest.name)
        with writing(self._root, manifest.name), self._changing(manifest.key):
            if folder.is_dir():
                _update(folder, manifest, small)
            else:
                with drafted(folder, self._root / f".new-{manifest.key}") as draft:
                    _write_skeleton(draft, manifest, small)

    def missing(self, key: str, layers: LayerRange) -> tuple[Unit, ...]:
        """The units that a stage of `layers` needs and that are not here, in the model's order."""
        folder = self.folder(key)
        manifest = read_manifest(folder)
        here = units_here(folder, manifest)
        return tuple(unit for unit in units_for(manifest, layers) if unit.name not in here)

    def lacking(self, key: str, units: tuple[Unit, ...]) -> tuple[int, str]:
        """The bytes that these units still lack, and what to call them."""
        folder = self.folder(key)
        here = sum(size_of(folder / f"{unit.name}.part") + size_of(folder / unit.name) for unit in units)
        what = f"{read_manifest(folder).name} ({words(unit.name for unit in units)})"
        return max(sum(unit.size for unit in units) - here, 0), what

    def require_space(self, key: str, units: tuple[Unit, ...]) -> None:
        """Raises DiskFull unless what these units still lack fits on the disk."""
        require_space(self.folder(key), *self.lacking(key, units))

    def part(self, key: str, name: str, *, anew: bool = False) -> UnitWriter:
        """Open a unit for writing, where the last writer stopped, or `anew`.

        Raises UnitBusy, DiskFull or BrokenModel.
        """
        folder = self.folder(key)
        manifest = read_manifest(folder)
        if name not in manifest.units:
            raise BrokenModel("{model} has no unit {unit}; plan again", model=manifest.name, unit=quoted(name))
        unit, what = manifest.units[name], f"{name} of {manifest.name}"
        busy = template("{what} is being written by another task; wait for it", what=what)
        with writing(self._root, what):
            lock = self._locked(f"{key}-{name}", busy).lock
        return UnitWriter(folder, manifest, unit, lock, lambda digest: self._finished(folder, unit, digest), anew=anew)

    def discard(self, key: str, units: Iterable[str]) -> None:
        """Delete units that proved wrong, and forget their hashes, so that the right bytes are taken next time."""
        folder, names = self.folder(key), set(units)
        with writing(self._root, key), self._changing(key):
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
        manifest = self.begun(name, revision)
        return () if manifest is None else manifest.files

    def begun(self, name: str, revision: str) -> Manifest | None:
        """The manifest of a model at this commit of the hub, if it was begun here."""
        for folder in self._folders():
            with suppress(BrokenModel):
                if revision.encode() not in read_bytes(folder, MANIFEST):
                    continue  # parsing a manifest takes up to a second, and there may be many
                manifest = read_manifest(folder)
                if (manifest.name, manifest.revision) == (name, revision):
                    return manifest
        return None

    def remove(self, key: str) -> None:
        """Delete a model's units; one that never began is gone already. Raises UnitBusy while one is being written."""
        folder = self.folder(key)
        if not folder.is_dir():
            return
        for file in folder.glob("*.part"):
            busy = template("{file} in {folder} is being written; stop that first", file=file.name, folder=str(folder))
            self._locked(f"{key}-{file.name.removesuffix('.part')}", busy).lock.release()
        gone = self._root / f".gone-{key}"
        with writing(self._root, key), self._changing(key):
            shutil.rmtree(gone, ignore_errors=True)
            os.replace(folder, gone)  # in one step: what is left of a half-deleted folder is nobody's model
            shutil.rmtree(gone)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _folders(self) -> list[Path]:
        folders = sorted(self._root.iterdir()) if self._root.is_dir() else []
        return [folder for folder in folders if is_model_key(folder.name)]

    def _finished(self, folder: Path, unit: Unit, digest: str) -> None:
        with writing(folder, unit.name), self._changing(folder.name):
            manifest = read_manifest(folder)
            _learn(folder, manifest, manifest, {unit.name: digest})
            remember(folder, unit, digest, self.home)

    def _changing(self, key: str) -> AcquireReturnProxy[BaseFileLock]:
        """Only one process at a time changes a manifest. Raises UnitBusy."""
        folder = str(self._root / key)
        busy = template("{folder} is being changed by another process; try again", folder=folder)
        return self._locked(f"{key}-manifest", busy, _LOCK_WITHIN)

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


def begin_form(folder: Path, manifest: Manifest, form: str, store: Store) -> Path:
    """The cache's folder for a form of the published model in `folder`, without units where it is new.

    Raises BrokenModel or DiskFull.
    """
    made = manifest.in_form(form)
    store.begin(made, small_files(folder))
    return store.folder(made.key)


def _update(folder: Path, manifest: Manifest, small: Mapping[str, bytes]) -> None:
    """Write the small files around the units of a folder that exists. The manifest's lock is held."""
    try:
        before = read_manifest(folder)
    except BrokenModel:  # damaged: its units may be good
        _write_skeleton(folder, manifest, small)
        return
    for name in {file.name for file in before.small} - small.keys():
        (folder / name).unlink(missing_ok=True)
    for name, data in small.items():
        if not _holds(folder / name, data):
            write_whole(folder / name, data)
    _learn(folder, before, manifest, manifest.digests)


def _holds(file: Path, data: bytes) -> bool:
    return size_of(file) == len(data) and file.read_bytes() == data


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
def drafted(folder: Path, draft: Path) -> Iterator[Path]:
    """A `draft` on the same disk, to fill: it becomes `folder`, new or empty, or nothing is left of it.

    Raises BadInput where another process or task fills it.
    """
    with _alone(folder, draft.with_name(f"{draft.name}.lock")):
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


@contextmanager
def _alone(folder: Path, file: Path) -> Iterator[None]:
    """Who writes `folder` holds the lock in `file`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        message = "{folder} is being written already; wait for that, or choose another folder"
        raise BadInput(message, folder=str(folder)) from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps it while it is open
            file.unlink()
        lock.release()


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
    with writing(target.parent, what), drafted(target, target.with_name(f".{target.name}.new")) as draft:
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
