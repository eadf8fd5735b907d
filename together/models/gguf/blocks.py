"""Blocks of GGUF files as affine codes, scales and biases, without loss: w = scale · code + bias for each group.

Layouts are those of ggml (`ggml-common.h`, `ggml-quants.c`). A block holds some consecutive weights of a row. Scales
and biases are fp32: products of an fp16 and a 6-bit number have no more bits. Numpy only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from together.models.codes import Codes, Floats, Groups

_LOW, _HIGH = np.uint8(15), np.uint8(4)


def read_blocks(kind: str, raw: Codes) -> Groups:
    """`raw` `[rows, blocks, bytes]` of the type that ggml calls `kind`."""
    found = _READ[kind](raw)
    rows = len(raw)
    biases = None if found.biases is None else found.biases.reshape(rows, -1)
    return Groups(found.codes.reshape(rows, -1), found.scales.reshape(rows, -1), biases)


def _half(raw: Codes, at: int) -> Floats:
    """fp16 from byte `at` of each block, `[rows, blocks, 1]` in fp32."""
    return np.ascontiguousarray(raw[..., at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(raw: Codes) -> Codes:
    """`[..., n]` bytes → `[..., 2n]`: all low halves, then all high ones."""
    return np.concatenate([raw & _LOW, raw >> _HIGH], axis=-1)


def _bit_codes(raw: Codes) -> Codes:
    """`[..., 4]` bytes → `[..., 32]` bits."""
    return np.unpackbits(raw, axis=-1, bitorder="little")


def _q4_0(raw: Codes) -> Groups:
    scale = _half(raw, 0)
    return Groups(_nibbles(raw[..., 2:]), scale, scale * np.float32(-8))


def _q4_1(raw: Codes) -> Groups:
    return Groups(_nibbles(raw[..., 4:]), _half(raw, 0), _half(raw, 2))


def _q5_0(raw: Codes) -> Groups:
    scale = _half(raw, 0)
    codes = _nibbles(raw[..., 6:]) | _bit_codes(raw[..., 2:6]) << _HIGH
    return Groups(codes, scale, scale * np.float32(-16))


def _q5_1(raw: Codes) -> Groups:
    codes = _nibbles(raw[..., 8:]) | _bit_codes(raw[..., 4:8]) << _HIGH
    return Groups(codes, _half(raw, 0), _half(raw, 2))


def _q8_0(raw: Codes) -> Groups:
    scale = _half(raw, 0)
    return Groups(raw[..., 2:] ^ np.uint8(128), scale, scale * np.float32(-128))  # int8 + 128


def _q2_k(raw: Codes) -> Groups:
    """16 groups of 16; each byte of `scales` has a scale and a minimum of 4 bits."""
    small = raw[..., :16]
    scales = _half(raw, 80) * (small & _LOW).astype(np.float32)
    biases = _half(raw, 82) * -(small >> _HIGH).astype(np.float32)
    return Groups(_two_bits(raw[..., 16:80]), scales, biases)


def _q3_k(raw: Codes) -> Groups:
    """16 groups of 16; codes of two bits and one, scales of 4 bits and 2, less 32."""
    upper = raw[..., :32]
    third = np.stack([upper >> np.uint8(bit) & np.uint8(1) for bit in range(8)], axis=-2)  # [..., 8, 32]
    codes = _two_bits(raw[..., 32:96]) | third.reshape(*raw.shape[:-1], 256) << np.uint8(2)
    packed = raw[..., 96:108]
    low, high = _nibbles(packed[..., :8]), packed[..., 8:]
    pairs = np.concatenate([high >> np.uint8(shift) & np.uint8(3) for shift in (0, 2, 4, 6)], axis=-1)
    scales = _half(raw, 108) * ((low | pairs << _HIGH).astype(np.float32) - np.float32(32))
    return Groups(codes, scales, scales * np.float32(-4))


def _q4_k(raw: Codes) -> Groups:
    scales, biases = _small_scales(raw)
    runs = raw[..., 16:144].reshape(*raw.shape[:-1], 4, 32)
    return Groups(_nibbles(runs), scales, biases)


def _q5_k(raw: Codes) -> Groups:
    scales, biases = _small_scales(raw)
    upper = raw[..., 16:48]
    fifth = np.stack([upper >> np.uint8(bit) & np.uint8(1) for bit in range(8)], axis=-2)  # [..., 8, 32]
    codes = _nibbles(raw[..., 48:176].reshape(*raw.shape[:-1], 4, 32)).reshape(fifth.shape)
    return Groups(codes | fifth << _HIGH, scales, biases)


def _q6_k(raw: Codes) -> Groups:
    """16 groups of 16; two halves of 128 weights, each with 64 bytes of low bits and 32 of high ones."""
    low = raw[..., :128].reshape(*raw.shape[:-1], 2, 64)
    high = raw[..., 128:192].reshape(*raw.shape[:-1], 2, 32)
    upper = np.concatenate([high >> np.uint8(shift) & np.uint8(3) for shift in (0, 2, 4, 6)], axis=-1)
    small = np.ascontiguousarray(raw[..., 192:208]).view(np.int8).astype(np.float32)
    scales = _half(raw, 208) * small
    return Groups(_nibbles(low) | upper << _HIGH, scales, scales * np.float32(-32))


def _mxfp4(raw: Codes) -> Groups:
    """A power of two, then codes of E2M1: the low halves are the first 16."""
    return Groups(_nibbles(raw[..., 1:]), raw[..., :1], None)


def _two_bits(raw: Codes) -> Codes:
    """`[..., 64]` bytes → `[..., 256]`: of each 32 bytes the lowest two bits, then the next, and so on."""
    halves = raw.reshape(*raw.shape[:-1], 2, 32)
    codes = np.concatenate([halves >> np.uint8(shift) & np.uint8(3) for shift in (0, 2, 4, 6)], axis=-1)
    return codes.reshape(*raw.shape[:-1], 256)


def _small_scales(raw: Codes) -> tuple[Floats, Floats]:
    """Of Q4_K and Q5_K: 8 scales and 8 minima of 6 bits in 12 bytes, times fp16 each; `[..., 8]`."""
    packed = raw[..., 4:16]
    first, second, last = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    six = np.uint8(63)
    scales = np.concatenate([first & six, last & _LOW | (first >> np.uint8(6)) << _HIGH], axis=-1)
    minima = np.concatenate([second & six, last >> _HIGH | (second >> np.uint8(6)) << _HIGH], axis=-1)
    return _half(raw, 0) * scales.astype(np.float32), _half(raw, 2) * -minima.astype(np.float32)


_READ: dict[str, Callable[[Codes], Groups]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "MXFP4": _mxfp4,
}
