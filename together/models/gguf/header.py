"""GGUF headers, read in pieces and checked: metadata and descriptions of tensors, no weights.

The format is described in ggml's docs/gguf.md. Versions 2 and 3 differ in nothing that is read here.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeAlias

from together.errors import BrokenModel
from together.models.folder import POINTER, broken, pointer, title
from together.models.headers import MAX_SIZE, MOST_KEY
from together.wording import quoted

Value: TypeAlias = "bool | int | float | str | list[Value]"
Source = Callable[[int, int], bytes]  # the bytes of a file from `start` to `stop`

MAX_HEADER = 64 * 2**20  # bytes; the longest published have 17 MB, nearly all of it tokens and merges
MAX_KEYS = 10_000  # of metadata; usual are 30
MAX_VALUES = 2_000_000  # in all arrays together; Gemma 4's tokens, scores, types and merges are 1.3 million
MAX_TENSORS = 30_000  # of one file; usual are 300 to 2,000, and 18,000 where each of 128 experts is a tensor
MAX_DIMENSIONS = 4  # as ggml has it
MAX_DEPTH = 4  # of arrays in arrays
FIRST = 2**20  # bytes that are read at first; each further reading doubles what is here

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = "general.alignment"
_USUAL_ALIGNMENT = 32
_TEXT, _ARRAY, _BOOL = 8, 9, 7
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d"}  # of `struct`
_LEAST = {kind: struct.calcsize(f"<{code}") for kind, code in _CODES.items()} | {_TEXT: 8, _ARRAY: 12}  # bytes
_LEAST_KEY = 8 + 4 + 1
_LEAST_TENSOR = 8 + 4 + 4 + 8
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of the file. `shape` has the outputs first, as torch does; `offset` counts from `data_start`."""

    name: str
    kind: int  # ggml's number of its type
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A checked header. Whether the tensors fill the data is not known here: that needs the sizes of their kinds."""

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[GgufTensor, ...]  # as the file lists them
    data_start: int
    size: int  # bytes of the header; padding follows up to `data_start`
    sha256: str  # of these bytes


def parse_header(file: Path, source: Source, size: int) -> GgufHeader:
    """Read a header from `source`, a few ranges that grow, of a file with `size` bytes; `file` is what errors name.

    Raises BrokenModel, and what `source` raises.
    """
    reader = _Reader(file, source, size)
    version = _version(reader)
    tensors, keys = reader.number(_U64), reader.number(_U64)
    reader.check_count(tensors, _LEAST_TENSOR, MAX_TENSORS, "tensors")
    reader.check_count(keys, _LEAST_KEY, MAX_KEYS, "entries of metadata")
    metadata = _metadata(reader, keys)
    listed = _tensors(reader, tensors)
    alignment = _alignment(file, metadata)
    start = -(-reader.at // alignment) * alignment
    for tensor in listed:
        _check_offset(file, tensor, alignment, size - start)
    return GgufHeader(version, metadata, listed, start, reader.at, reader.sha256())


class _Reader:
    """A cursor over the first bytes of a file, which are fetched as they are needed."""

    def __init__(self, file: Path, source: Source, size: int) -> None:
        self.file = file
        self.at = 0
        self._source = source
        self._size = size
        self._most = min(size, MAX_HEADER)
        self._data = bytearray()
        self._values = MAX_VALUES

    def sha256(self) -> str:
        """Of all bytes before the cursor."""
        return hashlib.sha256(memoryview(self._data)[: self.at]).hexdigest()

    def begin(self, length: int) -> bytes:
        """The next bytes, or fewer if there are not so many; the cursor stays."""
        self._fetch(min(self.at + length, self._most))
        return bytes(self._data[self.at : self.at + length])

    def skip(self, length: int) -> int:
        """Pass over `length` bytes, all of which are here then. Where they begin."""
        start = self.at
        if start + length > len(self._data):
            self._fetch(start + length)
        self.at = start + length
        return start

    def number(self, kind: struct.Struct) -> int:
        value: int = kind.unpack_from(self._data, self.skip(kind.size))[0]
        return value

    def name(self, what: str) -> str:
        """A text that names something."""
        length = self.number(_U64)
        if length > MOST_KEY:
            fault = "its header has a {what} of {length} bytes, more than {most}"
            raise broken(self.file, fault, what=what, length=length, most=MOST_KEY)
        return self._text(length, what)

    def value(self, kind: int, key: str, depth: int = 0) -> Value:
        """The value of this kind that begins here."""
        if kind == _TEXT:
            return self._text(self.number(_U64), key)
        if kind == _ARRAY:
            return self._array(key, depth + 1)
        return self._plain(kind, 1, key)[0]

    def check_count(self, count: int, least: int, most: int, what: str) -> None:
        """Refuse more than the header could hold at `least` bytes each, before anything is read for them."""
        if count > most or count * least > self._most - self.at:
            fault = "its header claims {count} {what}, more than it can hold"
            raise broken(self.file, fault, count=count, what=what)

    def _array(self, key: str, depth: int) -> list[Value]:
        if depth > MAX_DEPTH:
            raise broken(self.file, "{key} is nested too deep", key=quoted(key))
        kind, count = self.number(_U32), self.number(_U64)
        self._check_kind(kind, key)
        self.check_count(count, _LEAST[kind], self._values, f"values of {quoted(key)}")
        self._values -= count
        if kind == _TEXT:
            return self._texts(count, key)
        if kind == _ARRAY:
            return [self._array(key, depth + 1) for _ in range(count)]
        return self._plain(kind, count, key)

    def _texts(self, count: int, key: str) -> list[Value]:
        """Hundreds of thousands of tokens: the shortest way, and other threads have their turns between them."""
        found: list[Value] = []
        unpack, skip, data = _U64.unpack_from, self.skip, self._data
        try:
            for _ in range(count):
                start = skip(unpack(data, skip(8))[0])
                found.append(data[start : self.at].decode())
        except UnicodeDecodeError as error:
            raise self._not_text(key) from error
        return found

    def _text(self, length: int, key: str) -> str:
        start = self.skip(length)
        try:
            return self._data[start : self.at].decode()
        except UnicodeDecodeError as error:
            raise self._not_text(key) from error

    def _plain(self, kind: int, count: int, key: str) -> list[Value]:
        """Numbers, or truth values."""
        self._check_kind(kind, key)
        start = self.skip(count * _LEAST[kind])
        values = struct.unpack_from(f"<{count}{_CODES[kind]}", self._data, start)
        if kind != _BOOL:
            return list(values)
        if count and max(values) > 1:
            raise broken(self.file, "{key} is neither true nor false", key=quoted(key))
        return [value == 1 for value in values]

    def _check_kind(self, kind: int, key: str) -> None:
        if kind not in _LEAST:
            raise broken(self.file, "{key} has a value of the unknown type {kind}", key=quoted(key), kind=kind)

    def _not_text(self, key: str) -> BrokenModel:
        return broken(self.file, "{key} is not text in UTF-8", key=quoted(key))

    def _fetch(self, stop: int) -> None:
        """Have the bytes up to `stop`: at least, and soon all of a usual header."""
        have = len(self._data)
        if stop <= have:
            return
        if stop > self._most:
            said = "it ends within its header" if self._most == self._size else "its header has more than {most} bytes"
            raise broken(self.file, said, most=self._most)
        end = min(max(stop, 2 * have, FIRST), self._most)
        data = self._source(have, end)
        if len(data) != end - have:
            raise broken(self.file, "it ends at byte {end} and not at {size}", end=have + len(data), size=self._size)
        self._data += data


def _version(reader: _Reader) -> int:
    begin = reader.begin(len(POINTER))
    if begin == POINTER:
        raise pointer(reader.file)
    if not begin.startswith(MAGIC):
        raise broken(reader.file, "it is no GGUF file, for it begins with {begin}", begin=quoted(begin[:4]))
    reader.skip(len(MAGIC))
    version = reader.number(_U32)
    if version not in _VERSIONS:
        known = version if version < 2**16 else f"{int.from_bytes(version.to_bytes(4, 'little'))} (big-endian)"
        raise BrokenModel(
            "{folder}/{file} is a GGUF file of version {version}, which is not read here; get this model in version 3",
            folder=title(reader.file.parent),
            file=reader.file.name,
            version=known,
        )
    return version


def _metadata(reader: _Reader, count: int) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for _ in range(count):
        key = reader.name("key")
        if key in found:
            raise broken(reader.file, "its header names {key} twice", key=quoted(key))
        found[key] = reader.value(reader.number(_U32), key)
    return found


def _tensors(reader: _Reader, count: int) -> tuple[GgufTensor, ...]:
    found: dict[str, GgufTensor] = {}
    for _ in range(count):
        name = reader.name("tensor's name")
        if name in found:
            raise broken(reader.file, "its header names {key} twice", key=quoted(name))
        shape = _shape(reader, name)
        found[name] = GgufTensor(name, reader.number(_U32), shape, reader.number(_U64))
    return tuple(found.values())


def _shape(reader: _Reader, name: str) -> tuple[int, ...]:
    """GGUF's dimensions begin with the inputs."""
    dimensions = reader.number(_U32)
    if dimensions > MAX_DIMENSIONS:
        fault = "tensor {tensor} has {dimensions} dimensions, more than {most}"
        raise broken(reader.file, fault, tensor=quoted(name), dimensions=dimensions, most=MAX_DIMENSIONS)
    sizes = [reader.number(_U64) for _ in range(dimensions)]
    if not 0 < prod(sizes) <= MAX_SIZE:
        raise broken(reader.file, "tensor {tensor} has the shape {shape}", tensor=quoted(name), shape=quoted(sizes))
    return tuple(reversed(sizes))


def _alignment(file: Path, metadata: Mapping[str, Value]) -> int:
    found = metadata.get(_ALIGNMENT, _USUAL_ALIGNMENT)
    if type(found) is not int or found <= 0 or found & (found - 1):
        raise broken(file, "its alignment is {alignment}, no power of two", alignment=quoted(found))
    return found


def _check_offset(file: Path, tensor: GgufTensor, alignment: int, room: int) -> None:
    """`room`: bytes of the file from `data_start`."""
    if tensor.offset % alignment:
        fault = "tensor {tensor} begins at {offset}, no multiple of {alignment}"
        raise broken(file, fault, tensor=quoted(tensor.name), offset=tensor.offset, alignment=alignment)
    if tensor.offset >= room:
        fault = "tensor {tensor} begins at {offset} of {room} bytes"
        raise broken(file, fault, tensor=quoted(tensor.name), offset=tensor.offset, room=max(room, 0))
