"""Which sequence holds how many tokens in a shard, by the rules every backend shares. Knows no tensors.

The position is the truth: more cached tokens are truncated to it, fewer refuse the row. Lengths are committed after the
last layer, so a failed step leaves nothing behind: what it wrote and the blocks it took are given back before the next
one begins. Only its truncations stay, which are what the next row at that position would do anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from together.types import Batch, LayerRange, Orders, Row, RowResult


class CacheStore(Protocol):
    """The tensors behind the ledger; lengths are always within what the ledger granted.

    A store may forget tokens only further back than `rewind` from the length at which a step began. `truncate` may name
    the length the sequence has already (then rows that were written beyond it are forgotten), `drop` a sequence that
    was granted room and never written.
    """

    def truncate(self, sequence: int, length: int) -> None: ...

    def fork(self, source: int, target: int, length: int) -> None: ...

    def drop(self, sequence: int) -> None: ...


@dataclass(slots=True)
class Ledger:
    """Admits rows and applies orders; also keeps each sequence's token ids, which the last stage's sampler needs."""

    store: CacheStore
    capacity: int
    block: int
    rewind: int | None = None
    tokens: dict[int, list[int]] = field(default_factory=dict)  # sequence → committed token ids
    allocated: dict[int, int] = field(default_factory=dict)  # sequence → tokens its blocks can hold
    floors: dict[int, int] = field(default_factory=dict)  # sequence → lowest position it can go back to, beside 0
    used: int = field(default=0, init=False)  # tokens that all allocated blocks can hold
    _begun: dict[int, Row] = field(default_factory=dict, init=False)  # accepted, not committed

    def begin(self, batch: Batch) -> tuple[tuple[Row, ...], tuple[RowResult, ...]]:
        """Undo a failed step, apply the orders, truncate and admit: (rows to run, refusals), both in batch order."""
        self.rollback()
        self._obey(batch.orders)
        refused: list[RowResult] = []
        seen: set[int] = set()
        for row in batch.rows:
            reason = "has an earlier row in the batch" if row.sequence in seen else self._refusal(row)
            seen.add(row.sequence)
            if reason is None:
                self._admit(row)
            else:
                refused.append(RowResult(row.sequence, row.position, refusal=reason))
        return tuple(self._begun.values()), tuple(refused)

    def commit(self, rows: tuple[Row, ...]) -> None:
        """Called after the last layer ran: the rows' tokens are cached now. Begun rows that are left out are undone."""
        for row in rows:
            begun = self._begun.pop(row.sequence, None)
            assert begun == row, f"the row of sequence {row.sequence} was not begun"
            self.tokens.setdefault(row.sequence, []).extend(row.token_ids)
            if self.rewind is not None:
                floor = self.length(row.sequence) - self.rewind
                self.floors[row.sequence] = max(floor, self.floors.get(row.sequence, 0))
        self.rollback()

    def rollback(self) -> None:
        """Give back what begun rows took and wrote since the last commit; `begin` does it by itself."""
        for sequence in self._begun:
            length = self.length(sequence)
            if length:
                self.store.truncate(sequence, length)
                self._allocate(sequence, length)
            else:
                self._drop(sequence)
        self._begun.clear()

    def length(self, sequence: int) -> int:
        return len(self.tokens.get(sequence, ()))

    def blocks(self, length: int) -> int:
        """Tokens allocated for a sequence of `length` tokens: whole blocks."""
        return -(-length // self.block) * self.block

    def _refusal(self, row: Row) -> str | None:
        held, floor = self.length(row.sequence), self.floors.get(row.sequence, 0)
        if row.position < 0 or not row.token_ids:
            return f"has {len(row.token_ids)} tokens at position {row.position}"
        if row.position > held:
            return f"holds {held} tokens of the sequence, was asked to go on at {row.position}"
        if 0 < row.position < floor:  # back to 0 is always possible: nothing of it is needed
            return f"can go back to token {floor} of the sequence, was asked to go back to {row.position}"
        need = self.blocks(row.position + len(row.token_ids))
        if self.used - self.allocated.get(row.sequence, 0) + need > self.capacity:
            return f"the KV cache is full ({self.used} of {self.capacity} tokens allocated)"
        return None

    def _admit(self, row: Row) -> None:
        if row.position == 0:
            self._drop(row.sequence)
        elif row.position < self.length(row.sequence):
            self.store.truncate(row.sequence, row.position)
            del self.tokens[row.sequence][row.position :]
        self._allocate(row.sequence, row.position + len(row.token_ids))
        self._begun[row.sequence] = row

    def _allocate(self, sequence: int, length: int) -> None:
        self.used += self.blocks(length) - self.allocated.get(sequence, 0)
        self.allocated[sequence] = self.blocks(length)

    def _obey(self, orders: Orders) -> None:
        for fork in orders.forks:
            self._fork(fork.source, fork.target, fork.length)
        for sequence in orders.drops:
            self._drop(sequence)

    def _drop(self, sequence: int) -> None:
        if sequence in self.allocated:
            self.used -= self.allocated.pop(sequence)
            self.tokens.pop(sequence, None)
            self.floors.pop(sequence, None)
            self.store.drop(sequence)

    def _fork(self, source: int, target: int, length: int) -> None:
        """A target that exists, a source too short or no room: nothing is done, and the next row there says so."""
        known, floor = target in self.allocated, self.floors.get(source, 0)
        if known or not max(1, floor) <= length <= self.length(source):
            return
        if self.used + self.blocks(length) > self.capacity:
            return
        self.store.fork(source, target, length)
        self.tokens[target] = self.tokens[source][:length]
        self._allocate(target, length)
        if floor:
            self.floors[target] = floor  # the copy has no more of the past than its source


def spans(batch: Batch, accepted: tuple[Row, ...]) -> Iterator[slice]:
    """Where each accepted row's tokens lie in the packed hidden states `[batch.tokens, width]` of the whole batch."""
    start, wanted = 0, {row.sequence for row in accepted}
    for row in batch.rows:
        stop = start + len(row.token_ids)
        if row.sequence in wanted:
            wanted.discard(row.sequence)  # of a sequence named twice the second row was refused
            yield slice(start, stop)
        start = stop


class LedgerShard:
    """The part of the contract's Shard that its ledger answers; a shard sets both in its constructor."""

    _layers: LayerRange
    _ledger: Ledger

    @property
    def layers(self) -> LayerRange:
        return self._layers

    @property
    def capacity(self) -> int:
        return self._ledger.capacity

    @property
    def block(self) -> int:
        return self._ledger.block

    @property
    def rewind(self) -> int | None:
        return self._ledger.rewind

    @property
    def sequences(self) -> int:
        return len(self._ledger.allocated)
