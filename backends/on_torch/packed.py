"""Quantized matrices as their files have them, and the plain weights that they stand for. Any device of torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backends.made_up import Filling, word_tile
from together.models.packing import WORD, Packing

_BYTE = 8


@dataclass(frozen=True, slots=True)
class Packed:
    """`words` `[..., outputs, words]` of 32 bits (int32), `scales` and `biases` `[..., outputs, groups]`.

    An affine packing has scales and biases in a floating-point dtype; others have codes for scales (uint8), and no
    biases.
    """

    packing: Packing
    words: Tensor
    scales: Tensor
    biases: Tensor | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the plain weights."""
        return (*self.words.shape[:-1], self.words.shape[-1] * WORD // self.packing.bits)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.words, self.scales, self.biases) if part is not None)

    def __getitem__(self, key: Any) -> Packed:
        """By the first axes; never by the last one."""
        return self.each(lambda part: part[key])

    def each(self, change: Callable[[Tensor], Tensor]) -> Packed:
        """With every part changed."""
        biases = None if self.biases is None else change(self.biases)
        return Packed(self.packing, change(self.words), change(self.scales), biases)

    def flat(self) -> Packed:
        """Several matrices `[count, outputs, inputs]` as one."""
        return self.each(lambda part: part.flatten(0, 1))

    def read(self, start: int, stop: int) -> Packed:
        """From `start` to `stop` of the first axis, as a matrix in a file is read."""
        return self[start:stop]

    def codes(self) -> Tensor:
        """`[..., outputs, inputs]` in uint8, as they are stored."""
        return unpacked(self.words, self.packing.bits)

    def factors(self) -> Tensor:
        """What the codes' values are multiplied with: `[..., outputs, groups]` in fp32."""
        match self.packing.mode:
            case "affine":
                return self.scales.float()
            case "nvfp4":
                return _e4m3(self.scales)
            case _:
                return _powers(self.scales)

    def weights(self, dtype: torch.dtype) -> Tensor:
        """The plain weights: computed in fp32, rounded once."""
        grouped = self._values().unflatten(-1, (-1, self.packing.group))
        grouped *= self.factors()[..., None]
        if self.biases is not None:
            grouped += self.biases.float()[..., None]
        found: Tensor = grouped.flatten(-2).to(dtype)
        return found

    def _values(self) -> Tensor:
        """What the codes stand for before scaling, in fp32."""
        codes = self.codes()
        match self.packing.mode:
            case "affine":
                return codes.float()
            case "mxfp8":
                return _e4m3(codes)
            case _:
                return _small(codes, 2, 1)


def made_up(packing: Packing, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Packed:
    """Random codes for weights of `shape`, under scales that are alike and keep states of order 1: for timing."""
    *rows, inputs = shape
    filling, affine = Filling.of(packing, inputs), packing.mode == "affine"
    tile = torch.from_numpy(word_tile(packing).view(np.int32))
    words = repeated(tile, (*rows, packing.words(inputs))).to(device)
    groups, kind = (*rows, packing.groups(inputs)), dtype if affine else torch.uint8
    scales = torch.full(groups, filling.scale, dtype=kind, device=device)
    return Packed(packing, words, scales, torch.full_like(scales, filling.bias) if affine else None)


def repeated(tile: Tensor, shape: Sequence[int]) -> Tensor:
    """As many numbers as are wanted, of few: making them all would take the most time."""
    count = prod(shape)
    return tile.repeat(-(-count // len(tile)))[:count].reshape(shape)


def unpacked(words: Tensor, bits: int) -> Tensor:
    """`[..., w]` words → `[..., 32·w/bits]` codes in uint8: in order, lowest bits first."""
    stream = words.contiguous().view(torch.uint8)  # little-endian
    if bits == _BYTE:
        return stream
    period = {2: 4, 3: 8, 4: 2, 5: 8, 6: 4}[bits]  # codes that fill whole bytes
    turn = period * bits // _BYTE  # bytes that they fill
    codes = stream.new_empty(*stream.shape[:-1], stream.shape[-1] // turn, period)
    for place in range(period):
        at, shift = divmod(place * bits, _BYTE)
        code = stream[..., at::turn] >> shift
        if shift + bits > _BYTE:
            code |= stream[..., at + 1 :: turn] << _BYTE - shift
        torch.bitwise_and(code, 2**bits - 1, out=codes[..., place])
    return codes.flatten(-2)


def _small(codes: Tensor, exponent: int, mantissa: int) -> Tensor:
    """Numbers of a sign, and so many bits of exponent and mantissa, in fp32.

    By way of fp16, whose exponent (5 bits, bias 15) has room for them, subnormal ones too; torch reads fp8 slowly.
    """
    bits = codes.to(torch.int16)
    size = (bits & (1 << exponent + mantissa) - 1) << 10 - mantissa
    size |= bits >> exponent + mantissa << 15
    found: Tensor = size.view(torch.float16).float() * 2.0 ** (16 - 2 ** (exponent - 1))
    return found


def _e4m3(codes: Tensor) -> Tensor:
    """fp8 numbers in fp32; they have no infinities, and two codes are no numbers, as on MLX."""
    return _small(codes, 4, 3).masked_fill_(codes & 0x7F == 0x7F, torch.nan)


def _powers(exponents: Tensor) -> Tensor:
    """2^(e − 127) for each code e, by the bits of fp32; 2^-127 has no exponent of its own there."""
    bits = exponents.int() << 23
    return torch.where(exponents == 0, 1 << 22, bits).to(torch.int32).view(torch.float32)
