"""Downloads units of a hub model into the store, and checks each published file once it is complete."""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from together.errors import BrokenModel, Unreachable
from together.models.folder import inside
from together.models.manifest import CONFIG, Manifest, compose, read_manifest
from together.models.names import is_gguf
from together.models.reading import CHUNK, Digests, Stamp, stamp_of, units_here
from together.models.units import PublishedFile, Unit, words
from together.sentences import template
from together.types import ModelRef
from together.weights.hub_listing import STREAMS, Listing, reached
from together.weights.hub_ranges import PATIENCE, Ask, RemoteFile, Stopped, pause, read_range
from together.weights.hub_remote import list_model, read_remote
from together.weights.part import Progress, UnitWriter, Waiting
from together.weights.store import Store, UnitBusy

ASK_AGAIN = 0.3  # seconds between looks at a unit that another process writes
MAX_GAPS = 16 * 2**20  # bytes of a file that are in no unit and are fetched to check it; with more it stays unchecked


@dataclass(frozen=True, slots=True)
class _Place:
    """Bytes `[start, stop)` of a published file lie in a unit's file, from byte `at` on."""

    start: int
    stop: int
    unit: str
    at: int


def unchecked_files(folder: Path, manifest: Manifest, home: Path) -> tuple[PublishedFile, ...]:
    """Published files whose units are all here and that nobody compared yet, or not since the units changed."""
    here, kept, by_file = units_here(folder, manifest), Digests(home), _places(manifest)
    found = []
    for file in manifest.files:
        units = sorted({place.unit for place in by_file[file.name]})
        if units and here.issuperset(units) and kept.get(_key(folder, file), _stamp(folder, units)) is None:
            found.append(file)
    return tuple(found)


def check_files(manifest: Manifest, remote: Mapping[str, RemoteFile], store: Store) -> None:
    """Compare every whole file that was not compared yet with the sha256 that the hub published.

    Raises BrokenModel naming the file where one differs; its units are deleted, so that they are fetched again.
    """
    folder, by_file = store.folder(manifest.fingerprint), _places(manifest)
    for file in unchecked_files(folder, manifest, store.home):
        places = by_file[file.name]
        units = sorted({place.unit for place in places})
        stamp, wanted = _stamp(folder, units), remote[file.name].sha256
        if not wanted or _gaps(file, places) > MAX_GAPS:
            Digests(store.home).put(_key(folder, file), stamp, "")  # nothing to compare with: do not ask again
            continue
        found = _sha256(folder, file, places, remote[file.name])
        if found != wanted:
            store.discard(manifest.fingerprint, units)
            raise BrokenModel(
                "{file} of {model} is broken: its sha256 is {found}, the hub published {wanted}; {units} were deleted, "
                "fetch them again",
                file=file.name,
                model=manifest.name,
                found=found,
                wanted=wanted,
                units=words(units),
            )
        Digests(store.home).put(_key(folder, file), stamp, found)


def _places(manifest: Manifest) -> dict[str, list[_Place]]:
    """Where each file's bytes are in the units, in the order of the file."""
    found: dict[str, list[_Place]] = {file.name: [] for file in manifest.files}
    for unit in manifest.units.values():
        at = len(unit.header)
        for piece in unit.pieces:
            found[piece.file].append(_Place(piece.start, piece.stop, unit.name, at))
            at += piece.size
    return {name: sorted(places, key=lambda place: place.start) for name, places in found.items()}


def _gaps(file: PublishedFile, places: list[_Place]) -> int:
    return file.size - len(_begin(file)) - sum(place.stop - place.start for place in places)


def _begin(file: PublishedFile) -> bytes:
    """The file's first bytes, as far as a manifest has them: not of a GGUF file, where a table stands for them."""
    return b"" if is_gguf(file.name) else struct.pack("<Q", len(file.header)) + file.header


def _sha256(folder: Path, file: PublishedFile, places: list[_Place], remote: RemoteFile) -> str:
    digest = hashlib.sha256(_begin(file))
    position = len(_begin(file))
    for place in places:
        for data in read_range(remote, position, place.start):
            digest.update(data)
        for data in _read(folder, place):
            digest.update(data)
        position = place.stop
    for data in read_range(remote, position, file.size):
        digest.update(data)
    return digest.hexdigest()


def _read(folder: Path, place: _Place) -> Iterator[bytes]:
    left = place.stop - place.start
    with inside(folder, place.unit).open("rb") as stream:
        stream.seek(place.at)
        while left and (data := stream.read(min(CHUNK, left))):
            yield data
            left -= len(data)


def _stamp(folder: Path, units: list[str]) -> Stamp:
    return stamp_of([inside(folder, unit) for unit in units])


def _key(folder: Path, file: PublishedFile) -> str:
    return f"hub {folder.resolve() / file.name}"


def describe_hub(name: str, store: Store, revision: str | None = None) -> Manifest:
    """The manifest of a model on the hub; its skeleton is in the store after. Costs its headers and small files.

    Raises as `read_remote` does.
    """
    remote = read_remote(name, store.home, revision)
    manifest = compose(remote.name, remote.files, remote.small, remote.revision)
    store.begin(manifest, remote.small)
    return manifest


