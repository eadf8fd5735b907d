"""Models of the hub: their skeletons, and the bytes of the units asked for, into the store of this machine.

Blocking: call it from a thread. Knows no node.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from together.errors import BrokenModel, Unreachable
from together.models.manifest import CONFIG, Manifest, compose, read_manifest
from together.models.reading import units_here
from together.models.units import Unit
from together.types import ModelRef
from together.weights.hub_check import check_files, unchecked_files
from together.weights.hub_listing import STREAMS, Listing, list_hub, reached, read_remote
from together.weights.hub_ranges import PATIENCE, Ask, Stopped, Waiting, pause, read_range
from together.weights.part import Part
from together.weights.store import Store, UnitBusy

_ASK_AGAIN = 0.3  # seconds between looks at a unit that another process writes

Progress = Callable[[int, int], None]


def describe_hub(repo_id: str, store: Store, revision: str | None = None) -> Manifest:
    """The manifest of a model on the hub; its skeleton is in the store after. Costs its headers and small files.

    Raises BadSetting (name, licence, token), Unreachable, UnsupportedModel (no safetensors) or BrokenModel.
    """
    remote = read_remote(repo_id, store.home, revision)
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

    `progress` gets (bytes here, bytes in all) of these units, one call at a time; what it raises ends the fetch.
    `waiting` gets who is waited for while a lost connection is tried again, and "" when it goes on.
    Once all of a published file is here, its sha256 is checked: where it is wrong, BrokenModel, and its units are gone.
    Raises besides as `describe_hub` does, and DiskFull; what was fetched stays, as parts.
    """
    manifest = _manifest(model, store)
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
    with reached(model.name):
        check_files(manifest, listing.files, store)
    return True


class _Fetch:
    """Units of one model on their way; the first failure stops all of them."""

    def __init__(
        self,
        manifest: Manifest,
        listing: Listing,
        store: Store,
        tally: _Tally,
        should_stop: Ask,
        patience: float,
        waiting: Waiting,
    ) -> None:
        self._manifest = manifest
        self._listing = listing
        self._store = store
        self._tally = tally
        self._asked = should_stop
        self._patience = patience
        self._waiting = waiting
        self._failed = threading.Event()

    def all(self, units: Sequence[Unit]) -> bool:
        with ThreadPoolExecutor(STREAMS, "hub") as pool, reached(self._listing.repo):
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
                self._tally.add(part.size)
                for data in self._rest(part):
                    part.write(data)
                    self._tally.add(len(data))
                part.finish()
        except BaseException:
            self._failed.set()
            raise

    def _open(self, unit: Unit) -> Part:
        """The unit's part, once nobody else of this machine writes it: then it may be whole already."""
        while True:
            try:
                return self._store.part(self._manifest.fingerprint, unit)
            except UnitBusy:
                pause(_ASK_AGAIN, self._stop)

    def _rest(self, part: Part) -> Iterator[bytes]:
        for span in part.spans():
            if isinstance(span, bytes):
                yield span
            else:
                file = self._listing.files[span.file]
                yield from read_range(file, span.start, span.stop, self._stop, self._patience, self._waiting)

    def _stop(self) -> bool:
        return self._failed.is_set() or self._asked()


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


def _manifest(model: ModelRef, store: Store) -> Manifest:
    """The model's manifest in the store, written there first if it is new. Raises BrokenModel for another version."""
    folder = store.folder(model.fingerprint)
    if (folder / CONFIG).is_file():
        return read_manifest(folder)
    manifest = describe_hub(model.name, store, model.revision or None)
    if manifest.fingerprint != model.fingerprint:
        raise BrokenModel(
            f"the hub has another version of {model.name}: {manifest.fingerprint[:12]} there, {model.fingerprint[:12]} "
            "at the head; name the revision, or load it again"
        )
    return manifest


def _listing(model: ModelRef, manifest: Manifest) -> Listing:
    """What the hub has at the manifest's commit. Raises BrokenModel where its files are not the manifest's."""
    listing = list_hub(model.name, model.revision or manifest.revision or None)
    for file in manifest.files:
        found = listing.files.get(file.name)
        if found is None or found.size != file.size:
            what = f"{found.size} bytes" if found else "no such file"
            raise BrokenModel(
                f"the hub has another version of {model.name}: {file.name} has {file.size} bytes here, {what} there; "
                "name the revision, or load it again"
            )
    return listing
