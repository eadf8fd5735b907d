"""Caches that each hold one sequence in one layer: the simple CacheStore, whose forks are copies. No framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, Self, TypeVar

from together.models.state import LayerState, Recurrent
from together.processes import trim_memory
from together.types import BLOCK

REWIND = 256  # tokens that a sliding layer keeps beyond its window, so that they can be undone


def whole_blocks(tokens: int, block: int = BLOCK) -> int:
    return -(-tokens // block) * block


def rewind_of(states: Sequence[LayerState]) -> int | None:
    """How many last tokens of a sequence layers that keep these can undo; None: all of them."""
    if any(isinstance(state, Recurrent) for state in states):
        return 0
    return None if all(state.window is None for state in states) else REWIND


class LayerCache(Protocol):
    """What one layer keeps of one sequence."""

    def truncate(self, length: int) -> None:
        """Give back the blocks beyond `length`."""

    def copy(self, length: int) -> Self:
        """A cache of its own with the first `length` tokens, as far as they are still here."""


Cache = TypeVar("Cache", bound=LayerCache)


class SequenceCaches(Generic[Cache]):
    """The CacheStore of real models: for every sequence a list of caches, one per layer of the shard."""

    def __init__(self, states: Sequence[LayerState], empty: Callable[[LayerState], Cache]) -> None:
        """`states` is what each layer keeps; `empty` makes a cache for one of them."""
        self.sequences: dict[int, list[Cache]] = {}
        self._states, self._empty = states, empty

    @property
    def rewind(self) -> int | None:
        return rewind_of(self._states)

    def of(self, sequence: int) -> list[Cache]:
        """The caches of a sequence, made if it is new."""
        if sequence not in self.sequences:
            self.sequences[sequence] = [self._empty(state) for state in self._states]
        return self.sequences[sequence]

    def commit(self, sequence: int) -> None:
        """Keys and values are written over where a step failed: nothing to do."""

    def truncate(self, sequence: int, length: int) -> None:
        for cache in self.of(sequence):
            cache.truncate(length)

    def fork(self, source: int, target: int, length: int) -> None:
        self.sequences[target] = [cache.copy(length) for cache in self.sequences[source]]

    def drop(self, sequence: int) -> None:
        self.sequences.pop(sequence, None)

    def trim(self) -> None:
        trim_memory()
