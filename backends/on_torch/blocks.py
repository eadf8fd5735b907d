"""Products of quantized matrices on CPUs by loops of our own: each lane of a vector has one output.

Codes stay unsigned, as affine packings have them: a group's product is scale · Σ code·x + bias · Σ x. Activations
become int8 with a scale for each group, or stay fp32 (`exact`). All is read in the order in which it lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor

from backends.on_torch.affine import codes_of, width
from backends.on_torch.compiled import Code, CompiledLoop, has_dot_products, lanes
from backends.on_torch.packed import Packed
from backends.on_torch.program import ProgramDraft
from together.models.codes import DOUBLED
from together.types import Packing

_ROWS = 8  # at a time: more would not have their sums in registers
_WAITING = 2  # rows: with so few, each sum would wait for the one before
_TASK = 2**19  # weights that a thread takes at a time: memory is read faster in long runs
_TASKS = 4  # for each thread, so that none waits long for the last one
_AT_ONCE = 2**21  # weights that are brought into blocks at a time
_ZERO = int(DOUBLED[0])
_LARGEST = 127.0  # of an activation in int8
_SAMPLE = 64  # outputs whose zero points are looked at
_BYTES = 4  # of codes that lie together for one output


@dataclass(frozen=True, slots=True)
class _Activations:
    """Rows; by group their scales (none where they are fp32), and sums that biases are multiplied with."""

    held: tuple[Tensor, ...]
    places: tuple[int, int, int]  # in memory


@dataclass(frozen=True, slots=True)
class SmallRows:
    """Room for rows in int8, by group their scales, and sums of what they stand for."""

    count: int
    inputs: int
    group: int
    kept: Tensor
    places: tuple[int, int, int]  # in memory

    @classmethod
    def of(cls, count: int, inputs: int, group: int) -> SmallRows:
        size, each = count * inputs, count * (inputs // group) * _BYTES
        kept = torch.empty(size + 2 * each, dtype=torch.uint8)
        start = kept.data_ptr()
        return cls(count, inputs, group, kept, (start, start + size, start + size + each))

    def draft(self, draft: ProgramDraft, given: Tensor) -> None:
        """Let a program make them of `given`, `[n, inputs]`, contiguous."""
        draft.add(_quantized(self.group, given.dtype), self.count, 1, self.inputs, given.data_ptr(), *self.places)


class Blocks:
    """A kernel. By block of as many outputs as there are lanes, and by group: codes, scales and biases."""

    def __init__(self, packed: Packed, *, exact: bool) -> None:
        self._outputs, self._inputs = packed.shape
        self._exact, self._group = exact, packed.packing.group
        bits, stored = width(packed.packing), packed.scales.dtype
        assert bits is not None
        self._bits, self._stored = bits, stored if stored.itemsize == 2 else torch.float32
        self._middle = _ZERO if packed.biases is None else _commonest_zero(packed[:_SAMPLE])
        groups, size = packed.packing.groups(self._inputs), self._group * bits // 8 + 2 * self._stored.itemsize
        self._blocks = torch.empty(-(-self._outputs // lanes()), groups, size * lanes(), dtype=torch.uint8)
        step = max(1, _AT_ONCE // self._inputs // lanes())
        for at in range(0, len(self._blocks), step):
            _fill(self._blocks[at : at + step], packed[at * lanes() : (at + step) * lanes()], bits, self._stored)

    def __call__(self, rows: Tensor) -> Tensor:
        count, blocks, dtype = len(rows), len(self._blocks), rows.dtype
        out = rows.new_empty(count, blocks * lanes())
        if count:
            prepared = self._prepared(rows)
            loop = _product(self._bits, self._group, self._stored, dtype, min(count, _ROWS), self._exact)
            places = self._blocks.data_ptr(), *prepared.places, out.data_ptr()
            loop(blocks, self._step(torch.get_num_threads()), self._inputs, count, *places, self._middle, blocks)
        return out if out.shape[1] == self._outputs else out[:, : self._outputs]

    def _step(self, threads: int) -> int:
        """Blocks that a thread takes at a time."""
        return max(1, min(_TASK // (self._inputs * lanes()), len(self._blocks) // (_TASKS * threads)))

    @property
    def form(self) -> tuple[int, int] | None:
        """Inputs and their group, as `SmallRows` takes them; None for a matrix that a program does not multiply."""
        return None if self._exact or self._outputs % lanes() else (self._inputs, self._group)

    @property
    def outputs(self) -> int:
        return self._outputs

    def draft(self, draft: ProgramDraft, rows: SmallRows, out: Tensor, threads: int) -> None:
        """Add the product to a program. `out` is `[n, outputs]`, as columns of a contiguous tensor."""
        count, dtype = rows.count, out.dtype
        loop = _product(self._bits, self._group, self._stored, dtype, min(count, _ROWS), False)
        places = self._blocks.data_ptr(), *rows.places, out.data_ptr()
        stride = out.stride(0) // lanes()
        draft.add(loop, len(self._blocks), self._step(threads), self._inputs, count, *places, self._middle, stride)

    def _prepared(self, rows: Tensor) -> _Activations:
        """Activations as the loop takes them."""
        count = len(rows)
        if self._exact:
            wide = rows.float().contiguous()
            sums = wide.unflatten(1, (-1, self._group)).sum(-1)
            return _Activations((wide, sums), (wide.data_ptr(), 0, sums.data_ptr()))
        given, small = rows.contiguous(), SmallRows.of(count, self._inputs, self._group)
        _quantized(self._group, rows.dtype)(count, _ROWS, self._inputs, given.data_ptr(), *small.places)
        return _Activations((small.kept,), small.places)

    @staticmethod
    def takes(packing: Packing, *, exact: bool) -> bool:
        """Whether this processor has the instructions for it."""
        return width(packing) is not None and packing.group % 16 == 0 and (lanes() > 0 if exact else has_dot_products())


def _commonest_zero(packed: Packed) -> int:
    """The code that stands for about 0, of the group in the middle."""
    assert packed.biases is not None
    zeros = (-packed.biases.float() / packed.factors()).nan_to_num_(0).clamp_(0, 2**packed.packing.bits - 1)
    return round(zeros.median().item())


def _fill(blocks: Tensor, packed: Packed, bits: int, stored: torch.dtype) -> None:
    """Write `[blocks, groups, bytes]`."""
    scales, biases = packed.factors(), packed.biases
    if biases is None:  # whole numbers from `_ZERO` on stand for halves
        scales = scales / 2
        biases = _ZERO * scales.neg()
    codes = torch.from_numpy(codes_of(packed, bits)).view(torch.int32)
    parts = _in_halves(codes) if bits == 4 else codes, scales.to(stored), biases.to(stored)
    start = 0
    for part in parts:
        size = part.shape[1] // blocks.shape[1] * part.itemsize * lanes()  # bytes of a group
        target = blocks[..., start : start + size].view(part.dtype).unflatten(-1, (-1, lanes()))
        target.copy_(_side_by_side(part).view(target.shape))
        start += size


def _in_halves(words: Tensor) -> Tensor:
    """Of a word's eight codes of 4 bits, the first four in the lower halves of its bytes, the others in the upper."""
    found = _apart(words & 0xFFFF)
    found |= _apart(words >> 16 & 0xFFFF) << 4
    return found


