"""The plain weights of quantized matrices, in numpy: what every backend's products are judged by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from together.models.codes import Floats, Words, unpack
from together.models.matrices import BIASES, SCALES, PackedMatrix, beside
from together.models.numbers import from_e4m3
from together.models.packing import Packing
from together.weights.quantize import E2M1, fp_scales


def widened(stored: Mapping[str, NDArray[Any]], packed: Mapping[str, PackedMatrix]) -> dict[str, NDArray[Any]]:
    """Tensors by name, with plain matrices in the places of those that are `packed`, by their names too."""
    found = dict(stored)
    for name, matrix in packed.items():
        scales, biases = (found.pop(beside(name, end), None) for end in (SCALES, BIASES))
        assert scales is not None
        found[name] = dequantize(found[name], scales, biases, matrix.packing)
    return found


def dequantize(words: Words, scales: NDArray[Any], biases: Floats | None, packing: Packing) -> Floats:
    """Codes […, out, words], scales and biases […, out, groups] → fp32 weights […, out, in]."""
    codes = unpack(words, packing.bits).reshape(*scales.shape, packing.group)
    whole = (*scales.shape[:-1], -1)
    if biases is not None:
        return np.asarray(scales[..., None] * codes + biases[..., None], np.float32).reshape(whole)
    values = E2M1[codes] if packing.bits == 4 else from_e4m3(codes)
    return np.asarray(values * fp_scales(scales, packing.mode)[..., None]).reshape(whole)
