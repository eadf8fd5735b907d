"""What a torch shard keeps of all sequences: keys and values in one tensor for each layer, and recurrent states.

Sequences hold blocks of the tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from backends.blocks import Copied, PlacedBlocks
from backends.layer_caches import REWIND, rewind_of
from backends.on_torch.states import RecurrentStates
from together.models.state import Borrowed, KeysValues, Latent, LayerState
from together.processes import return_pages, trim_memory
from together.types import Row

BLOCK_TOKENS = 32  # a fork copies less than one block, and 8 answers to 2,000 tokens take 1.1 times as much as one


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers that keep the same: their sequences lie in the same places."""

    state: KeysValues | Latent
    blocks: PlacedBlocks
    pools: list[Tensor] = field(default_factory=list)  # one per layer, `[2, kv_heads, capacity, head_dim]`

    def first(self, position: int) -> int:
        """The first token that a token at `position` sees."""
        if self.state.chunk is not None:
            return position // self.state.chunk * self.state.chunk
        return 0 if self.state.slides is None else max(0, position - self.state.slides + 1)

    def copy(self, copied: Copied | None) -> None:
        """Bring one block's tokens into another block, in all of these layers."""
        if copied is not None:
            size = self.blocks.size
            source, target = (slice(block * size, (block + 1) * size) for block in copied)
            for kept in (kept for pool in self.pools for kept in pool):  # one of another: a latent's are the same
                kept[:, target] = kept[:, source]


class BlockCaches:
    """The CacheStore of a torch shard; forks share whole blocks. `states` has one entry per layer of the shard."""

    def __init__(self, states: Sequence[LayerState], dtype: torch.dtype, device: torch.device, capacity: int) -> None:
        count = -(-capacity // BLOCK_TOKENS)
        attending = {layer: state for layer, state in enumerate(states) if isinstance(state, KeysValues | Latent)}
        self.kinds: dict[LayerState, Layers] = {
            state: Layers(state, PlacedBlocks(BLOCK_TOKENS, count=count)) for state in attending.values()
        }
        self.layers: dict[int, tuple[KeysValues | Latent, Tensor]] = {}  # what each keeps, and its own pool
        self.recurrent = RecurrentStates.of(states, dtype, device)
        self.rewind = rewind_of(states)
        for layer, state in attending.items():
            pool = _pool(state, count * BLOCK_TOKENS, dtype, device)
            self.kinds[state].pools.append(pool)
            self.layers[layer] = state, pool
        for layer, borrowed in enumerate(states):
            if isinstance(borrowed, Borrowed):
                self.layers[layer] = self.layers[layer - borrowed.back]

    def write(self, rows: Sequence[Row]) -> None:
        """Take the blocks that the rows' tokens need; a sliding layer gives back what nobody can look at any more."""
        for kind in self.kinds.values():
            for row in rows:
                kind.copy(kind.blocks.write(row.sequence, row.position, row.position + len(row.token_ids)))
                if kind.state.window is not None:
                    kind.blocks.forget(row.sequence, max(0, row.position - kind.state.window - REWIND))

    def commit(self, sequence: int) -> None:
        self.recurrent.commit(sequence)

    def truncate(self, sequence: int, length: int) -> None:
        self.recurrent.undo(sequence)
        for kind in self.kinds.values():
            kind.blocks.truncate(sequence, length)

    def fork(self, source: int, target: int, length: int) -> None:
        for kind in self.kinds.values():
            kind.copy(kind.blocks.fork(source, target, length))
        self.recurrent.fork(source, target)

    def drop(self, sequence: int) -> None:
        for kind in self.kinds.values():
            kind.blocks.drop(sequence)
        self.recurrent.drop(sequence)

    def trim(self) -> None:
        """Where caches lie in main memory: a GPU's nobody else may need."""
        for kind in self.kinds.values():
            gaps = kind.blocks.gaps()
            for pool in (pool for pool in kind.pools if pool.device.type == "cpu"):
                for heads in pool[: 1 if pool.stride(0) == 0 else 2]:  # a latent's keys and values are the same
                    _give_back(heads, gaps)
        trim_memory()

    def close(self) -> None:
        for kind in self.kinds.values():
            kind.pools.clear()
        self.layers.clear()
        self.recurrent.close()


def _give_back(heads: Tensor, gaps: Sequence[range]) -> None:
    """`[heads, places, width]`: what lies in the gaps goes back to the system."""
    for head in heads:
        place = head.stride(0) * head.element_size()
        for gap in gaps:
            return_pages(head.data_ptr() + gap.start * place, len(gap) * place)


def _pool(state: KeysValues | Latent, places: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`[2, kv_heads, places, width]`: of a latent keys and values lie in the same memory, for a head that all share."""
    if isinstance(state, Latent):
        return torch.empty((1, 1, places, state.per_token), dtype=dtype, device=device).expand(2, -1, -1, -1)
    shape = 2, state.heads, places, state.key_dim
    return torch.empty(shape, dtype=dtype, device=device)  # a CPU's system gives it when it is written
