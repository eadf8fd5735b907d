"""Safetensors headers, read in pieces and checked: every size and offset against the file."""

from __future__ import annotations

import heapq
import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from together.models.folder import broken, unique, unreadable
from together.models.gguf.kinds import BLOCKS, MARK
from together.models.names import is_gguf
from together.wording import quoted

T = TypeVar("T")

MOST_KEY = 4096  # bytes
_SORTED_AT_ONCE = 20_000  # items: a few milliseconds
_SPACE = re.compile(rb"[ \t\n\r]*")


def as_utf8(data: bytes) -> bytes:
    """JSON in any of its encodings as `TableReader` reads it. Raises ValueError."""
    encoding = json.detect_encoding(data)
    return data if encoding == "utf-8" else data.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")


_decode = json.JSONDecoder(object_pairs_hook=unique).raw_decode


class TableReader:
    """A cursor over JSON bytes in UTF-8. Every method raises ValueError with a reason for what is not as asked."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def names(self) -> Iterator[str]:
        """The keys of the object that begins here; read each one's value before asking for the next."""
        self._take(b"{")
        seen: set[str] = set()
        more = not self._found(b"}")
        while more:
            yield self._key(seen)
            more = self._found(b",")
            if not more:
                self._take(b"}")

    def value(self, most: int) -> Any:
        """The value that begins here, of at most `most` bytes."""
        at = self._skip()
        text = self._data[at : at + most].decode("utf-8", "surrogateescape")
        try:
            value, end = _decode(text)
        except json.JSONDecodeError as error:
            limit = f", or it has more than {most} bytes" if at + most < len(self._data) else ""
            reason = f"{error.msg} after {error.pos} letters{limit}"
            raise ValueError(f"what begins at byte {at}: {reason}") from None
        except RecursionError:
            raise ValueError(f"what begins at byte {at}: it is nested too deep") from None
        self._at = at + (end if text.isascii() else len(text[:end].encode("utf-8", "surrogateescape")))
        return value

    def text(self, most: int) -> str:
        """The text that begins here, of at most `most` bytes; nothing else is even looked at."""
        at = self._skip()
        if self._data[at : at + 1] != b'"':
            raise ValueError(f"what begins at byte {at} is no text")
        return str(self.value(most))

    def end(self) -> None:
        """Nothing but white space may follow."""
        if self._skip() != len(self._data):
            raise ValueError(f"more follows at byte {self._at}")

    def _key(self, seen: set[str]) -> str:
        key = self.text(MOST_KEY)
        if not _is_text(key):
            raise ValueError(f"{quoted(key)} is no key")
        if key in seen:
            raise ValueError(f"it names {quoted(key)} twice")
        seen.add(key)
        self._take(b":")
        return key

    def _skip(self) -> int:
        """Where the next thing begins."""
        if self._data[self._at : self._at + 1] > b" ":  # nearly always, and quicker
            return self._at
        match = _SPACE.match(self._data, self._at)
        assert match is not None, "it matches anything"
        self._at = match.end()
        return self._at

    def _found(self, sign: bytes) -> bool:
        at = self._skip()
        found = self._data[at : at + 1] == sign
        self._at += found
        return found

    def _take(self, sign: bytes) -> None:
        if not self._found(sign):
            raise ValueError(f"{sign.decode()} is missing at byte {self._at}")


def sorted_in_turns(items: Iterable[T], key: Callable[[T], Any]) -> list[T]:
    """As `sorted`, but other threads get their turns: one sort of 300,000 names holds them up for half a second."""
    listed = list(items)
    parts = [sorted(listed[at : at + _SORTED_AT_ONCE], key=key) for at in range(0, len(listed), _SORTED_AT_ONCE)]
    return parts[0] if len(parts) == 1 else list(heapq.merge(*parts, key=key))


def _is_text(key: str) -> bool:
    """Whether it can be written as UTF-8; half a pair of surrogates cannot."""
    return key.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in key)


# Of all files of a model together. The most that is published: Kimi K2 in 4 bits, 210,000 tensors in 31 MB.
MAX_HEADER = 40 * 2**20  # bytes
MAX_TENSORS = 300_000
MAX_DIMENSIONS = 8
MAX_SIZE = 2**63 - 1  # of a dimension, or an offset: what other readers count with
MAX_ENTRY = 2048  # bytes of one tensor's description; usual are 80
MAX_METADATA = 10_000  # texts
_METADATA = "__metadata__"
_OFFSETS = b'"data_offsets"'
ELEMENT_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
PACKED_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # several elements share a byte


