"""GGUF files as models: a folder in `home/imports` with what their metadata says, made once for each file.

The weights stay where they are. Words are converted in a child process: that takes seconds, and libraries of 100 MB.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic_core import to_json

from together.errors import BadSetting, BrokenModel, LoadFailed
from together.models.folder import read_begin, unreadable
from together.models.gguf.header import MAGIC, Source
from together.models.gguf.model import GgufModel, GgufPart, read_model
from together.models.gguf.parts import first_files, own_names, part_names, title_of
from together.models.gguf.refusals import check_nothing_else
from together.models.gguf.sources import SOURCES, GgufFile, listed_sources, read_sources, stamp
from together.models.gguf.table import READER
from together.models.manifest import CONFIG
from together.models.names import MANIFEST, is_gguf
from together.models.reading import Published
from together.models.spec import described as spec_of
from together.models.spec import require_runnable
from together.weights.gguf_words import write_words
from together.weights.part import writing

_WITHIN = 120.0  # seconds for the words of the largest vocabulary, on a busy machine
_LOCKS = ".locks"


def imported(file: Path, home: Path, title: str = "") -> Path:
    """The folder that stands for a GGUF file, or for all parts of a split one; made where it is not there yet.

    `title` is what the model is called, where the file's name does not say it. Raises BrokenModel or UnsupportedModel
    for the file, LoadFailed or DiskFull. Blocking, for some seconds.
    """
    files = parts_of(file)
    folder = _folder(files, home, title or title_of(file.name))
    if not (folder / SOURCES).is_file():
        with _alone(folder):
            if not (folder / SOURCES).is_file():
                _make(files, folder)
                _forget(files, folder)
    return folder


def imports(home: Path) -> list[Path]:
    """The folders of all files that were imported, also of those that are gone or were changed since."""
    found = sorted((home / "imports").glob(f"*/*/{SOURCES}"))
    return [file.parent for file in found if not file.parent.name.startswith(".")]


def gguf_in(path: Path) -> Path | None:
    """The GGUF file that `path` is, by its name or its first bytes, or that a folder without another model has.

    Raises BadSetting for a folder with several.
    """
    if path.is_file():
        return path if is_gguf(path.name) or read_begin(path, len(MAGIC)) == MAGIC else None
    if (path / MANIFEST).is_file() or any(path.glob("*.safetensors")):
        return None
    try:
        files = first_files(file.name for file in path.iterdir() if file.is_file())
    except OSError as error:
        raise unreadable(path, error) from error
    if len(files) > 1:
        raise BadSetting(
            "{folder} has {count} GGUF models; choose one of {files}",
            folder=str(path),
            count=len(files),
            files=tuple(files),
        )
    return path / files[0] if files else None


def parts_of(file: Path) -> list[Path]:
    """The files of a model of which `file` is one, in order. Raises BrokenModel where one is missing."""
    file = file.absolute()
    parts = [file.with_name(name) for name in part_names(file.name)]
    if len(parts) == 1:
        return [file]
    missing = next((part.name for part in parts if not part.is_file()), None)
    if missing is not None or not parts:
        raise BrokenModel(
            "{file} is one of {count} parts, and {missing} is not beside it; get all parts",
            file=file.name,
            count=len(parts),
            missing=missing or file.name,
        )
    return parts


def _folder(files: list[Path], home: Path, title: str) -> Path:
    """By name, paths, sizes, times and the reader's version: a changed file is another model."""
    digest = hashlib.sha256(f"{READER} {title}\n".encode())
    for file in files:
        digest.update(f"{file} {stamp(file)}\n".encode(errors="backslashreplace"))
    return home / "imports" / digest.hexdigest()[:16] / title


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one process and thread at a time makes this folder. Raises LoadFailed, DiskFull."""
    locks = folder.parent.parent / _LOCKS
    with writing(folder.parent, folder.name):
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{folder.parent.name}.lock", thread_local=False)
        try:
            lock.acquire(timeout=2 * _WITHIN)
        except Timeout:
            raise LoadFailed("another process reads {file}; try again", file=folder.name) from None
    try:
        yield
    finally:
        lock.release()


def _make(files: list[Path], folder: Path) -> None:
    """What another process left behind is removed first. The folder's lock is held."""
    model, sources = described(files, folder.name)
    with writing(folder.parent, folder.name):
        shutil.rmtree(folder.parent, ignore_errors=True)
        draft = folder.with_name(".new")
        draft.mkdir(parents=True)
    try:
        fill(draft, folder.name, model, files[0], sources[0].size)
        with writing(folder.parent, folder.name):
            (draft / SOURCES).write_bytes(to_json(sources))
            os.replace(draft, folder)
    except BaseException:
        shutil.rmtree(folder.parent, ignore_errors=True)
        raise


