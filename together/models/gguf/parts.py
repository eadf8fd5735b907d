"""Names of GGUF files: which are parts of one model, what the model is called, and which are no model. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from together.models.names import is_gguf, model_name

_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
_OTHERS = re.compile(r"mmproj|imatrix", re.IGNORECASE)  # what sees pictures, and what was measured to quantize


def is_model_file(name: str) -> bool:
    """Whether a file of this name is a language model or a part of one; a Mac's companions of files are none."""
    return is_gguf(name) and not name.startswith(".") and _OTHERS.search(name) is None


def title_of(name: str) -> str:
    """What the model in a file is called: by its name, without the number of a part."""
    match = _SPLIT.fullmatch(name)
    return model_name(match[1] if match else name[: -len(".gguf")] if is_gguf(name) else name)


def part_count(name: str) -> int:
    """Of how many files the model is of which `name` is one, as its name says; at most 99,999."""
    match = _SPLIT.fullmatch(name)
    return int(match[3]) if match else 1


def part_names(name: str) -> list[str]:
    """The names of all files of the model of which `name` is one, in order."""
    match = _SPLIT.fullmatch(name)
    if match is None:
        return [name]
    start, _, count = match.groups()
    return [f"{start}-{number:05d}-of-{count}.gguf" for number in range(1, int(count) + 1)]


def own_names(name: str) -> list[str]:
    """What these files are called in the model, whatever letters their own names have."""
    title, count = title_of(name), len(part_names(name))
    if count == 1:
        return [f"{title}.gguf"]
    return [f"{title}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def first_files(names: Iterable[str]) -> list[str]:
    """Of each model among these files the first one, in order."""
    found: dict[tuple[str, int], str] = {}
    for name in sorted(names):
        match = _SPLIT.fullmatch(name)
        if is_model_file(name):
            found.setdefault((match[1] if match else name, part_count(name)), name)
    return list(found.values())