def _apart(words: Tensor) -> Tensor:
    """The four codes in the lower half of each word, one in each byte."""
    words = (words | words << 8) & 0x00FF00FF
    return (words | words << 4) & 0x0F0F0F0F


def _side_by_side(values: Tensor) -> Tensor:
    """`[outputs, n]` → `[blocks, n, lanes]`, the last block filled up with zeros."""
    more = -len(values) % lanes()
    if more:
        values = torch.cat((values, values.new_zeros(more, values.shape[1])))
    found: Tensor = values.unflatten(0, (-1, lanes())).transpose(1, 2)
    return found


@cache
def _quantized(group: int, dtype: torch.dtype) -> CompiledLoop:
    """Rows in `dtype` as int8: values: inputs; rows, what they become, scales, and sums of what they stand for."""
    code = Code()
    build = code.build
    inputs = code.field(3)
    given, small, scales, sums = (code.field(place, pointer=True) for place in (4, 5, 6, 7))
    groups = build.sdiv(inputs, code.number(group))
    with code.loop(code.start, code.stop, 1) as (row, _), code.loop(code.number(0), groups, 1) as (place, _):
        start = build.add(build.mul(row, inputs), build.mul(place, code.number(group)))
        offsets = [build.add(start, code.number(at)) for at in range(0, group, lanes())]
        values = [code.read(dtype, given, build.mul(at, code.number(dtype.itemsize))) for at in offsets]
        largest = code.joined(reduce(code.larger, values, code.zero()), code.greater)
        factor = code.splat(build.fdiv(code.float(_LARGEST), largest))
        whole = [code.small(build.fmul(value, factor)) for value in values]
        for at, each in zip(offsets, whole, strict=True):
            code.store(each, small, at)
        nothing = build.fmul(code.float(0.0), code.total(reduce(build.fadd, values)))  # NaN where a value is no number
        scale = build.fadd(build.fdiv(largest, code.float(_LARGEST)), nothing)
        total = code.total(reduce(build.fadd, [build.sitofp(each, code.vector) for each in whole]))
        here = build.mul(build.add(build.mul(row, groups), place), code.number(4))
        code.store(scale, scales, here)
        code.store(build.fmul(scale, total), sums, here)
    return code.finish()


@cache
def _product(bits: int, group: int, stored: torch.dtype, dtype: torch.dtype, rows: int, exact: bool) -> CompiledLoop:
    """Values: inputs, count of rows; blocks, rows, their scales and sums, products in `dtype`; what exact ones lose;

    how many blocks of products a row has.
    """
    return _Product(bits, group, (stored, dtype), rows, exact=exact).loop()


