"""Activations to MLX arrays and back, bit by bit. Knows no cache, no model."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from backends.checks import check_activation, not_finite
from together.types import DTYPE_BYTES, Activation, Dtype

Bits = NDArray[np.uint16] | NDArray[np.uint32]
MX: dict[Dtype, mx.Dtype] = {"fp32": mx.float32, "bf16": mx.bfloat16, "fp16": mx.float16}
_BITS: dict[Dtype, mx.Dtype] = {"fp32": mx.uint32, "bf16": mx.uint16, "fp16": mx.uint16}
_EXPONENT: dict[Dtype, int] = {"fp32": 0x7F800000, "bf16": 0x7F80, "fp16": 0x7C00}  # all ones: infinite or not a number


def read_activation(hidden: Activation | None, tokens: int, width: int, dtype: Dtype) -> mx.array:
    """Hidden states as `[1, tokens, width]`. Raises FrameRefused unless they are exactly that, and finite."""
    hidden = check_activation(hidden, tokens, width, dtype)
    bits: Bits = np.frombuffer(hidden.data, f"<u{DTYPE_BYTES[dtype]}").reshape(1, tokens, width)
    if ((bits & _EXPONENT[dtype]) == _EXPONENT[dtype]).any():
        raise not_finite()
    return mx.array(bits).view(MX[dtype])  # numpy has no bf16, so the bits travel as whole numbers


def write_activation(states: mx.array, dtype: Dtype) -> Activation:
    """`[1, tokens, width]` in `dtype` as what travels; a copy, because MLX's memory belongs to this thread."""
    _, tokens, width = states.shape
    return Activation(dtype, tokens, width, np.array(states.view(_BITS[dtype])).tobytes())
