"""Activations to tensors and back, and which of them a row samples at. Knows no cache and no model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from backends.checks import check_activation, not_finite
from together.types import Activation, Dtype, Row

TORCH: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BITS = {4: torch.int32, 2: torch.int16}  # numpy has no bf16: bits travel as whole numbers


def read_activation(hidden: Activation | None, tokens: int, width: int, dtype: Dtype, device: torch.device) -> Tensor:
    """Hidden states as `[tokens, width]`, on a CPU without a copy: never write to them.

    Raises FrameRefused unless they are exactly that, and finite.
    """
    hidden = check_activation(hidden, tokens, width, dtype)
    if not tokens:
        return torch.empty(0, width, dtype=TORCH[dtype], device=device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")  # nobody writes
        states = torch.frombuffer(hidden.data, dtype=TORCH[dtype]).reshape(tokens, width).to(device)
    if not torch.isfinite(states).all():
        raise not_finite()
    return states


def write_activation(states: Tensor, dtype: Dtype) -> Activation:
    """`[tokens, width]` in `dtype` as what travels; on a CPU without a copy. Waits for the device."""
    tokens, width = states.shape
    if not tokens:
        return Activation(dtype, 0, width, b"")
    bits = states.contiguous().cpu().view(_BITS[states.element_size()]).numpy()
    return Activation(dtype, tokens, width, bits.data.cast("B"))


def to_numpy(logits: Tensor) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return logits.float().cpu().numpy()


def starts(rows: Sequence[Row]) -> Iterator[tuple[Row, int]]:
    """Each row with the place of its first token in the packing."""
    return zip(rows, accumulate((len(row.token_ids) for row in rows), initial=0), strict=False)


def sampled_places(rows: Sequence[Row]) -> list[int]:
    """Where the rows ask for samples, in the packing."""
    return [start + offset for row, start in starts(rows) if row.sample for offset in row.sample.offsets]
