"""GGUF headers byte by byte, so that a test can write what no library would."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from together.models.folder import unreadable
from together.models.gguf.header import GgufHeader, parse_header
from together.weights.imports import file_source

U8, BOOL, TEXT, ARRAY, F32, U32 = 0, 7, 8, 9, 6, 4


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return u64(len(data)) + data


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    """One of metadata."""
    return text(key) + u32(kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return u32(kind) + u64(count) + values


def tensor(name: str, shape: Sequence[int], offset: int = 0, kind: int = 0) -> bytes:
    """A tensor's description; `shape` as GGUF has it, inputs first."""
    return text(name) + u32(len(shape)) + b"".join(map(u64, shape)) + u32(kind) + u64(offset)


def header(
    entries: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    *,
    begin: bytes = b"GGUF" + u32(3),
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A whole header; `counts` are of tensors and entries, where they are to lie."""
    said = counts or (len(tensors), len(entries))
    return begin + u64(said[0]) + u64(said[1]) + b"".join(entries) + b"".join(tensors)


def read_header(file: Path) -> GgufHeader:
    """The header of a whole file, as an import reads it."""
    try:
        size = file.stat().st_size
    except OSError as error:
        raise unreadable(file, error) from error
    return parse_header(file, file_source(file), size)