def described(files: list[Path], name: str) -> tuple[GgufModel, tuple[GgufFile, ...]]:
    """The model in these files, and what to remember of them. Raises BrokenModel or UnsupportedModel."""
    stamps = [stamp(file) or (0, 0) for file in files]
    names = [f"{name}.gguf"] if len(files) == 1 else own_names(files[0].name)
    parts = [
        GgufPart(own, file, facts[0], file_source(file)) for own, file, facts in zip(names, files, stamps, strict=True)
    ]
    model = read_model(name, parts)
    return model, tuple(
        GgufFile(part.name, str(part.file), *facts, header.raw.decode())
        for part, facts, header in zip(parts, stamps, model.headers, strict=True)
    )


def file_source(file: Path) -> Source:
    """Ranges of a file on a disk. Raises BrokenModel where it cannot be read."""

    def read(start: int, stop: int) -> bytes:
        try:
            with file.open("rb") as stream:
                stream.seek(start)
                return stream.read(stop - start)
        except OSError as error:
            raise unreadable(file, error) from error

    return read


def fill(folder: Path, name: str, model: GgufModel, header: Path, size: int) -> None:
    """Write config.json into `folder` and, once it is clear that the model runs here, its words.

    `header` begins as its first file does, which has `size` bytes. Raises BrokenModel, UnsupportedModel, LoadFailed or
    DiskFull.
    """
    with writing(folder, name):
        (folder / CONFIG).write_bytes(config_bytes(model.config))
    found = spec_of(folder, Published(name, "", "", model.headers))
    require_runnable(found)
    check_nothing_else(name, found.config, found.tensors)
    _convert_words(header, size, folder, name)


def config_bytes(config: dict[str, Any]) -> bytes:
    """The file config.json, with the same bytes on every machine: a fingerprint covers them."""
    return json.dumps(config, indent=1).encode()


def _forget(files: list[Path], folder: Path) -> None:
    """Remove what these files were imported as before they were changed or moved."""
    places, tables = {str(file) for file in files}, _tables(folder)
    for other in imports(folder.parent.parent.parent):
        if other != folder and not _is_current(other) and (places & _places(other) or _tables(other) == tables):
            with suppress(OSError):
                shutil.rmtree(other.parent)


def _is_current(folder: Path) -> bool:
    try:
        return bool(read_sources(folder))
    except BrokenModel:
        return False


def _places(folder: Path) -> set[str]:
    return {source.path for source in _listed(folder)}


def _tables(folder: Path) -> list[str]:
    return [source.table for source in _listed(folder)]


def _listed(folder: Path) -> tuple[GgufFile, ...]:
    try:
        return listed_sources(folder)
    except BrokenModel:
        return ()


def _convert_words(file: Path, size: int, folder: Path, name: str) -> None:
    """Write the tokenizer's files into `folder`."""
    try:
        asyncio.run(asyncio.wait_for(write_words(file, size, folder, name), _WITHIN))
    except TimeoutError:
        raise LoadFailed("the words of {model} took more than {seconds} s", model=name, seconds=_WITHIN) from None