@dataclass(frozen=True, slots=True)
class HeadTiles:
    """Heads of values that were published by groups, and lie otherwise: the first of each group, then the second, …"""

    groups: int  # heads of keys
    size: int  # rows or columns of a head
    first: int = 0  # rows before them, which lie as they were published
    columns: bool = False


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint: where its bytes lie. `start` and `stop` count from the file's first byte."""

    name: str
    file: Path
    dtype: str  # as safetensors writes it: F32, BF16, …
    shape: tuple[int, ...]
    start: int
    stop: int
    stored: str = ""  # its name in the file, where that is another one
    gguf: bool = False  # its bytes are as GGUF files have them; `dtype` is ggml's name of their type
    heads: int = 0  # that its rows are of, each with its halves interleaved as GGUF's llamas have them; 0: as they are
    larger: bool = False  # it holds one more than what was published, as GGUF's Gemma norms do
    tiles: HeadTiles | None = None  # how its rows or columns lie, as GGUF's recurrent layers have them
    decay: bool = False  # it holds −exp of what was published, as their decays do
    cut: bool = False  # it is a part of the tensor that is called so in the file

    @property
    def key(self) -> str:
        """Its name in the file."""
        return self.stored or self.name

    @property
    def changed(self) -> bool:
        """Whether its bytes are not those that were published."""
        return bool(self.heads or self.larger or self.tiles or self.decay)

    @property
    def written(self) -> str:
        """Its dtype as a header names it."""
        return MARK + self.dtype if self.gguf else self.dtype

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.stop - self.start

    def rows(self, start: int, stop: int | None) -> TensorInfo:
        """From `start` to `stop` of the first axis, as a tensor."""
        assert not self.heads, "its rows lie in another order"
        assert self.tiles is None, "its rows or columns lie in another order"
        count, size = len(range(self.shape[0])[start:stop]), self.nbytes // self.shape[0]
        first = self.start + start * size
        return replace(self, shape=(count, *self.shape[1:]), start=first, stop=first + count * size)


@dataclass(frozen=True, slots=True)
class FileHeader:
    """A checked header: its raw bytes (for the fingerprint) and its tensors in the order of their offsets.

    Of a GGUF file, `raw` is the table of its tensors that `models/gguf/table.py` writes.
    """

    file: Path
    raw: bytes
    tensors: tuple[TensorInfo, ...]
    size: int  # bytes of the whole file


class Headers:
    """Reads the headers of one model's files, within limits for all of them together. Raises BrokenModel."""

    def __init__(self) -> None:
        self._bytes = MAX_HEADER
        self._tensors = MAX_TENSORS

    def read(self, file: Path) -> FileHeader:
        """Read and check one file's header."""
        try:
            size = file.stat().st_size
            with file.open("rb") as stream:
                raw = stream.read(header_length(file, stream.read(8), size))
        except OSError as error:
            raise unreadable(file, error) from error
        return self.check(file, raw, size)

    def check(self, file: Path, raw: bytes, size: int) -> FileHeader:
        """Check a header against the `size` of its file, in bytes. Reads nothing: `file` is what errors name."""
        self._bytes -= len(raw)
        if self._bytes < 0:
            raise broken(file, "with it the model's headers have more than {most} bytes", most=MAX_HEADER)
        if raw.count(_OFFSETS) > MAX_TENSORS:  # far more of them are seen at once, and not after seconds
            raise broken(file, "with it the model has more than {most} tensors", most=MAX_TENSORS)
        table = is_gguf(file.name)  # its offsets count from the file's first byte
        data = 0 if table else 8 + len(raw)
        tensors = []
        for name, entry in _entries(file, raw):
            self._tensors -= 1
            if self._tensors < 0:
                raise broken(file, "with it the model has more than {most} tensors", most=MAX_TENSORS)
            tensors.append(_tensor(file, name, entry, data))
        tensors = sorted_in_turns(sorted_in_turns(tensors, attrgetter("stop")), attrgetter("start"))
        if table:
            _check_places(file, tensors, size)
        else:
            _check_layout(file, tensors, data, size)
        return FileHeader(file, raw, tuple(tensors), size)


