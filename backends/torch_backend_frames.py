"""Activations to tensors and back, and all checks of a frame before a shard acts on it. Knows no cache and no model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from together.errors import FrameRefused
from together.types import Activation, Batch, Dtype, Row

TORCH: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BITS = {4: torch.int32, 2: torch.int16}  # numpy has no bf16: bits travel as whole numbers


def check_batch(batch: Batch, vocab: int) -> None:
    """Raises FrameRefused, naming the sequence, for rows that no shard can run."""
    if len({row.sequence for row in batch.rows}) != len(batch.rows):
        raise FrameRefused("a sequence has two rows in one batch")
    for row in batch.rows:
        fault = _fault(row, vocab)
        if fault:
            raise FrameRefused(f"the row of sequence {row.sequence} has {fault}")


def _fault(row: Row, vocab: int) -> str | None:
    if not row.token_ids:
        return "no tokens"
    if row.position < 0:
        return f"the position {row.position}"
    if not 0 <= min(row.token_ids) <= max(row.token_ids) < vocab:
        return f"a token outside the vocabulary of {vocab}"
    if row.sample and not all(0 <= offset < len(row.token_ids) for offset in row.sample.offsets):
        return f"sampling offsets outside its {len(row.token_ids)} tokens"
    return None


def read_activation(hidden: Activation | None, tokens: int, width: int, dtype: Dtype, device: torch.device) -> Tensor:
    """Hidden states as `[tokens, width]`, on a CPU without a copy: never write to them.

    Raises FrameRefused unless they are exactly that, and finite.
    """
    if hidden is None:
        raise FrameRefused("an inner stage was sent no hidden states")
    found, wanted = (hidden.dtype, hidden.tokens, hidden.width), (dtype, tokens, width)
    if found != wanted:
        raise FrameRefused(f"hidden states are {found}, this stage takes {wanted} (dtype, tokens, width)")
    if not tokens:
        return torch.empty(0, width, dtype=TORCH[dtype], device=device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")  # nobody writes
        states = torch.frombuffer(hidden.data, dtype=TORCH[dtype]).reshape(tokens, width).to(device)
    if not torch.isfinite(states).all():
        raise FrameRefused("hidden states hold infinite values or values that are no numbers")
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


def places_of(rows: Sequence[Row], chosen: set[int]) -> list[int]:
    """Where the tokens of the chosen sequences lie in the packing of `rows`."""
    return [start + i for row, start in starts(rows) if row.sequence in chosen for i in range(len(row.token_ids))]


def sampled_places(rows: Sequence[Row]) -> list[int]:
    """Where the rows ask for samples, in the packing."""
    return [start + offset for row, start in starts(rows) if row.sample for offset in row.sample.offsets]
