"""Tensors of a checkpoint's files as torch's: read, mapped, by rows, or when they are asked for."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backends.on_torch.linear import Bytes
from backends.on_torch.packed import Packed
from backends.on_torch.quantized import PackedRows
from together.errors import BrokenModel
from together.models.codes import Groups, pack
from together.models.form import CORRECTION
from together.models.gguf.rows import unblocked
from together.models.headers import TensorInfo
from together.models.matrices import PackedMatrix, ScaledMatrix
from together.models.reading import read_into
from together.models.rows import read_groups, read_scaled
from together.planning.held import widened
from together.types import Packing

STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_PARTS = {**STORED, "U32": torch.int32, "U8": torch.uint8}  # of a packed matrix, whose shapes and dtypes were checked


@dataclass(slots=True)
class Reader:
    """Reads tensors in the compute dtype, and tells how far it is."""

    dtype: torch.dtype
    device: torch.device
    progress: Callable[[float], None]
    total: int = 0
    done: int = 0

    def read(self, info: TensorInfo) -> Tensor:
        tensor = typed(self.raw(info), info)
        if not info.name.endswith(CORRECTION):  # experts that are alike differ by less than bf16 can tell
            tensor = tensor.to(self.dtype)
        self.count(info.nbytes)
        return tensor

    def count(self, nbytes: int) -> None:
        self.done += nbytes
        self.progress(self.done / self.total)

    def raw(self, info: TensorInfo) -> Tensor:
        """Read where the weights stay in this memory; only mapped where they go on to an accelerator's."""
        if self.device.type != "cpu" and not info.gguf and not info.larger:
            return mapped(info)
        raw = torch.empty(info.nbytes, dtype=torch.uint8)
        read_into(info, raw.numpy().data)
        return raw