def check_distinct(headers: Iterable[FileHeader]) -> None:
    """Raises BrokenModel if a tensor is in two files."""
    found: dict[str, str] = {}
    for tensor in (tensor for header in headers for tensor in header.tensors):
        if tensor.name in found:
            said = "tensor {tensor} is in {other} as well"
            raise broken(tensor.file, said, tensor=quoted(tensor.name), other=quoted(found[tensor.name]))
        found[tensor.name] = tensor.file.name


def header_length(file: Path, prefix: bytes, size: int) -> int:
    """Bytes of the header, from the file's first 8 bytes and its size. Raises BrokenModel for a length that lies."""
    if len(prefix) < 8:
        raise broken(file, "it has {size} bytes, too few for a safetensors file", size=size)
    length: int = struct.unpack("<Q", prefix)[0]
    if length > MAX_HEADER:
        raise broken(file, "its header claims {length} bytes, more than {most}", length=length, most=MAX_HEADER)
    if 8 + length > size:
        raise broken(file, "its header claims {length} bytes and the file has {size}", length=length, size=size)
    return length


def _entries(file: Path, raw: bytes) -> Iterator[tuple[str, object]]:
    """The header's names and what it says of each, without `__metadata__`."""
    reader = TableReader(raw)
    try:
        for name in reader.names():
            if name == _METADATA:
                _skip_metadata(reader)
            else:
                yield name, reader.value(MAX_ENTRY)
        reader.end()
    except ValueError as error:
        raise broken(file, "its header is not JSON, or not a table of tensors ({error})", error=str(error)) from error


def _skip_metadata(reader: TableReader) -> None:
    """Texts by name, which nobody here reads."""
    for count, _ in enumerate(reader.names()):
        if count == MAX_METADATA:
            raise ValueError(f"{_METADATA} has more than {MAX_METADATA} texts")
        reader.text(MAX_HEADER)


def _tensor(file: Path, name: str, entry: object, data: int) -> TensorInfo:
    """One checked entry; `data` is where the data begin in the file."""
    if not isinstance(entry, dict):
        raise broken(file, "tensor {tensor} is not described", tensor=quoted(name))
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise broken(file, "tensor {tensor} has the unknown dtype {dtype}", tensor=quoted(name), dtype=quoted(dtype))
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise broken(file, "tensor {tensor} has a bad shape or bad offsets", tensor=quoted(name))
    start, stop = offsets
    if 8 * (stop - start) != prod(shape) * _BITS[dtype] or (shape and shape[-1] % _BLOCK.get(dtype, 1)):
        fault = "tensor {tensor} has {size} bytes, which is not {dtype} {shape}"
        raise broken(file, fault, tensor=quoted(name), size=stop - start, dtype=dtype, shape=quoted(shape))
    place, gguf = (data + start, data + stop), dtype.startswith(MARK)
    return TensorInfo(name, file, _DTYPES[dtype], tuple(shape), *place, gguf=gguf)


_BLOCK = {MARK + name: kind.weights for name, kind in BLOCKS.items()}
_BITS: dict[str, int | Fraction] = {  # of an element
    **{dtype: 8 * size for dtype, size in ELEMENT_BYTES.items()},
    **PACKED_BITS,
    **{MARK + name: Fraction(8 * kind.nbytes, kind.weights) for name, kind in BLOCKS.items()},
}
_DTYPES = {dtype: dtype.removeprefix(MARK) for dtype in _BITS}  # one text for all tensors of a dtype


def _sizes(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
        return False
    return all(type(item) is int and 0 <= item <= MAX_SIZE for item in value)


def _check_places(file: Path, tensors: list[TensorInfo], size: int) -> None:
    """The tensors of a GGUF file lie apart from one another; between them there may be gaps."""
    position = 0
    for tensor in tensors:
        if tensor.start < position or tensor.stop > size:
            said = "tensor {tensor} overlaps another or ends behind the file's {size} bytes"
            raise broken(file, said, tensor=quoted(tensor.name), size=size)
        position = tensor.stop


def _check_layout(file: Path, tensors: list[TensorInfo], data: int, size: int) -> None:
    """The tensors must fill the data exactly, one after the other, as the format demands."""
    position = data
    for tensor in tensors:
        if tensor.start != position:
            raise broken(file, "tensor {tensor} overlaps another or leaves a gap", tensor=quoted(tensor.name))
        position = tensor.stop
    if position != size:
        raise broken(file, "its tensors end at byte {position} and the file at {size}", position=position, size=size)
