"""Checks what came from the hub: once every byte of a published file is here, in units, its sha256 must be the hub's.

Knows no download but the few bytes of a file that no unit has.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from together.errors import BrokenModel
from together.models.digests import Digests, stamp_of
from together.models.fingerprint import OriginalFile
from together.models.folder import inside
from together.models.manifest import Manifest
from together.models.reading import CHUNK, units_here
from together.models.units import words
from together.weights.hub_ranges import RemoteFile, read_range
from together.weights.store import Store

MAX_GAPS = 16 * 2**20  # bytes of a file that are in no unit and are fetched to check it; with more it stays unchecked


@dataclass(frozen=True, slots=True)
class _Place:
    """Bytes `[start, stop)` of a published file lie in a unit's file, from byte `at` on."""

    start: int
    stop: int
    unit: str
    at: int


def unchecked_files(folder: Path, manifest: Manifest, home: Path) -> tuple[OriginalFile, ...]:
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

    Raises BrokenModel naming the file where one differs; its units are deleted, so the next fetch brings them anew.
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
                f"{file.name} of {manifest.name} is broken: its sha256 is {found}, the hub published {wanted}; "
                f"{words(units)} were deleted, fetch them again"
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


def _gaps(file: OriginalFile, places: list[_Place]) -> int:
    return file.size - 8 - len(file.header) - sum(place.stop - place.start for place in places)


def _sha256(folder: Path, file: OriginalFile, places: list[_Place], remote: RemoteFile) -> str:
    digest = hashlib.sha256(struct.pack("<Q", len(file.header)) + file.header)
    position = 8 + len(file.header)
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


def _stamp(folder: Path, units: list[str]) -> list[list[str | int]]:
    return stamp_of([inside(folder, unit) for unit in units])


def _key(folder: Path, file: OriginalFile) -> str:
    return f"hub {folder.resolve() / file.name}"