class _Product:
    """Code for a block of outputs and `rows` rows at a time; the last ones overlap those before."""

    def __init__(
        self, bits: int, group: int, dtypes: tuple[torch.dtype, torch.dtype], rows: int, *, exact: bool
    ) -> None:
        """`dtypes` of scales and biases, and of products.

        With `exact`, codes lose the zero point that most groups have, and biases get it: else a small product would be
        the difference of two large sums.
        """
        self._stored, self._written = dtypes
        self._rows, self._exact, self._group = rows, exact, group
        self._code = code = Code()
        self._inputs, self._count = code.field(3), code.field(4)
        self._blocks, self._given, self._scales, self._sums, self._out = (
            code.field(place, pointer=True) for place in range(5, 10)
        )
        self._middle = code.splat(code.build.trunc(code.field(10), code.i32))
        self._stride = code.field(11)
        self._groups = code.build.sdiv(self._inputs, code.number(group))
        self._each = 8 // bits  # codes in a byte
        self._vectors = group // self._each // _BYTES
        self._codes_size, self._factors_size = self._vectors * _BYTES * lanes(), self._stored.itemsize * lanes()

    def loop(self) -> CompiledLoop:
        code = self._code
        last = code.build.sub(self._count, code.number(self._rows))
        with (
            code.loop(code.start, code.stop, 1) as (block, _),
            code.loop(code.number(0), self._count, self._rows) as (row, _),
        ):
            self._block(block, code.least(row, last))
        return code.finish()

    def _block(self, block: Any, first: Any) -> None:
        code, build = self._code, self._code.build
        rows = [build.add(first, code.number(place)) for place in range(self._rows)]
        size = code.number(self._codes_size + 2 * self._factors_size)
        start = build.mul(block, build.mul(self._groups, size))
        with code.loop(code.number(0), self._groups, 1, [code.zero()] * self._rows) as (group, sums):
            at = build.add(start, build.mul(group, size))
            sums[:] = self._added_group(at, group, rows, sums)
        for row, total in zip(rows, sums, strict=True):
            place = build.add(build.mul(row, self._stride), block)
            code.write(self._written, total, self._out, build.mul(place, code.number(self._written.itemsize * lanes())))

    def _added_group(self, at: Any, group: Any, rows: list[Any], sums: list[Any]) -> list[Any]:
        code, build = self._code, self._code.build
        products = self._products(at, group, rows)
        places = (build.add(at, code.number(self._codes_size + part * self._factors_size)) for part in (0, 1))
        scale, bias = (code.read(self._stored, self._blocks, place) for place in places)
        if self._exact:
            bias = code.fma(scale, build.sitofp(self._middle, code.vector), bias)
        found = []
        for row, product, before in zip(rows, products, sums, strict=True):
            here = build.mul(build.add(build.mul(row, self._groups), group), code.number(4))
            if not self._exact:
                product = build.fmul(product, code.splat(code.load(self._scales, code.f32, here)))
            own = code.splat(code.load(self._sums, code.f32, here))
            found.append(code.fma(bias, own, code.fma(scale, product, before)))
        return found

    def _products(self, at: Any, group: Any, rows: list[Any]) -> list[Any]:
        """Each row's Σ code·x of a group, in fp32."""
        code, build = self._code, self._code.build
        start = build.mul(group, code.number(self._group))
        inputs = [build.add(build.mul(row, self._inputs), start) for row in rows]
        found = [code.zero() if self._exact else code.whole(0)] * len(rows)
        for part in range(self._vectors * self._each):
            vector, half = divmod(part, self._each)
            place = build.add(at, code.number(vector * _BYTES * lanes()))
            words = code.load(self._blocks, code.words, place)
            four = words if self._each == 1 else self._half(words, half)
            offset = code.number(part * _BYTES)
            found = [self._added(four, build.add(row, offset), sum_) for row, sum_ in zip(inputs, found, strict=True)]
        return found if self._exact else [build.sitofp(sum_, code.vector) for sum_ in found]

    def _half(self, words: Any, half: int) -> Any:
        """The lower or the upper four bits of all bytes."""
        build, code = self._code.build, self._code
        return build.and_(build.lshr(words, code.whole(4)) if half else words, code.whole(0x0F0F0F0F))

    def _added(self, four: Any, at: Any, before: Any) -> Any:
        """With the products of four inputs from `at` on, whose codes lie in the lanes."""
        code, build = self._code, self._code.build
        if not self._exact:
            return code.dot(before, four, code.splat(code.load(self._given, code.i32, at)))
        alone = self._rows <= _WAITING
        found = code.zero() if alone else before
        for byte in range(_BYTES):
            value = build.and_(build.lshr(four, code.whole(8 * byte)), code.whole(255))
            given = code.load(self._given, code.f32, build.mul(build.add(at, code.number(byte)), code.number(4)))
            value = build.sub(value, self._middle)
            found = code.fma(build.sitofp(value, code.vector), code.splat(given), found)
        return build.fadd(before, found) if alone else found
