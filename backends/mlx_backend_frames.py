"""Activations to MLX arrays and back, and the checks of a frame before a shard acts on it. Knows no cache, no model."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from together.errors import FrameRefused
from together.types import DTYPE_BYTES, Activation, Batch, Dtype, Row

Bits = NDArray[np.uint16] | NDArray[np.uint32]
MX: dict[Dtype, mx.Dtype] = {"fp32": mx.float32, "bf16": mx.bfloat16, "fp16": mx.float16}
_BITS: dict[Dtype, mx.Dtype] = {"fp32": mx.uint32, "bf16": mx.uint16, "fp16": mx.uint16}
_EXPONENT: dict[Dtype, int] = {"fp32": 0x7F800000, "bf16": 0x7F80, "fp16": 0x7C00}  # all ones: infinite or not a number


def check_batch(batch: Batch, vocab: int) -> None:
    """Raises FrameRefused, naming the sequence, for rows that fit no shard; the ledger refuses others one by one."""
    for row in batch.rows:
        fault = _fault(row, vocab)
        if fault:
            raise FrameRefused(f"the row of sequence {row.sequence} has {fault}")


def _fault(row: Row, vocab: int) -> str | None:
    if not all(0 <= token < vocab for token in row.token_ids):
        return f"a token outside the vocabulary of {vocab}"
    if row.sample and not all(0 <= offset < len(row.token_ids) for offset in row.sample.offsets):
        return f"sampling offsets outside its {len(row.token_ids)} tokens"
    return None


def read_activation(hidden: Activation | None, tokens: int, width: int, dtype: Dtype) -> mx.array:
    """Hidden states as `[1, tokens, width]`. Raises FrameRefused unless they are exactly that, and finite."""
    if hidden is None:
        raise FrameRefused("an inner stage was sent no hidden states")
    found, wanted = (hidden.dtype, hidden.tokens, hidden.width), (dtype, tokens, width)
    if found != wanted:
        raise FrameRefused(f"hidden states are {found}, this stage takes {wanted} (dtype, tokens, width)")
    bits: Bits = np.frombuffer(hidden.data, f"<u{DTYPE_BYTES[dtype]}").reshape(1, tokens, width)
    if ((bits & _EXPONENT[dtype]) == _EXPONENT[dtype]).any():
        raise FrameRefused("hidden states hold infinite values or values that are no numbers")
    return mx.array(bits).view(MX[dtype])  # numpy has no bf16, so the bits travel as whole numbers


def write_activation(states: mx.array, dtype: Dtype) -> Activation:
    """`[1, tokens, width]` in `dtype` as what travels; a copy, because MLX's memory belongs to this thread."""
    _, tokens, width = states.shape
    return Activation(dtype, tokens, width, np.array(states.view(_BITS[dtype])).tobytes())
