"""The types of tensors in GGUF files: how many weights a block has, in how many bytes, and what packing it is. Pure.

Numbers and sizes are those of ggml (`ggml.h`, `ggml-common.h`); the codes of a block are unpacked in `blocks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from together.models.packing import FP_PACKINGS
from together.types import Packing


@dataclass(frozen=True, slots=True)
class BlockType:
    """One type: blocks of `weights` weights of a row, `nbytes` bytes each. `packing` is None where it does not run."""

    name: str  # as ggml calls it
    weights: int
    nbytes: int
    packing: Packing | None = None


def _affine(bits: int, group: int) -> Packing:
    return Packing("affine", bits, group)


_PLAIN = {0: BlockType("F32", 1, 4), 1: BlockType("F16", 1, 2), 30: BlockType("BF16", 1, 2)}
_PACKED = {
    2: BlockType("Q4_0", 32, 18, _affine(4, 32)),
    3: BlockType("Q4_1", 32, 20, _affine(4, 32)),
    6: BlockType("Q5_0", 32, 22, _affine(5, 32)),
    7: BlockType("Q5_1", 32, 24, _affine(5, 32)),
    8: BlockType("Q8_0", 32, 34, _affine(8, 32)),
    10: BlockType("Q2_K", 256, 84, _affine(2, 16)),
    11: BlockType("Q3_K", 256, 110, _affine(3, 16)),
    12: BlockType("Q4_K", 256, 144, _affine(4, 32)),
    13: BlockType("Q5_K", 256, 176, _affine(5, 32)),
    14: BlockType("Q6_K", 256, 210, _affine(6, 16)),
    39: BlockType("MXFP4", 32, 17, FP_PACKINGS["mxfp4"]),
}
_OTHERS = {
    16: BlockType("IQ2_XXS", 256, 66),
    17: BlockType("IQ2_XS", 256, 74),
    18: BlockType("IQ3_XXS", 256, 98),
    19: BlockType("IQ1_S", 256, 50),
    20: BlockType("IQ4_NL", 32, 18),
    21: BlockType("IQ3_S", 256, 110),
    22: BlockType("IQ2_S", 256, 82),
    23: BlockType("IQ4_XS", 256, 136),
    24: BlockType("I8", 1, 1),
    25: BlockType("I16", 1, 2),
    26: BlockType("I32", 1, 4),
    27: BlockType("I64", 1, 8),
    28: BlockType("F64", 1, 8),
    29: BlockType("IQ1_M", 256, 56),
    34: BlockType("TQ1_0", 256, 54),
    35: BlockType("TQ2_0", 256, 66),
    40: BlockType("NVFP4", 64, 36),
    41: BlockType("Q1_0", 128, 18),
}
KINDS = _PLAIN | _PACKED | _OTHERS  # by ggml's number
PACKINGS = {kind.name: kind.packing for kind in _PACKED.values() if kind.packing is not None}
BLOCKS = {kind.name: kind for kind in KINDS.values()}  # by name
MARK = "GGUF_"  # stands before the name of a type in tables of tensors, so that no reader takes blocks for numbers