def fetch_units(
    model: ModelRef,
    units: Iterable[Unit],
    store: Store,
    progress: Progress = lambda done, total: None,
    should_stop: Ask = lambda: False,
    patience: float = PATIENCE,
    waiting: Waiting = lambda whom: None,
) -> bool:
    """Bring units of `model` into the store, going on where an earlier try ended; False if `should_stop` said so.

    `progress` gets the bytes of these units, one call at a time; what it raises ends the fetch. A published file that
    is whole is compared with its sha256 (see `check_files`). Raises also what `describe_hub` raises, and DiskFull; what
    was fetched stays, as parts.
    """
    manifest = require_manifest(model, store)
    units = tuple(units)
    folder = store.folder(manifest.fingerprint)
    here = units_here(folder, manifest)
    missing = [unit for unit in units if unit.name not in here]
    if not missing and not unchecked_files(folder, manifest, store.home):
        return True
    try:
        listing = _listing(model, manifest)
    except Unreachable:
        if missing:
            raise
        return True  # all is here; only a check that an earlier run did not come to is left for another time
    store.require_space(manifest.fingerprint, tuple(missing))
    fetch = _Fetch(manifest, listing, store, _Tally(units, here, progress), should_stop, patience, waiting)
    if not fetch.all(missing):
        return False
    with reached(listing.repo):
        check_files(manifest, listing.files, store)
    return True


@dataclass(slots=True)
class _Fetch:
    """Units of one model on their way; the first failure stops all of them."""

    manifest: Manifest
    listing: Listing
    store: Store
    tally: _Tally
    should_stop: Ask
    patience: float
    waiting: Waiting
    _failed: threading.Event = field(default_factory=threading.Event)

    def all(self, units: Sequence[Unit]) -> bool:
        with ThreadPoolExecutor(STREAMS, "hub") as pool, reached(self.listing.repo):
            try:
                running = [pool.submit(self._one, unit) for unit in units]
                failures = [error for future in running if (error := future.exception()) is not None]
            except BaseException:  # Ctrl-C while waiting: the streams must not go on
                self._failed.set()
                raise
        real = [error for error in failures if not isinstance(error, Stopped)]
        if real:
            raise real[0]
        return not failures

    def _one(self, unit: Unit) -> None:
        try:
            if self._stop():
                raise Stopped
            with self._open(unit) as part:
                self.tally.add(part.size)
                for data in self._rest(part):
                    part.write(data)
                    self.tally.add(len(data))
                part.finish()
        except BaseException:
            self._failed.set()
            raise

    def _open(self, unit: Unit) -> UnitWriter:
        """The unit's part, once nobody else of this machine writes it: then it may be whole already."""
        while True:
            try:
                return self.store.part(self.manifest.fingerprint, unit.name)
            except UnitBusy:
                pause(ASK_AGAIN, self._stop)

    def _rest(self, part: UnitWriter) -> Iterator[bytes]:
        for span in part.spans():
            if isinstance(span, bytes):
                yield span
            else:
                file = self.listing.files[span.file]
                yield from read_range(file, span.start, span.stop, self._stop, self.patience, self.waiting)

    def _stop(self) -> bool:
        return self._failed.is_set() or self.should_stop()


class _Tally:
    """Bytes that are here, summed over streams and told to one caller."""

    def __init__(self, units: Sequence[Unit], here: Iterable[str], progress: Progress) -> None:
        self._total = sum(unit.size for unit in units)
        self._done = sum(unit.size for unit in units if unit.name in here)
        self._progress = progress
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._progress(self._done, self._total)


def require_manifest(model: ModelRef, store: Store) -> Manifest:
    """The model's manifest in the store, written there first if it is new. Raises BrokenModel for another version."""
    folder = store.folder(model.fingerprint)
    if (folder / CONFIG).is_file():
        return read_manifest(folder)
    manifest = describe_hub(model.name, store, model.revision or None)
    if manifest.fingerprint != model.fingerprint:
        raise BrokenModel(
            "the hub has another version of {model}: {there} there, {here} at the head; name the revision, or load it "
            "again",
            model=model.name,
            there=manifest.fingerprint[:12],
            here=model.fingerprint[:12],
        )
    return manifest


def _listing(model: ModelRef, manifest: Manifest) -> Listing:
    """What the hub has at the manifest's commit. Raises BrokenModel where its files are not the manifest's."""
    listing = list_model(model.name, model.revision or manifest.revision or None)
    for file in manifest.files:
        found = listing.files.get(file.name)
        if found is None or found.size != file.size:
            raise BrokenModel(
                "the hub has another version of {model}: {file} has {size} bytes here, {there} there; name the "
                "revision, or load it again",
                model=model.name,
                file=file.name,
                size=file.size,
                there=template("{size} bytes", size=found.size) if found else template("no such file"),
            )
    return listing
