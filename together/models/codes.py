"""Codes of quantized matrices in numpy: packed into words, or one to a byte, with scales and biases of their groups."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float32]
DOUBLED = np.array([12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0], np.uint8)  # 12 + twice E2M1's values
_BYTE = 8


@dataclass(frozen=True, slots=True)
class Groups:
    """Rows of weights: `codes` `[rows, n]`, one to a byte; `scales` `[rows, groups]`, of MXFP4 as exponent codes."""

    codes: Codes
    scales: Floats | Codes
    biases: Floats | None

    def affine(self) -> Floats:
        """The weights `[rows, n]` that they stand for, where there are biases."""
        assert self.biases is not None, "only affine packings have biases"
        found: Floats = self.codes.reshape(*self.scales.shape, -1) * self.scales[..., None] + self.biases[..., None]
        return found.reshape(self.codes.shape)


def pack(codes: Codes, bits: int) -> Words:
    """[..., n] codes below 2^bits → [..., n·bits/32] words: in order, lowest bits first, little-endian."""
    if bits == _BYTE:
        return np.ascontiguousarray(codes).view("<u4")
    period = _BYTE // gcd(bits, _BYTE)  # codes that fill whole bytes
    stream = np.zeros((*codes.shape[:-1], codes.shape[-1] // period, period * bits // _BYTE), np.uint8)
    for place in range(period):
        at, shift = divmod(place * bits, _BYTE)
        code = codes[..., place::period]
        stream[..., at] |= code << np.uint8(shift)
        if shift + bits > _BYTE:
            stream[..., at + 1] |= code >> np.uint8(_BYTE - shift)
    return stream.reshape(*codes.shape[:-1], -1).view("<u4")


def unpack(words: Words, bits: int) -> Codes:
    """[..., w] words → [..., 32·w/bits] codes."""
    raw = np.ascontiguousarray(words).view(np.uint8)
    if _BYTE % bits:
        stream = np.unpackbits(raw, axis=-1, bitorder="little").reshape(*words.shape[:-1], -1, bits)
        return np.packbits(stream, axis=-1, bitorder="little")[..., 0]
    codes = np.empty((*raw.shape, _BYTE // bits), np.uint8)
    for place in range(_BYTE // bits):  # whole codes in a byte
        np.right_shift(raw, np.uint8(place * bits), out=codes[..., place])
    codes &= np.uint8(2**bits - 1)
    return codes.reshape(*raw.shape[:-1], -1)
