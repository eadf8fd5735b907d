"""Quantized matrices by MLX's rules, in numpy: the same bits on every machine.

Only integers and correctly rounded fp32 operations are used, so the result depends on no processor and no library.
A group is a run of `group` weights of a row; codes lie in order, lowest bits first, in little-endian uint32 words.
"""

from __future__ import annotations

import numpy as np

from together.models.codes import Codes, Floats
from together.models.numbers import Halves, from_e4m3
from together.models.packing import FP_PACKINGS, Mode

LEAST_SCALE = np.float32(1e-7)  # of an affine group whose weights are all alike
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
E2M1_BOUNDS = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], np.float32)  # between neighbours


def quantize_affine(weights: Floats, bits: int, group: int) -> tuple[Codes, Floats, Floats]:
    """[rows, n] → codes [rows, n], scales and biases [rows, n/group]: weight ≈ scale · code + bias."""
    grouped = weights.reshape(len(weights), -1, group)
    low, high = grouped.min(-1), grouped.max(-1)
    most = np.float32(2**bits - 1)
    step = np.maximum((high - low) / most, LEAST_SCALE)
    from_low = np.abs(low) > np.abs(high)
    scale, edge = np.where(from_low, step, -step), np.where(from_low, low, high)
    steps = np.rint(edge / scale)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(steps != 0, edge / steps, scale)
    bias = np.where(steps != 0, edge, np.float32(0))
    codes = np.clip(np.rint((grouped - bias[..., None]) / scale[..., None]), 0, most)
    return codes.reshape(weights.shape).astype(np.uint8), scale, bias


def quantize_fp(weights: Floats | Halves, mode: Mode) -> tuple[Codes, Codes]:
    """[rows, n] → codes [rows, n] and scale codes [rows, n/group] of a mode that is not affine.

    MLX computes the scales in the type of the weights; of bf16 that changes nothing, so bf16 comes widened to fp32.
    """
    packing = FP_PACKINGS[mode]
    group, bits = packing.group, packing.bits
    grouped = weights.reshape(len(weights), -1, group)
    least = np.abs(grouped).max(-1) / weights.dtype.type(6 if bits == 4 else 448)  # the largest code of either kind
    scales = to_e4m3(least.astype(np.float32)) if mode == "nvfp4" else to_e8m0(least)
    scale = fp_scales(scales, mode)[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(scale == 0, np.float32(0), grouped.astype(np.float32) / scale)
    codes = to_e2m1(scaled) if bits == 4 else to_e4m3(scaled)
    return codes.reshape(weights.shape), scales


def fp_scales(scales: Codes, mode: Mode) -> Floats:
    """The factors that scale codes stand for."""
    return from_e4m3(scales) if mode == "nvfp4" else from_e8m0(scales)


def to_e2m1(values: Floats) -> Codes:
    """The nearest of the values; of two that are as near, the smaller one. Zero has no sign."""
    size = np.abs(values)
    codes = np.zeros(values.shape, np.uint8)
    for bound in E2M1_BOUNDS:  # far quicker than a search
        codes += size > bound
    found: Codes = codes | ((values < 0) & (codes > 0)).view(np.uint8) * np.uint8(8)
    return found


def to_e8m0(values: Floats | Halves) -> Codes:
    """The least power of two that is not below each value, as its exponent + 127; 1 for 0."""
    mantissa, exponent = np.frexp(values)  # in [0.5, 1)
    least = np.clip(exponent - (mantissa == 0.5), -127, 127) + 127
    return np.where(values > 0, least, 127).astype(np.uint8)


def from_e8m0(codes: Codes) -> Floats:
    """2^(code − 127)."""
    found: Floats = np.ldexp(np.float32(1), codes.astype(np.int32) - 127)
    return found


def to_e4m3(values: Floats) -> Codes:
    """The nearest fp8 number of 4 bits of exponent and 3 of mantissa, ties to even; too large ones are the largest."""
    bits = values.view(np.uint32)
    sign, size = bits >> 31 << 7, bits & 0x7FFFFFFF
    normal = (size + 0x7FFFF + (size >> 20 & 1) - (120 << 23)) >> 20
    steps = np.rint(np.minimum(size.view(np.float32), 1) * 512)  # subnormal numbers are multiples of 2^-9
    codes: Codes = (np.where(size < 121 << 23, steps.astype(np.uint32), np.minimum(normal, 0x7E)) | sign).astype(
        np.uint8
    )
    return codes
