"""The safetensors files of a checkpoint as it was published: one file, or several and an index.

Reads headers and samples of the weights. Knows no manifest.
"""

from __future__ import annotations

from pathlib import Path

from together.errors import BrokenModel, UnsupportedModel
from together.models.folder import broken, inside, read_json, title
from together.models.headers import FileHeader, check_distinct, read_header
from together.models.original import OriginalFile, sample_places
from together.models.units import Piece

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder has weights as they are published."""
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file()


def checkpoint_headers(folder: Path) -> tuple[FileHeader, ...]:
    """The checked headers of the model's safetensors files, by name. Raises BrokenModel or UnsupportedModel."""
    if inside(folder, SINGLE).is_file():
        return (read_header(inside(folder, SINGLE)),)
    if not inside(folder, INDEX).is_file():
        raise _no_weights(folder)
    places = _index(folder)
    headers = tuple(read_header(inside(folder, name)) for name in sorted(set(places.values())))
    _check_index(folder, places, headers)
    return headers


def checkpoint_files(folder: Path) -> tuple[OriginalFile, ...]:
    """The model's safetensors files with their samples, by name. Raises as `checkpoint_headers` does."""
    headers = checkpoint_headers(folder)
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


def _index(folder: Path) -> dict[str, str]:
    places = read_json(folder, INDEX).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise broken(folder / INDEX, "it has no weight_map of file names")
    return places


def _check_index(folder: Path, places: dict[str, str], headers: tuple[FileHeader, ...]) -> None:
    check_distinct(headers)
    found = {tensor.name: tensor.file.name for header in headers for tensor in header.tensors}
    for name, file in places.items():
        if found.get(name) != file:
            raise broken(folder / INDEX, f"it places {name!r} in {file}, which does not have it")
