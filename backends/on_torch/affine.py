"""Any packed matrix as codes of 4 or 8 bits with whole zero points, without loss: what integer kernels multiply.

w = scale · (code − zero) + rest, where zero is as near to −bias/scale as a code can be. MLX's biases are multiples of
their scales up to the rounding of what is stored, so that the rest is small there; it is exact for all others, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from backends.on_torch.packed import Packed
from together.models.codes import DOUBLED, Codes, Floats
from together.planning.held import KERNEL_BITS
from together.types import Packing

_ZERO = int(DOUBLED[0])
_MIDDLE = {4: 8, 8: 128}  # the zero point of the codes of a rest
_AT_ONCE = 2**21  # weights that are widened at a time


@dataclass(frozen=True, slots=True)
class Plane:
    """`codes` `[outputs, inputs·bits/8]`, the first one of a byte lowest; `scales` and `zeros` `[outputs, groups]`."""

    bits: int
    codes: Codes
    scales: Floats
    zeros: Codes

    def divided(self, count: int) -> list[Plane]:
        """As many planes of as many outputs."""
        parts = (np.split(part, count) for part in (self.codes, self.scales, self.zeros))
        return [Plane(self.bits, *each) for each in zip(*parts, strict=True)]


@dataclass(frozen=True, slots=True)
class Affine:
    """The sum of `planes`, and `rest` `[outputs, groups]` for each weight of a group; None where there is none."""

    planes: tuple[Plane, ...]
    rest: Tensor | None


def width(packing: Packing) -> int | None:
    """Bits of the codes that a packing becomes; None where it is not made of whole numbers."""
    if packing.mode == "affine":
        return KERNEL_BITS[packing.bits]
    return None if packing.mode == "mxfp8" else 8


def as_affine(packed: Packed, *, halves: bool) -> Affine:
    """In one plane; with `halves`, 8 bits in two of 4: the upper ones with 16 times the scale."""
    bits = width(packed.packing)
    assert bits is not None
    codes, scales = codes_of(packed, bits), packed.factors()
    rest, zeros = None, torch.full_like(scales, _ZERO)
    if packed.biases is None:
        scales = scales / 2
    else:
        biases = packed.biases.float()
        zeros = (-biases / scales).round_().nan_to_num_(0).clamp_(0, 2**packed.packing.bits - 1)
        rest = torch.addcmul(biases, scales, zeros)
        rest = rest if rest.any() else None
    whole = Plane(bits, codes, scales.numpy(), zeros.to(torch.uint8).numpy())
    return Affine(_halves(whole) if halves and bits == 8 else (whole,), rest)


def extended(plane: Plane, rest: Tensor, group: int) -> Plane:
    """With the rest as codes of 8 bits that more inputs are multiplied with: `extended_rows`. Whole groups of them."""
    block = group * plane.bits // 8  # bytes of a group of codes
    rest = torch.nn.functional.pad(rest, (0, -rest.shape[1] % block)).unflatten(1, (-1, block))
    zero = _MIDDLE[plane.bits]
    middle = zero * (17 if plane.bits == 4 else 1)  # both halves of a byte have the zero point
    scales = torch.maximum(rest.amax(-1) / (255 - middle), rest.amin(-1) / -middle)
    codes = (rest / scales[..., None]).nan_to_num_(0).round_().add_(middle).clamp_(0, 255)
    return Plane(
        plane.bits,
        np.concatenate((plane.codes, codes.flatten(1).to(torch.uint8).numpy()), axis=1),
        np.concatenate((plane.scales, scales.numpy()), axis=1),
        np.concatenate((plane.zeros, np.full(scales.shape, zero, np.uint8)), axis=1),
    )


def extended_rows(rows: Tensor, inputs: int, group: int, bits: int) -> Tensor:
    """`[n, k]` → `[n, inputs]` in fp32: each group's sum follows; with 4 bits, for the lower and the upper half."""
    count, width = rows.shape
    found = torch.zeros(count, inputs)
    found[:, :width] = rows
    sums = found[:, :width].unflatten(1, (-1, group)).sum(-1)
    each = 8 // bits
    for place in range(each):
        found[:, width + place : width + each * sums.shape[1] : each] = sums * 16**place
    return found


def _halves(plane: Plane) -> tuple[Plane, Plane]:
    """The upper and the lower four bits of everything."""
    four, low = np.uint8(4), np.uint8(15)
    upper = Plane(4, _paired(plane.codes >> four), plane.scales * np.float32(16), plane.zeros >> four)
    return upper, Plane(4, _paired(plane.codes & low), plane.scales, plane.zeros & low)


def codes_of(packed: Packed, bits: int) -> Codes:
    if packed.packing.mode == "affine" and packed.packing.bits == bits:
        found: Codes = packed.words.contiguous().view(torch.uint8).numpy()
        return found
    outputs, inputs = packed.shape
    wide = np.empty((outputs, inputs * bits // 8), np.uint8)
    step = max(1, _AT_ONCE // inputs)
    for start in range(0, outputs, step):
        codes = packed[start : start + step].codes().numpy()
        if packed.packing.mode != "affine":
            codes = DOUBLED[codes]
        wide[start : start + step] = _paired(codes) if bits == 4 else codes
    return wide


def _paired(codes: npt.NDArray[Any]) -> Codes:
    """Two codes of 4 bits in a byte."""
    return np.asarray(codes[:, ::2] | codes[:, 1::2] << 4)
