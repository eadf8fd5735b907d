"""How a quantized matrix is packed: codes of some bits, a scale per group along the input. Pure.

The neutral form of every quantized checkpoint: w = scale · code + bias for affine packings, scale · value(code) for the
floating-point ones. The shapes of a matrix's tensors say which it is; configurations are often wrong about it.
"""

from __future__ import annotations

from together.types import AFFINE_BITS, AFFINE_GROUPS, WORD, Mode, Packing

__all__ = ["AFFINE_BITS", "AFFINE_GROUPS", "FP_PACKINGS", "WORD", "Mode", "Packing", "packing_of"]


FP_PACKINGS: dict[Mode, Packing] = {
    "mxfp4": Packing("mxfp4", 4, 32),
    "mxfp8": Packing("mxfp8", 8, 32),
    "nvfp4": Packing("nvfp4", 4, 16),
}


def packing_of(inputs: int, words: int, groups: int, *, biases: bool) -> Packing | None:
    """What a row of `inputs` weights in `words` words with `groups` scales is; None where it is nothing known.

    `biases`: there is a bias beside every scale, as affine packings have and others do not.
    """
    if not groups or inputs % groups or words * WORD % inputs:
        return None
    bits, group = words * WORD // inputs, inputs // groups
    if biases:
        return Packing("affine", bits, group) if bits in AFFINE_BITS and group in AFFINE_GROUPS else None
    return next((known for known in FP_PACKINGS.values() if (known.bits, known.group) == (bits, group)), None)
