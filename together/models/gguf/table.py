"""The table of a GGUF file's tensors: names, types, shapes and places, as JSON. It stands for the header in a manifest.

The header itself has the whole vocabulary, up to 10 MB; the table names it by its hash. `version` is that of the
reader: what it makes of a file is part of the model's identity, as fingerprints cover the table.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

from together.errors import UnsupportedModel
from together.models.family import Family
from together.models.folder import broken
from together.models.gguf.families import canonical_name
from together.models.gguf.header import GgufHeader, GgufTensor
from together.models.gguf.kinds import KINDS, MARK, BlockType
from together.wording import quoted

READER = "gguf@1"


def table_of(file: Path, header: GgufHeader, family: Family) -> bytes:
    """Raises BrokenModel for a tensor whose shape does not fit its type, UnsupportedModel for an unknown type."""
    entries: dict[str, object] = {"__metadata__": {"reader": READER, "header": header.sha256}}
    for tensor in header.tensors:
        kind = KINDS.get(tensor.kind)
        if kind is None:
            message = "{file} has tensors of the type {kind}, which is not known here; choose another file"
            raise UnsupportedModel(message, file=file.name, kind=tensor.kind)
        name = canonical_name(family, tensor.name)
        if name in entries:
            raise broken(file, "tensor {tensor} is there twice", tensor=quoted(name))
        start = header.data_start + tensor.offset
        entries[name] = {
            "dtype": MARK + kind.name,
            "shape": tensor.shape,
            "data_offsets": [start, start + _nbytes(file, tensor, kind)],
        }
    return json.dumps(entries, separators=(",", ":")).encode()


def _nbytes(file: Path, tensor: GgufTensor, kind: BlockType) -> int:
    if not tensor.shape or tensor.shape[-1] % kind.weights:
        said = "tensor {tensor} has rows of {shape}, which is no whole number of blocks of {kind}"
        raise broken(file, said, tensor=quoted(tensor.name), shape=quoted(tensor.shape), kind=kind.name)
    return prod(tensor.shape) // kind.weights * kind.nbytes
