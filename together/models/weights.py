"""Which safetensors files of a folder or repository are the model's weights. Pure: decides by names and the index.

An index is a hint: it may name files of another sharding, or tensors that no file has. What the files' headers hold
decides in the end. Without an index, numbered files are one model if none of them is missing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from itertools import islice

from together.errors import BrokenModel
from together.models.canonical import canonical_names
from together.models.names import HEAD
from together.models.sizes import INDEX as INDEX

SINGLE = "model.safetensors"
MAX_FILES = 10_000  # with weights
_NUMBERED = re.compile(r"(.+)-(\d{1,6})-of-(\d{1,6})\.safetensors")
_OTHERS = ("adapter_", "optimizer", "consolidated")  # of a trainer, or the same weights under a maker's own names


def choose_files(model: str, there: Collection[str], index: Mapping[str, str] | None) -> tuple[str, ...]:
    """The names of the weights' files among those that are `there`, in order; none where there are no weights.

    `index` maps tensors to files. Raises BrokenModel, naming the file, where one is missing that a layer needs; and
    for more than MAX_FILES.
    """
    there = [name for name in there if not name.startswith(".")]  # a Mac leaves ._files beside what it copies
    files = _chosen(model, there, index)
    if len(files) > MAX_FILES:
        raise BrokenModel(f"{model} has {len(files)} files with weights, more than {MAX_FILES}; choose another model")
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
        f"{model} lacks {_listed(absent)}, named by {INDEX}; put it beside the others: run its download again"
    )


def _gap(model: str, sets: Mapping[tuple[str, int], Mapping[int, str]], whole: int) -> BrokenModel:
    if whole:
        shown = ", ".join(f"{stem}-…-of-{count}" for stem, count in sets)
        return BrokenModel(f"{model} has several sets of weights ({shown}) and no {INDEX} that names one; keep one set")
    (stem, count), files = max(sets.items(), key=lambda item: (len(item[1]) / item[0][1], item[0]))
    width = len(_digits(next(iter(files.values()))))
    numbers = (f"{stem}-{i:0{width}}-of-{count:0{width}}.safetensors" for i in range(1, count + 1) if i not in files)
    lacking = _listed(list(islice(numbers, 100)))
    return BrokenModel(f"{model} lacks {lacking} of its {count} files; run its download again")


def _digits(name: str) -> str:
    match = _NUMBERED.fullmatch(name)
    assert match is not None
    return match[2]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more files" if len(names) > 3 else "")
