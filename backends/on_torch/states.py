"""The recurrent states of all sequences, and what layers of every rule do with them.

States are replaced, never changed: a fork costs nothing until it goes its own way, and a step that fails leaves
behind what was there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import conv1d

from together.models.state import LayerState, Recurrent
from together.types import Row


class KeptTensors(NamedTuple):
    """What one layer keeps of one sequence."""

    tail: Tensor  # `[channels, tail]`: the convolution's last inputs, the newest at the end
    state: Tensor  # `[heads, key_dim, value_dim]` in fp32


@dataclass(slots=True)
class RecurrentStates:
    """The states of all sequences, by layer of the shard. What is written counts only once it is committed."""

    kinds: dict[int, Recurrent]
    dtype: torch.dtype
    device: torch.device
    held: dict[int, dict[int, KeptTensors]] = field(default_factory=dict)  # sequence → layer → committed
    _written: dict[int, dict[int, KeptTensors]] = field(default_factory=dict)

    @classmethod
    def of(cls, states: Sequence[LayerState], dtype: torch.dtype, device: torch.device) -> RecurrentStates:
        kinds = {layer: state for layer, state in enumerate(states) if isinstance(state, Recurrent)}
        return cls(kinds, dtype, device)

    def read(self, sequence: int, layer: int) -> KeptTensors:
        """Zeros for a sequence that begins."""
        found = self.held.get(sequence, {}).get(layer)
        if found is not None:
            return found
        kind = self.kinds[layer]
        state = torch.zeros(kind.heads, kind.key_dim, kind.value_dim, device=self.device)
        return KeptTensors(torch.zeros(kind.channels, kind.tail, dtype=self.dtype, device=self.device), state)

    def write(self, sequence: int, layer: int, kept: KeptTensors) -> None:
        self._written.setdefault(sequence, {})[layer] = kept

    def commit(self, sequence: int) -> None:
        written = self._written.pop(sequence, None)
        if written:
            self.held[sequence] = written

    def undo(self, sequence: int) -> None:
        """Forget what was written since the last commit."""
        self._written.pop(sequence, None)

    def fork(self, source: int, target: int) -> None:
        """A copy at the committed length: the ledger allows no other."""
        if source in self.held:
            self.held[target] = dict(self.held[source])

    def drop(self, sequence: int) -> None:
        self.held.pop(sequence, None)
        self.undo(sequence)

    def close(self) -> None:
        self.held.clear()
        self._written.clear()


class StepRows(Protocol):
    """A step's rows, and where their states are."""

    @property
    def rows(self) -> Sequence[Row]: ...

    @property
    def recurrent(self) -> RecurrentStates: ...


_FEW = 8  # tokens whose convolution costs less as products: oneDNN's takes 11 ms to begin with


def convolved(seen: Tensor, weight: Tensor) -> Tensor:
    """Each channel by itself: `[channels, tokens + tail]` to `[channels, tokens]`."""
    width = weight.shape[2]
    if seen.shape[1] - width < _FEW:
        return (seen.unfold(1, width, 1) * weight).sum(dim=2)
    return conv1d(seen[None], weight, groups=len(seen))[0]
