"""One sequence's state in a recurrent layer. What a step writes counts once it is committed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import mlx.core as mx

from together.models.state import Recurrent


class KeptArrays(NamedTuple):
    """What one layer keeps of one sequence."""

    tail: mx.array  # `[1, tail, channels]`: the convolution's last inputs, the newest at the end
    state: mx.array  # `[1, heads, value_dim, key_dim]` in fp32


@dataclass(slots=True)
class StateCache:
    """One sequence in one layer."""

    held: KeptArrays
    written: KeptArrays | None = field(default=None)

    @classmethod
    def empty(cls, dtype: mx.Dtype, kind: Recurrent) -> StateCache:
        state = mx.zeros((1, kind.heads, kind.value_dim, kind.key_dim), mx.float32)
        return cls(KeptArrays(mx.zeros((1, kind.tail, kind.channels), dtype), state))

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        return self.written or self.held

    def commit(self) -> None:
        self.held, self.written = self.written or self.held, None

    def truncate(self, length: int) -> None:
        """Only what was never committed can be forgotten: the ledger asks for nothing else."""
        self.written = None

    def copy(self, length: int) -> StateCache:
        """Arrays never change, so that both may have them."""
        return StateCache(self.held)


@dataclass(frozen=True, slots=True)
class PackedStates:
    """What such a layer gets as its cache in one step: the caches of all rows, and where each lies in the packing."""

    bounds: tuple[tuple[int, int], ...]
    caches: tuple[StateCache, ...]
