"""The safetensors files of a checkpoint as it was published: one file, or several and an index.

Reads headers and samples of the weights. Knows no manifest.
"""

from __future__ import annotations

from pathlib import Path

from together.errors import BrokenModel, UnsupportedModel
from together.models.folder import broken, inside, read_bytes, title
from together.models.headers import MAX_TENSORS, FileHeader, Headers, check_distinct
from together.models.original import OriginalFile, sample_places
from together.models.sizes import INDEX as INDEX
from together.models.tables import TableReader
from together.models.units import Piece
from together.quoting import quoted

SINGLE = "model.safetensors"
MAX_FILES = 10_000  # with weights
_MAP = "weight_map"
_MOST_ELSE = 2**16  # bytes of whatever else the index says
_MOST_NAME = 2048  # bytes of a file's name in it


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder has weights as they are published."""
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file()


def checkpoint_headers(folder: Path) -> tuple[FileHeader, ...]:
    """The checked headers of the model's safetensors files, by name. Raises BrokenModel or UnsupportedModel."""
    if inside(folder, SINGLE).is_file():
        return (Headers().read(inside(folder, SINGLE)),)
    if not inside(folder, INDEX).is_file():
        raise _no_weights(folder)
    places = weight_map(inside(folder, INDEX), read_bytes(folder, INDEX))
    model = Headers()
    headers = tuple(model.read(inside(folder, name)) for name in sorted(set(places.values())))
    _check_index(folder, places, headers)
    return headers


def checkpoint_files(folder: Path) -> tuple[OriginalFile, ...]:
    """The model's safetensors files with their samples, by name. Raises as `checkpoint_headers` does."""
    return sampled_files(checkpoint_headers(folder))


def sampled_files(headers: tuple[FileHeader, ...]) -> tuple[OriginalFile, ...]:
    """The files of these headers with their samples. Raises BrokenModel."""
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
        raise broken(file, f"cannot be read ({error.strerror or error})") from error
    if len(found) != sum(place.size for place in places):
        raise broken(file, "it became shorter while it was read")
    return bytes(found)


def _no_weights(folder: Path) -> Exception:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        return UnsupportedModel(
            f"{title(folder)} has only pickle weights (*.bin), which can run code; choose a safetensors version of it"
        )
    return BrokenModel(f"{folder} has neither {SINGLE} nor {INDEX}; choose a folder that holds a model's weights")


def weight_map(file: Path, index: bytes) -> dict[str, str]:
    """Which file has which tensor, as an index says; `file` is what an error names. Raises BrokenModel."""
    places: dict[str, str] = {}
    reader = TableReader(index)
    try:
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


def _check_index(folder: Path, places: dict[str, str], headers: tuple[FileHeader, ...]) -> None:
    check_distinct(headers)
    found = {tensor.name: tensor.file.name for header in headers for tensor in header.tensors}
    for name, file in places.items():
        if found.get(name) != file:
            raise broken(folder / INDEX, f"it places {quoted(name)} in {quoted(file)}, which does not have it")