def mapped(info: TensorInfo) -> Tensor:
    """A tensor's bytes; they take no memory but what is looked at, which the system may take back."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # nobody writes
        return torch.from_numpy(np.memmap(info.file, np.uint8, "r", info.start, (info.nbytes,)))


def typed(raw: Tensor, info: TensorInfo) -> Tensor:
    """The bytes as what they are. Raises BrokenModel for a dtype that nobody computes in."""
    kind = STORED.get(info.dtype)
    if kind is None:
        raise BrokenModel(
            "{file} stores {tensor} as {dtype}; get this model again",
            file=info.file.name,
            tensor=info.name,
            dtype=info.dtype,
        )
    return raw.view(kind).reshape(info.shape)


@dataclass(frozen=True, slots=True)
class Rows:
    """A matrix of the checkpoint, read by rows where it is packed."""

    info: TensorInfo
    reader: Reader

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape

    def read(self, start: int, stop: int, room: Bytes) -> Tensor:
        part = self.info.rows(start, stop)
        raw = room[: part.nbytes]
        read_into(part, raw.data)
        return typed(torch.from_numpy(raw), part)

    def packed(self, start: int, stop: int) -> None:
        self.reader.count((stop - start) * self._row_bytes)

    @property
    def _row_bytes(self) -> int:
        return self.info.nbytes // self.shape[0]


@dataclass(frozen=True, slots=True)
class Lazy:
    """Stands for a tensor in a state dict: transformers asks for `[...]` when it comes to it."""

    info: TensorInfo
    reader: Reader

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape

    @property
    def nbytes(self) -> int:
        return self.info.nbytes

    def __getitem__(self, _: object) -> Tensor:
        return self.reader.read(self.info)


@dataclass(frozen=True, slots=True)
class Joined:
    """Stands for all experts of a layer, `[experts, rows, columns]`, whose parts lie apart: each is read to its place.

    `parts` has, for each expert, what follows one another in its rows.
    """

    parts: tuple[tuple[TensorInfo, ...], ...]
    reader: Reader

    @classmethod
    def of(cls, stacks: Sequence[Lazy]) -> Joined:
        """Of stacks of all experts, as gate and up."""
        experts = stacks[0].shape[0]
        rows = [tuple(_expert(stack.info, expert) for stack in stacks) for expert in range(experts)]
        return cls(tuple(rows), stacks[0].reader)

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.parts[0]
        return len(self.parts), sum(part.shape[0] for part in first), first[0].shape[1]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for parts in self.parts for part in parts)

    def __getitem__(self, _: object) -> Tensor:
        found = torch.empty(self.shape, dtype=self.reader.dtype)
        for expert, parts in zip(found, self.parts, strict=True):
            at = 0
            for part in parts:
                self._fill(expert[at : at + part.shape[0]], part)
                at += part.shape[0]
        return found

    def _fill(self, target: Tensor, part: TensorInfo) -> None:
        if STORED.get(part.dtype) == target.dtype:
            read_into(part, target.view(torch.uint8).reshape(-1).numpy().data)
            self.reader.count(part.nbytes)
        else:
            target.copy_(self.reader.read(part))


def _expert(stack: TensorInfo, expert: int) -> TensorInfo:
    one = stack.rows(expert, expert + 1)
    return replace(one, shape=one.shape[1:])


@dataclass(frozen=True, slots=True)
class Scaled:
    """A matrix in 8-bit floats: plain when it is asked for, or row by row; computed in fp32, rounded once."""

    matrix: ScaledMatrix
    reader: Reader

    @property
    def shape(self) -> tuple[int, ...]:
        return self.matrix.shape

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes

    def __getitem__(self, _: object) -> Tensor:
        outputs, inputs = self.shape
        found = torch.empty(outputs, inputs, dtype=self.reader.dtype)
        self._fill(found, 0)
        self.packed(0, outputs)
        return found

    def read(self, start: int, stop: int, room: Bytes) -> Tensor:
        found = torch.empty(stop - start, self.shape[1], dtype=self.reader.dtype)
        self._fill(found, start)
        return found

    def packed(self, start: int, stop: int) -> None:
        self.reader.count(self.nbytes * (stop - start) // self.shape[0])

    def _fill(self, rows: Tensor, start: int) -> None:
        at = 0
        for part in read_scaled(self.matrix, start, start + len(rows)):
            rows[at : at + len(part)] = torch.from_numpy(part)
            at += len(part)


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized matrix of the checkpoint; `shape` is that of its plain weights."""

    matrix: PackedMatrix
    reader: Reader

    @property
    def packing(self) -> Packing:
        """Of what `read` returns."""
        if self.matrix.layout == "mlx" or self.reader.device.type != "cpu":
            return self.matrix.packing
        return widened(self.matrix.packing)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.matrix.shape

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes

    def read(self, start: int = 0, stop: int | None = None) -> Packed:
        """From `start` to `stop` of the first axis, on the reader's device."""
        end = self.shape[0] if stop is None else stop
        if self.matrix.experts:
            return stacked([Quantized(each, self.reader).read() for each in self.matrix.experts[start:end]])
        if self.matrix.layout != "mlx":
            return self._grouped(start, end)
        parts = [self._read(info.rows(start, stop)) for info in self.matrix.tensors]
        return self._packed(parts)

    def mapped(self) -> Packed | BlockRows | GroupRows:
        """All of it, on the CPU, with its bytes left in the file."""
        self.reader.count(self.nbytes)
        if self.matrix.layout == "gguf":
            return BlockRows(self.matrix)
        if self.matrix.layout != "mlx":
            return GroupRows(self.matrix)
        return self._packed([_stored(mapped(info), info) for info in self.matrix.tensors])

    def __getitem__(self, _: object) -> Tensor:
        """The plain weights, for a module that has no quantized form."""
        return self.read().weights(self.reader.dtype)

    def _read(self, info: TensorInfo) -> Tensor:
        found = _stored(self.reader.raw(info), info).to(self.reader.device)
        self.reader.count(info.nbytes)
        return found

    def _grouped(self, start: int, stop: int) -> Packed:
        found = packed_groups(read_groups(self.matrix, start, stop), self.packing)
        self.reader.count(self.nbytes * (stop - start) // self.shape[0])
        rows = (stop - start, *self.shape[1:-1])
        return found.each(lambda part: part.to(self.reader.device).reshape(*rows, -1))

    def _packed(self, parts: list[Tensor]) -> Packed:
        words, scales, *biases = parts
        return Packed(self.matrix.packing, words, scales, biases[0] if biases else None)


class BlockRows:
    """A matrix of a GGUF file on the CPU, of which only those rows are read that are looked up."""

    def __init__(self, matrix: PackedMatrix) -> None:
        (self._info,) = matrix.tensors
        self._packing = matrix.packing
        self._raw = mapped(self._info).reshape(matrix.shape[0], -1)

    def __getitem__(self, ids: Tensor) -> Packed:
        rows = self._raw[ids].numpy()
        return packed_groups(unblocked(self._info.dtype, rows, len(rows)), self._packing)


class GroupRows:
    """A matrix of any other layout: rows are read as they are looked up."""

    def __init__(self, matrix: PackedMatrix) -> None:
        self._matrix = matrix

    def __getitem__(self, ids: Tensor) -> Packed:
        rows = [packed_groups(read_groups(self._matrix, row, row + 1), self._matrix.packing) for row in ids.tolist()]
        return stacked([row[0] for row in rows])


class UnchangedRows:
    """Rows that are looked up in files while a model serves: those must stay as they were when it was loaded.

    Mapped files may be deleted or replaced, as their bytes stay; files that are opened anew (`by_path`) may not.
    """

    def __init__(self, rows: PackedRows, files: Iterable[Path], *, by_path: bool) -> None:
        self._rows, self._by_path = rows, by_path
        self._files = [(file, os.open(file, os.O_RDONLY)) for file in files]
        for _, descriptor in self._files:
            weakref.finalize(self, os.close, descriptor)
        self._stamps = [self._stamp(*opened) for opened in self._files]

    def __getitem__(self, ids: Tensor) -> Packed:
        """Raises BrokenModel where a file is another one now, or none."""
        for opened, stamp in zip(self._files, self._stamps, strict=True):
            if self._stamp(*opened) != stamp:
                message = "{file} was changed while its model was loaded; load the model again"
                raise BrokenModel(message, file=str(opened[0]))
        return self._rows[ids]

    def _stamp(self, file: Path, descriptor: int) -> tuple[int, int, int] | None:
        try:
            facts = os.stat(file) if self._by_path else os.fstat(descriptor)
        except OSError:
            return None
        return facts.st_ino, facts.st_size, facts.st_mtime_ns


def stacked(parts: list[Packed]) -> Packed:
    """Matrices or rows that are packed alike, along a new first axis."""
    words, scales = (torch.stack(each) for each in ([p.words for p in parts], [p.scales for p in parts]))
    biases = [part.biases for part in parts if part.biases is not None]
    return Packed(parts[0].packing, words, scales, torch.stack(biases) if biases else None)


def packed_groups(found: Groups, packing: Packing) -> Packed:
    """Codes of a byte each, packed; `packing` has as many bits as they need, or more."""
    words = torch.from_numpy(pack(found.codes, packing.bits).view(np.int32))
    biases = None if found.biases is None else torch.from_numpy(found.biases)
    return Packed(packing, words, torch.from_numpy(np.ascontiguousarray(found.scales)), biases)


def _stored(raw: Tensor, info: TensorInfo) -> Tensor:
    return raw.view(_PARTS[info.dtype]).reshape(info.shape)
