"""What an imported GGUF model's folder says of its files: where they lie, what they were, and their tables of tensors.

The folder has the small files that a model's folder has; the weights stay where they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from together.errors import BrokenModel
from together.jsonfile import BrokenFile, read_json
from together.models.folder import inside

SOURCES = "gguf.json"
_MOST = 48 * 2**20  # bytes


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file: its name in the model, its path, its size in bytes, its time of change in ns, and its table.

    The table is what `table.py` makes of it. Programs that keep files by their hashes give them no names.
    """

    name: str
    path: str
    size: int
    changed: int
    table: str


def is_imported(folder: Path) -> bool:
    """Whether the model's weights lie in GGUF files elsewhere."""
    return (folder / SOURCES).is_file()


def imported_file(folder: Path) -> str:
    """The path of the first file of an imported model; empty where it is none, or says nothing."""
    if not is_imported(folder):
        return ""
    try:
        return next((source.path for source in listed_sources(folder)), "")
    except BrokenModel:
        return ""


def read_sources(folder: Path) -> tuple[GgufFile, ...]:
    """The files of an imported model, all unchanged. Raises BrokenModel."""
    found = listed_sources(folder)
    for source in found:
        there = stamp(Path(source.path))
        if there is None:
            raise BrokenModel("{file} is gone; bring it back, or load it from where it is now", file=source.path)
        if there != (source.size, source.changed):
            raise BrokenModel("{file} was changed since it was loaded; load it again", file=source.path)
    return found


def listed_sources(folder: Path) -> tuple[GgufFile, ...]:
    """The files of an imported model as they were. Raises BrokenModel."""
    try:
        return read_json(folder / SOURCES, tuple[GgufFile, ...], _MOST) or ()
    except BrokenFile as error:
        raise BrokenModel("{error}; delete its folder and load the file again", error=str(error)) from error


def stamp(file: Path) -> tuple[int, int] | None:
    """Size and time of change of a file; None where there is none."""
    try:
        facts = file.stat()
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns


def weights_file(folder: Path, name: str) -> Path:
    """The path of one of the model's files with weights. Raises BrokenModel for a name that leads elsewhere."""
    if is_imported(folder):
        found = next((Path(source.path) for source in read_sources(folder) if source.name == name), None)
        if found is not None:
            return found
    return inside(folder, name)
