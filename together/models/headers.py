"""Safetensors headers, read and checked: every size and offset against the file. Knows no model and reads no weights.

Format: 8 bytes little-endian length, that many bytes of JSON `{name: {dtype, shape, data_offsets}}`, then the data.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from together.models.folder import broken

MAX_HEADER = 100_000_000  # bytes; the limit of the reference implementation
ELEMENT_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint: where its bytes lie. `start` and `stop` count from the file's first byte."""

    name: str
    file: Path
    dtype: str  # as safetensors writes it: F32, BF16, …
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class FileHeader:
    """A checked header: its raw bytes (for the fingerprint) and its tensors in the order of their offsets."""

    file: Path
    raw: bytes
    tensors: tuple[TensorInfo, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.tensors[-1].stop if self.tensors else 8 + len(self.raw)


def read_header(file: Path) -> FileHeader:
    """Read and check one file's header. Raises BrokenModel naming the file and the reason."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            raw = stream.read(header_length(file, stream.read(8), size))
    except OSError as error:
        raise broken(file, f"cannot be read ({error.strerror or error})") from error
    return check_header(file, raw, size)


def check_header(file: Path, raw: bytes, size: int) -> FileHeader:
    """Check a header against the `size` of its file, in bytes. Reads nothing: `file` is what errors and tensors name.

    Raises BrokenModel naming the file and the reason.
    """
    entries = _parse(file, raw)
    data = 8 + len(raw)
    tensors = [_tensor(file, name, entry, data) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    _check_layout(file, tensors, data, size)
    return FileHeader(file, raw, tuple(tensors))


def check_distinct(headers: Iterable[FileHeader]) -> None:
    """Raises BrokenModel if a tensor is in two files."""
    found: dict[str, str] = {}
    for tensor in (tensor for header in headers for tensor in header.tensors):
        if tensor.name in found:
            raise broken(tensor.file, f"tensor {tensor.name!r} is in {found[tensor.name]} as well")
        found[tensor.name] = tensor.file.name


def header_length(file: Path, prefix: bytes, size: int) -> int:
    """Bytes of the header, from the file's first 8 bytes and its size. Raises BrokenModel for a length that lies."""
    if len(prefix) < 8:
        raise broken(file, f"it has {size} bytes, too few for a safetensors file")
    length: int = struct.unpack("<Q", prefix)[0]
    if length > MAX_HEADER:
        raise broken(file, f"its header claims {length} bytes, more than {MAX_HEADER}")
    if 8 + length > size:
        raise broken(file, f"its header claims {length} bytes and the file has {size}")
    return length


def _parse(file: Path, raw: bytes) -> dict[str, Any]:
    """The header's entries without `__metadata__`."""
    try:
        entries = json.loads(raw, object_pairs_hook=lambda pairs: _unique(file, pairs))
    except (ValueError, RecursionError) as error:
        raise broken(file, f"its header is not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise broken(file, "its header is not a table of tensors")
    entries.pop("__metadata__", None)
    return entries


def _unique(file: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        raise broken(file, f"its header names {next(n for n in names if names.count(n) > 1)!r} twice")
    return table


def _tensor(file: Path, name: str, entry: object, data: int) -> TensorInfo:
    """One checked entry; `data` is where the data begin in the file."""
    if not isinstance(entry, dict):
        raise broken(file, f"tensor {name!r} is not described")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ELEMENT_BYTES:
        raise broken(file, f"tensor {name!r} has the unknown dtype {dtype!r}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise broken(file, f"tensor {name!r} has a bad shape or bad offsets")
    start, stop = offsets
    if stop - start != prod(shape) * ELEMENT_BYTES[dtype]:
        raise broken(file, f"tensor {name!r} has {stop - start} bytes, which is not {dtype} {shape}")
    return TensorInfo(name, file, dtype, tuple(shape), data + start, data + stop)


def _sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_layout(file: Path, tensors: list[TensorInfo], data: int, size: int) -> None:
    """The tensors must fill the data exactly, one after the other, as the format demands."""
    position = data
    for tensor in tensors:
        if tensor.start != position:
            raise broken(file, f"tensor {tensor.name!r} overlaps another or leaves a gap")
        position = tensor.stop
    if position != size:
        raise broken(file, f"its tensors end at byte {position} and the file at {size}")
