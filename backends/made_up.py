"""Random quantized matrices for timing: any codes do, and scales that keep states of order 1. Imports no framework."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2, sqrt
from typing import Any

import numpy as np

from together.types import WORD, Packing

Words = np.ndarray[Any, np.dtype[np.uint32]]
TILE_WORDS = 2**18 - 5  # words that are made once and repeated: a prime, or ONNX Runtime would hold equal experts once
_E2M1_SPREAD = 2.93  # root mean square of its sixteen values
_E4M3_SPREAD = 0.66  # of the codes that `_FINITE` leaves
_FINITE = 0xBEBEBEBE  # of four e4m3 codes: below 2, so that none is no number


@dataclass(frozen=True, slots=True)
class Filling:
    """What all groups of a made-up matrix have: a scale, or its code, and where the packing is affine a bias."""

    scale: float
    bias: float

    @classmethod
    def of(cls, packing: Packing, inputs: int) -> Filling:
        wanted = inputs**-0.5
        match packing.mode:
            case "affine":
                most = 2**packing.bits - 1
                scale = wanted * sqrt(12) / most
                return cls(scale, -scale * most / 2)
            case "nvfp4":
                return cls(_e4m3(wanted / _E2M1_SPREAD), 0)
            case _:
                spread = _E2M1_SPREAD if packing.bits == 4 else _E4M3_SPREAD
                return cls(127 + round(log2(wanted / spread)), 0)


def word_tile(packing: Packing) -> Words:
    """Random codes."""
    words = np.random.default_rng(0).integers(0, 2**WORD, TILE_WORDS, np.uint32)
    return words & np.uint32(_FINITE) if packing.mode == "mxfp8" else words


def _e4m3(value: float) -> int:
    """The code of a number near this one, rounded to a power of two where it is not subnormal."""
    return max(round(value * 512), 1) if value < 2**-6 else (round(log2(value)) + 7) << 3
