"""A GGUF model in one or several files, from their headers alone: its configuration and its tables of tensors.

The files lie on a disk or on a hub: only ranges of them are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from together.errors import BrokenModel
from together.models.folder import broken
from together.models.gguf.config import ROPE_FACTORS, architecture_of, config_of
from together.models.gguf.families import family_of
from together.models.gguf.header import GgufHeader, Source, parse_header
from together.models.gguf.refusals import check_kind, check_settings, check_words
from together.models.gguf.table import table_of
from together.models.headers import FileHeader, Headers, check_distinct

_MOST_FACTORS = 4096  # half the size of a head


@dataclass(frozen=True, slots=True)
class GgufPart:
    """A file of a model: its name in the model, what errors name, its size in bytes, and how to read ranges of it."""

    name: str
    file: Path
    size: int
    source: Source


@dataclass(frozen=True, slots=True)
class GgufModel:
    """config.json, and a header for each file whose raw bytes are its table."""

    config: dict[str, Any]
    headers: tuple[FileHeader, ...]


def read_model(name: str, parts: Sequence[GgufPart]) -> GgufModel:
    """Raises BrokenModel or UnsupportedModel, and what the sources raise."""
    headers = [parse_header(part.file, part.source, part.size) for part in parts]
    metadata = headers[0].metadata
    check_kind(name, metadata)
    family = family_of(architecture_of(name, metadata), metadata)
    check_settings(name, metadata, family)
    for number, (part, header) in enumerate(zip(parts, headers, strict=True)):
        _check_part(part, header, number, len(parts))
    tables = [table_of(part.file, header, family) for part, header in zip(parts, headers, strict=True)]
    model = Headers()
    checked = tuple(
        model.check(Path(name, part.name), table, part.size) for part, table in zip(parts, tables, strict=True)
    )
    check_distinct(checked)
    shapes = {tensor.name: tensor.shape for header in checked for tensor in header.tensors}
    config = config_of(name, metadata, shapes, _factors(checked, parts))
    check_words(name, metadata, config["vocab_size"])
    return GgufModel(config, checked)


def _check_part(part: GgufPart, header: GgufHeader, number: int, count: int) -> None:
    """Raises BrokenModel unless the file says that it is this one of so many."""
    told = header.metadata.get("split.count", 1)
    own = header.metadata.get("split.no", 0)
    if max(1, told if type(told) is int else 1) != count or (count > 1 and own != number):
        raise BrokenModel(
            "{file} says that it is part {own} of {told}, and it is taken for part {number} of {count}; give all parts "
            "the names that they were published with, as model-00001-of-00003.gguf",
            file=part.file.name,
            own=own + 1 if type(own) is int else 1,
            told=told if type(told) is int else 1,
            number=number + 1,
            count=count,
        )


def _factors(headers: Sequence[FileHeader], parts: Sequence[GgufPart]) -> list[float]:
    """What the tensor ROPE_FACTORS holds; nothing without it. Raises BrokenModel."""
    places = zip(headers, parts, strict=True)
    found = next(((t, part) for header, part in places for t in header.tensors if t.name == ROPE_FACTORS), None)
    if found is None:
        return []
    tensor, part = found
    if tensor.dtype != "F32" or tensor.elements > _MOST_FACTORS:
        said = "{tensor} is {dtype} of {count}, not F32 of at most {most}"
        raise broken(
            tensor.file, said, tensor=tensor.name, dtype=tensor.dtype, count=tensor.elements, most=_MOST_FACTORS
        )
    data = part.source(tensor.start, tensor.stop)
    if len(data) != tensor.nbytes:
        raise broken(tensor.file, "it ends within tensor {tensor}", tensor=tensor.name)
    return [float(value) for value in np.frombuffer(data, "<f4")]
