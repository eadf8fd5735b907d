"""Folders of models are looked through: by names and sizes alone, within limits, and never beyond the folder."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from together.models.gguf.parts import first_files, part_count, part_names
from together.models.manifest import CONFIG
from together.models.names import is_gguf

MOST_ENTRIES = 4096  # of one place, files and folders
MOST_SECONDS = 2.0  # for one place: it may be on a disk that sleeps, or on another machine's


@dataclass(slots=True)
class Reach:
    """How much of a place is still looked at."""

    entries: int = MOST_ENTRIES
    until: float = field(default_factory=lambda: time.monotonic() + MOST_SECONDS)

    def take(self) -> bool:
        """Whether one more entry is; it counts as taken."""
        self.entries -= 1
        return self.entries >= 0 and time.monotonic() < self.until


@dataclass(frozen=True, slots=True)
class Located:
    """What one model has in a folder: its first file, or the folder itself, and the bytes of all its weights."""

    path: Path
    bytes: int


def folders_in(root: Path, depth: int, reach: Reach) -> Iterator[tuple[Path, list[Path]]]:
    """`root`, with all its links followed, and the folders in it, so many deep; each with what else lies in it.

    What is hidden or cannot be read, and links to folders are passed over.
    """
    try:
        top = root.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):  # it is not there, or its links are a circle
        return
    yield from _walk(top, depth, reach)


def file_size(path: Path, root: Path) -> int | None:
    """The size of a file that lies in `root`, also by a link; None for anything else. `root` has no links."""
    try:
        facts = path.lstat()
        if stat.S_ISLNK(facts.st_mode):
            facts = path.stat()
            if not path.resolve().is_relative_to(root):
                return None
    except (OSError, RuntimeError, ValueError):
        return None
    return facts.st_size if stat.S_ISREG(facts.st_mode) else None


def weights_in(files: list[Path], root: Path) -> dict[str, int]:
    """The names and sizes of those files that hold weights, and of config.json."""
    kept = [file for file in files if is_gguf(file.name) or file.suffix == ".safetensors" or file.name == CONFIG]
    sizes = {file.name: file_size(file, root) for file in kept}
    return {name: size for name, size in sizes.items() if size is not None}


def gguf_models(folder: Path, sizes: Mapping[str, int]) -> list[Located]:
    """The GGUF models of a folder, one for all parts of a split file; one that lacks parts is none yet."""
    found = []
    for name in first_files(sizes):
        names = part_names(name) if part_count(name) <= len(sizes) else []
        if name in names[:1] and all(other in sizes for other in names):
            found.append(Located(folder / name, sum(sizes[other] for other in names)))
    return found


def whole_folder(folder: Path, sizes: Mapping[str, int]) -> Located | None:
    """The model that a folder of safetensors is."""
    weights = [size for name, size in sizes.items() if name.endswith(".safetensors")]
    return Located(folder, sum(weights)) if weights and CONFIG in sizes else None


def _walk(folder: Path, depth: int, reach: Reach) -> Iterator[tuple[Path, list[Path]]]:
    try:
        with os.scandir(folder) as found:
            entries = sorted(takewhile(lambda _: reach.take(), found), key=lambda entry: entry.name)
    except OSError:
        return
    shown = {Path(entry.path): _is_folder(entry) for entry in entries if not entry.name.startswith(".")}
    yield folder, [path for path, inner in shown.items() if not inner]
    for path in (path for path, inner in shown.items() if inner and depth):
        yield from _walk(path, depth - 1, reach)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A folder itself: no link to one, and none of Windows' junctions."""
    try:
        return entry.is_dir(follow_symlinks=False) and os.path.realpath(entry.path) == entry.path
    except OSError:
        return False
