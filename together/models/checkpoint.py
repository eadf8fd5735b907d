"""The safetensors files of a checkpoint as it was published: one file, or several, with or without an index.

Reads headers and samples of the weights. Knows no manifest.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

from together.errors import BrokenModel, UnsupportedModel
from together.models.fingerprint import OriginalFile, sample_places
from together.models.folder import broken, inside, read_bytes, title, unreadable
from together.models.headers import MAX_TENSORS, FileHeader, Headers, check_distinct
from together.models.recognise import is_pointer, pointer, without_weights
from together.models.sizes import INDEX as INDEX
from together.models.tables import TableReader, as_utf8
from together.models.units import Piece
from together.models.weights import MAX_FILES, SINGLE, choose_files

log = logging.getLogger(__name__)

_MAP = "weight_map"
_MOST_ELSE = 2**16  # bytes of whatever else the index says
_MOST_NAME = 2048  # bytes of a file's name in it


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder has weights as they are published."""
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file()


def checkpoint_headers(folder: Path) -> tuple[FileHeader, ...]:
    """The checked headers of the model's safetensors files, by name. Raises BrokenModel or UnsupportedModel."""
    model = Headers()
    headers = tuple(_header(model, inside(folder, name)) for name in weight_files(folder))
    check_distinct(headers)
    return headers


def _header(model: Headers, file: Path) -> FileHeader:
    try:
        return model.read(file)
    except BrokenModel as error:
        raise (pointer(file) if is_pointer(file) else error) from None


def weight_files(folder: Path) -> tuple[str, ...]:
    """The names of the model's safetensors files, which are all there. Raises BrokenModel or UnsupportedModel."""
    there = _names(folder)
    index = _index(folder) if INDEX in there and SINGLE not in there else None
    if not isinstance(index, BrokenModel):
        return choose_files(title(folder), there, index) or _no_weights(folder, there)
    chosen = choose_files(title(folder), there, None)
    if not chosen:
        raise index
    log.warning("%s; it is passed over", index)
    return chosen


def checkpoint_files(folder: Path) -> tuple[OriginalFile, ...]:
    """The model's safetensors files with their samples, by name. Raises as `checkpoint_headers` does."""
    return with_samples(checkpoint_headers(folder))


def with_samples(headers: tuple[FileHeader, ...]) -> tuple[OriginalFile, ...]:
    """The files of these headers with their samples. Raises BrokenModel for a file that changed meanwhile."""
    places = sample_places(headers)
    return tuple(
        OriginalFile(header.file.name, header.size, header.raw, _read(header.file, places[header.file.name]))
        for header in headers
    )


def _read(file: Path, places: tuple[Piece, ...]) -> bytes:
    found = bytearray()
    try:
        with file.open("rb", buffering=0) as stream:
            for place in places:
                stream.seek(place.start)
                found += stream.read(place.size)
    except OSError as error:
        raise unreadable(file, error) from error
    if len(found) != sum(place.size for place in places):
        raise broken(file, "it became shorter while it was read")
    return bytes(found)


def _names(folder: Path) -> frozenset[str]:
    """The regular files of the folder: nothing else has an end that one could read up to."""
    try:
        return frozenset(item.name for item in folder.iterdir() if item.is_file())
    except OSError as error:
        raise unreadable(folder, error) from error


def _no_weights(folder: Path, there: Collection[str]) -> NoReturn:
    sentence = without_weights(title(folder), there, folder)
    if sentence:
        raise UnsupportedModel(sentence)
    several = sorted(name for name in there if name.endswith(".safetensors"))
    if len(several) > 1:
        raise BrokenModel(
            f"{title(folder)} has several safetensors files ({', '.join(several[:3])}, …) and no {INDEX} that says "
            "which are the model; put the index beside them"
        )
    raise BrokenModel(f"{folder} has neither {SINGLE} nor {INDEX}; choose a folder that holds a model's weights")


def _index(folder: Path) -> dict[str, str] | BrokenModel:
    """Tensor → file, or why the index says nothing: the files that are there decide then.

    Raises BrokenModel for an index that Git LFS has not fetched, and for one that leads out of the folder.
    """
    try:
        places = weight_map(folder / INDEX, read_bytes(folder, INDEX))
    except BrokenModel as error:
        if is_pointer(folder / INDEX):
            raise pointer(folder / INDEX) from error
        return error
    for name in set(places.values()):
        inside(folder, name)
    return places


def weight_map(file: Path, index: bytes) -> dict[str, str]:
    """Which file has which tensor, as an index says; `file` is what an error names. Raises BrokenModel."""
    places: dict[str, str] = {}
    try:
        reader = TableReader(as_utf8(index))
        for key in reader.names():
            if key == _MAP:
                places = _places(reader)
            else:
                reader.value(_MOST_ELSE)
        reader.end()
    except ValueError as error:
        raise broken(file, f"it is not an index in JSON ({error})") from error
    if not places:
        raise broken(file, f"it has no {_MAP} of file names")
    return places


def _places(reader: TableReader) -> dict[str, str]:
    places: dict[str, str] = {}
    names: dict[str, str] = {}  # one text for all tensors of a file
    for tensor in reader.names():
        name = reader.text(_MOST_NAME)
        places[tensor] = names.setdefault(name, name)
        if len(places) > MAX_TENSORS or len(names) > MAX_FILES:
            raise ValueError(f"it has more than {MAX_TENSORS} tensors, or {MAX_FILES} files")
    return places
