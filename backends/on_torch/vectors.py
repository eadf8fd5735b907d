"""Code for vectors that are sums, scores or shares of many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from math import log
from typing import Any

import torch

from backends.on_torch.compiled import Code, lanes

with suppress(ImportError):  # nothing is compiled then
    from llvmlite import ir

_LOG_2 = 0.693359375, -2.12194440e-4  # in two parts: the first has so few bits that its products are exact
_EXP = 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1
_ROUNDS = 1.5 * 2**23  # added to a small number, it leaves no bits behind the point
_SMALLEST = -87.0  # what exp is not 0 for


class VectorCode(Code):
    def numbers(self, pointer: Any, count: int) -> list[Any]:
        """So many of 64 bits from there on."""
        return [self.load(pointer, self.i64, self.number(8 * place)) for place in range(count)]

    def address(self, number: Any) -> Any:
        return self.build.inttoptr(number, self._pointer)

    def every(self, value: float) -> Any:
        """In every lane."""
        return ir.Constant(self.vector, [value] * lanes())

    def places(self) -> Any:
        """0, 1, 2, … in 32 bits."""
        return ir.Constant(self.words, list(range(lanes())))

    def raw(self, dtype: torch.dtype) -> Any:
        """As many numbers in `dtype` as there are lanes, to be moved as they are."""
        return self._vector(ir.IntType(8 * dtype.itemsize))

    def scratch(self, numbers: int) -> Any:
        """Room for fp32 numbers of each thread's own."""
        with self.build.goto_entry_block():
            room = self.build.alloca(self.f32, numbers)
        room.type = self._pointer  # llvmlite's own would be typed, which LLVM no longer reads
        return room

    def gathered(self, vectors: Sequence[Any], held: int = 1) -> Any:
        """One vector of sums. Each of `vectors` has the parts of `held` of them, which are added in pairs."""
        found = list(vectors)
        while len(found) > 1:
            half = lanes() // held // 2  # of a sum's parts
            places = [start + at for start in range(0, 2 * lanes(), 2 * half) for at in range(half)]
            pairs = zip(found[::2], found[1::2], strict=True)
            found = [self._halved(one, other, places, half) for one, other in pairs]
            held *= 2
        return found[0]

    def _halved(self, one: Any, other: Any, places: Sequence[int], half: int) -> Any:
        low, high = (self.shuffled(one, other, [place + more for place in places]) for more in (0, half))
        return self.build.fadd(low, high)

    def sigmoid(self, value: Any) -> Any:
        """1 / (1 + e^-y), and e^y / (1 + e^y)."""
        build = self.build
        positive = build.fcmp_ordered(">=", value, self.zero())
        power = self.exp(build.select(positive, build.fneg(value), value))
        return build.fdiv(build.select(positive, self.every(1.0), power), build.fadd(self.every(1.0), power))

    def exp(self, value: Any) -> Any:
        """Of numbers up to 0, within 1e-7 of what it is; 0 where that is below the normal numbers (Cephes)."""
        build = self.build
        shifted = self.fma(value, self.every(1 / log(2)), self.every(_ROUNDS))  # its lowest bits: how often it halves
        whole = build.fsub(shifted, self.every(_ROUNDS))
        exponent = build.add(build.shl(build.bitcast(shifted, self.words), self.whole(23)), self.whole(0x3F800000))
        rest = value
        for part in _LOG_2:
            rest = self.fma(whole, self.every(-part), rest)
        sum_ = self.every(_EXP[0])
        for factor in _EXP[1:]:
            sum_ = self.fma(sum_, rest, self.every(factor))
        found = self.fma(sum_, build.fmul(rest, rest), build.fadd(rest, self.every(1.0)))
        found = build.fmul(found, build.bitcast(exponent, self.vector))  # a product: what is no number stays none
        return build.select(build.fcmp_ordered("<", value, self.every(_SMALLEST)), self.zero(), found)
