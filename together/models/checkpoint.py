"""Which files of a folder are a model's weights, and the tensors that lie in them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from itertools import islice
from pathlib import Path
from typing import NoReturn

from together.errors import BrokenModel, UnsupportedModel
from together.models.folder import INDEX as INDEX
from together.models.folder import broken, inside, is_pointer, pointer, read_bytes, title, unreadable, without_weights
from together.models.gguf.sources import is_imported, read_sources, weights_file
from together.models.headers import MAX_TENSORS, FileHeader, Headers, TableReader, as_utf8, check_distinct
from together.models.names import HEAD, canonical_names
from together.models.remarks import remark
from together.models.units import ByteRange, PublishedFile, sample_places
from together.sentences import Sentence

SINGLE = "model.safetensors"
MAX_FILES = 10_000  # with weights
_NUMBERED = re.compile(r"(.+)-(\d{1,6})-of-(\d{1,6})\.safetensors")
_OTHERS = ("adapter_", "optimizer", "consolidated")  # of a trainer, or the same weights under a maker's own names


def choose_files(model: str, there: Collection[str], index: Mapping[str, str] | None) -> tuple[str, ...]:
    """The names of the weights' files among those that are `there`, in order; none where there are no weights.

    `index` maps tensors to files. Raises BrokenModel, naming the file, where one is missing that a layer needs; and
    for more than MAX_FILES.
    """
    there = [name for name in there if not name.startswith(".")]  # a Mac leaves ._files next to what it copies
    files = _chosen(model, there, index)
    if len(files) > MAX_FILES:
        raise BrokenModel(
            "{model} has {count} files with weights, more than {most}; choose another model",
            model=model,
            count=len(files),
            most=MAX_FILES,
        )
    return files


def _chosen(model: str, there: Collection[str], index: Mapping[str, str] | None) -> tuple[str, ...]:
    if SINGLE in there:
        return (SINGLE,)
    sets = _numbered(there)
    named = set(index.values()) if index else set()
    absent = sorted(named - set(there))
    if named and not absent:
        return tuple(sorted(named | _siblings(named, sets)))
    whole = [files for (_, count), files in sets.items() if len(files) == count]
    if len(whole) == 1:
        return tuple(sorted(whole[0].values()))
    if index and named & set(there):
        _require(model, index, absent)
        return tuple(sorted(named & set(there)))
    if sets:
        raise _gap(model, sets, len(whole))
    lone = [name for name in there if name.endswith(".safetensors") and not name.startswith(_OTHERS)]
    if absent and not lone:
        raise _absent(model, absent)
    return tuple(lone) if len(lone) == 1 else ()


def _numbered(there: Collection[str]) -> dict[tuple[str, int], dict[int, str]]:
    """Files called `model-00002-of-00003.safetensors`: by (model, 3) the file of each number."""
    found: dict[tuple[str, int], dict[int, str]] = {}
    for name in sorted(there):
        match = _NUMBERED.fullmatch(name)
        if match and not name.startswith(_OTHERS):
            found.setdefault((match[1], int(match[3])), {})[int(match[2])] = name
    return found


def _siblings(named: set[str], sets: Mapping[tuple[str, int], Mapping[int, str]]) -> set[str]:
    """The other files of the sets that the index names a part of."""
    return {name for files in sets.values() if named & set(files.values()) for name in files.values()}


def _require(model: str, index: Mapping[str, str], absent: list[str]) -> None:
    """A missing file matters unless it holds nothing that a layer needs; whether a head is needed shows later."""
    names = canonical_names(index)
    needed = {file for name, file in index.items() if names.get(name, HEAD) != HEAD}
    if needed & set(absent):
        raise _absent(model, sorted(needed & set(absent)))


def _absent(model: str, absent: list[str]) -> BrokenModel:
    return BrokenModel(
        "{model} lacks {files}, named by {table}; run its download again",
        model=model,
        files=_listed(absent),
        table=INDEX,
    )


def _gap(model: str, sets: Mapping[tuple[str, int], Mapping[int, str]], whole: int) -> BrokenModel:
    if whole:
        return BrokenModel(
            "{model} has several sets of weights ({shown}) and no {table} that names one; keep one set",
            model=model,
            shown=tuple(f"{stem}-…-of-{count}" for stem, count in sets),
            table=INDEX,
        )
    (stem, count), files = max(sets.items(), key=lambda item: (len(item[1]) / item[0][1], item[0]))
    width = len(_digits(next(iter(files.values()))))
    numbers = (f"{stem}-{i:0{width}}-of-{count:0{width}}.safetensors" for i in range(1, count + 1) if i not in files)
    lacking = _listed(list(islice(numbers, 100)))
    return BrokenModel(
        "{model} lacks {lacking} of its {count} files; run its download again",
        model=model,
        lacking=lacking,
        count=count,
    )


def _digits(name: str) -> str:
    match = _NUMBERED.fullmatch(name)
    assert match is not None
    return match[2]


def _listed(names: list[str]) -> Sentence:
    shown = "{names} and {more} more files" if len(names) > 3 else "{names}"
    return Sentence(shown, (("names", tuple(names[:3])), ("more", len(names) - 3)))


_MAP = "weight_map"
_MOST_ELSE = 2**16  # bytes of whatever else the index says
_MOST_NAME = 2048  # bytes of a file's name in it


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder has weights as they are published."""
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file() or is_imported(folder)


def checkpoint_headers(folder: Path) -> tuple[FileHeader, ...]:
    """The checked headers of the model's files, by name. Raises BrokenModel or UnsupportedModel."""
    model = Headers()
    if is_imported(folder):
        found = (model.check(folder / s.name, s.table.encode(), s.size) for s in read_sources(folder))
        return tuple(sorted(found, key=lambda header: header.file.name))
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
    remark("%s; it is passed over", index)
    return chosen


def checkpoint_files(folder: Path) -> tuple[PublishedFile, ...]:
    """The model's safetensors files with their samples, by name. Raises as `checkpoint_headers` does."""
    return with_samples(checkpoint_headers(folder))


def with_samples(headers: tuple[FileHeader, ...]) -> tuple[PublishedFile, ...]:
    """The files of these headers with their samples. Raises BrokenModel for a file that changed meanwhile."""
    places = sample_places(headers)
    return tuple(
        PublishedFile(header.file.name, header.size, header.raw, _read(header.file, places[header.file.name]))
        for header in headers
    )


def _read(file: Path, places: tuple[ByteRange, ...]) -> bytes:
    found = bytearray()
    try:
        with weights_file(file.parent, file.name).open("rb", buffering=0) as stream:
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
            "{model} has several safetensors files ({files}, …) and no {table} that says which are the model; put the "
            "index beside them",
            model=title(folder),
            files=tuple(several[:3]),
            table=INDEX,
        )
    raise BrokenModel(
        "{folder} has neither {single} nor {table}; choose a folder that holds a model's weights",
        folder=str(folder),
        single=SINGLE,
        table=INDEX,
    )


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
        raise broken(file, "it is not an index in JSON ({error})", error=str(error)) from error
    if not places:
        raise broken(file, "it has no {table} of file names", table=_MAP)
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
