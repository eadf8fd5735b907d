"""The blocks that a sequence's keys and values lie in, and who shares them. Imports no framework and holds no tensor.

A sequence's memory is a table of blocks of `size` tokens. What can be done with it:
- write: go back to a position, and take the blocks for what follows it. A block that others hold is copied first.
- truncate: give back the blocks behind a length. What is left is not changed, so that others may share it.
- fork: hold the source's whole blocks as well. The block after them is copied at once: nothing that a fork holds has
  to be paid for later, except where it is truncated into what it shares.
- forget: give back the blocks in front, which a sliding window has left behind.
- drop: give back all of it.
A block counts once, however many hold it. What a sequence takes whatever its length, as a recurrent state, counts as
`per_sequence` blocks more, which nobody shares. The ledger counts with one `TokenBlocks` and admits by it; a store of
tensors that shares blocks has its own `PlacedBlocks`, and makes the same calls later: it never needs more than was
counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

GONE = -1  # in a table: a block that a sliding window has left behind
Numbers = NDArray[np.int64]


class Copied(NamedTuple):
    """Two blocks by number: the tokens of the first belong into the second, which is new."""

    source: int
    target: int


@dataclass(slots=True)
class TokenBlocks:
    """Counts only: a block's number says nothing about where it lies."""

    size: int
    per_sequence: int = 0  # blocks that each sequence counts for beside those of its tokens
    tables: dict[int, list[int]] = field(default_factory=dict)  # sequence → its blocks in order
    holders: dict[int, int] = field(default_factory=dict)  # block → how many tables it is in
    _next: int = 0

    @property
    def used(self) -> int:
        return len(self.holders) + self.per_sequence * len(self.tables)

    def growth(self, sequence: int, position: int, stop: int) -> int:
        """How many more blocks are used once `sequence` has written `position` to `stop`; less than 0 where fewer."""
        table = self.tables.get(sequence, [])
        more = 0 if sequence in self.tables else self.per_sequence
        keep = -(-position // self.size)
        freed = sum(self.holders[block] == 1 for block in table[keep:])
        copied = position % self.size > 0 and self.holders[table[keep - 1]] > 1
        return more + -(-stop // self.size) - keep + copied - freed

    def write(self, sequence: int, position: int, stop: int) -> Copied | None:
        """Hold exactly what `stop` tokens need, those from `position` on in blocks of its own."""
        self.truncate(sequence, position)
        table = self.tables.setdefault(sequence, [])
        copied = None
        if position % self.size and self.holders[table[-1]] > 1:
            (block,) = self._take(1, table[-2] if len(table) > 1 else GONE)
            copied = Copied(table[-1], block)
            self._give(table.pop())
            table.append(block)
        wanted = -(-stop // self.size) - len(table)
        if wanted > 0:
            table.extend(self._take(wanted, table[-1] if table else GONE))
        return copied

    def truncate(self, sequence: int, length: int) -> None:
        table = self.tables.get(sequence, [])
        while len(table) > -(-length // self.size):
            self._give(table.pop())

    def fork(self, source: int, target: int, length: int) -> Copied | None:
        """`target` holds the first `length` tokens of `source` as well."""
        origin = self.tables[source]
        table = origin[: length // self.size]
        for block in table:
            if block != GONE:
                self.holders[block] += 1
        self.tables[target] = table
        if length % self.size == 0:
            return None
        table.extend(self._take(1, GONE))
        return Copied(origin[len(table) - 1], table[-1])

    def forget(self, sequence: int, tokens: int) -> None:
        """Give back the blocks that lie wholly in front of the first `tokens`."""
        table = self.tables[sequence]
        for place in reversed(range(tokens // self.size)):
            if table[place] == GONE:
                return
            self._give(table[place])
            table[place] = GONE

    def drop(self, sequence: int) -> None:
        self.truncate(sequence, 0)
        self.tables.pop(sequence, None)

    def _give(self, block: int) -> None:
        if block == GONE:
            return
        self.holders[block] -= 1
        if not self.holders[block]:
            del self.holders[block]

    def _take(self, count: int, after: int) -> list[int]:
        """New blocks, best behind the block `after`."""
        first = self._next
        self._next += count
        return self._hold(range(first, first + count))

    def _hold(self, blocks: range) -> list[int]:
        self.holders.update(dict.fromkeys(blocks, 1))
        return list(blocks)


@dataclass(slots=True)
class PlacedBlocks(TokenBlocks):
    """Blocks by their place in `count` of them: a sequence's blocks lie side by side as far as possible."""

    count: int = 0
    _taken: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self._taken = np.zeros(self.count + 1, np.bool_)
        self._taken[-1] = True  # behind the last one nothing is free

    def _give(self, block: int) -> None:
        TokenBlocks._give(self, block)
        if block != GONE:
            self._taken[block] = block in self.holders

    def _take(self, count: int, after: int) -> list[int]:
        """First what is free behind `after`, then from the largest gap, until there are enough."""
        found: list[int] = []
        begin = after + 1
        while len(found) < count:
            if found or after == GONE or self._taken[begin]:
                begin = self._roomiest(count - len(found))
            free = int(self._taken[begin:].argmax())  # up to the next one that is taken
            blocks = range(begin, begin + min(free, count - len(found)))
            self._taken[blocks.start : blocks.stop] = True
            found += self._hold(blocks)
        return found

    def _roomiest(self, count: int) -> int:
        """Where to begin in the largest gap: its middle, so that what lies in front of it can still grow."""
        starts, stops = self._gaps()
        assert len(starts), "the ledger admits no more than there is"
        best = int((stops - starts).argmax())
        start, room = int(starts[best]), int(stops[best] - starts[best])
        return start + max(0, room - count) // 2 if start else start

    def gaps(self) -> list[range]:
        """The places of tokens that nobody holds."""
        starts, stops = (edges * self.size for edges in self._gaps())
        return [range(start, stop) for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]

    def _gaps(self) -> tuple[Numbers, Numbers]:
        """Where runs of free blocks start and stop."""
        edges = np.flatnonzero(np.diff(np.concatenate(([True], self._taken)).astype(np.int8)))
        return edges[::2], edges[1::2]

    def runs(self, sequences: list[int], firsts: list[int], stops: list[int]) -> list[list[range]]:
        """For each sequence where its tokens from a first one up to a stop lie, as ranges of places of tokens.

        Ranges are cut where other sequences of these share less or more, so that what is shared is the same range.
        """
        parts = [
            np.array(self.tables[sequence][first // self.size : -(-stop // self.size)], np.int64)
            for sequence, first, stop in zip(sequences, firsts, stops, strict=True)
        ]
        sharing = np.zeros(self.count, np.int64)
        for part in parts if len(parts) > 1 else ():
            sharing[part] += 1
        return [
            list(self._runs(part, sharing, first % self.size, stop - first))
            for part, first, stop in zip(parts, firsts, stops, strict=True)
        ]

    def _runs(self, blocks: Numbers, sharing: Numbers, skipped: int, tokens: int) -> list[range]:
        """`skipped` tokens of the first block are left out."""
        cuts = np.flatnonzero((np.diff(blocks) != 1) | (np.diff(sharing[blocks]) != 0)) + 1
        found = []
        for begin, end in zip((0, *cuts.tolist()), (*cuts.tolist(), len(blocks)), strict=True):
            start = int(blocks[begin]) * self.size + skipped
            count = min((end - begin) * self.size - skipped, tokens)
            found.append(range(start, start + count))
            tokens, skipped = tokens - count, 0
        return found
