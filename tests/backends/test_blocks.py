"""Blocks behind a ledger, with numbers in the place of keys and values: what is shared, copied, and never promised."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.blocks import Copied, PlacedBlocks
from backends.ledger import Ledger
from together.types import Batch, Fork, Orders, Row

BLOCK = 4


@dataclass
class Numbers:
    """A store that shares blocks, as one of tensors does it."""

    count: int
    blocks: PlacedBlocks = field(init=False)
    pool: list[int] = field(init=False)  # by place

    def __post_init__(self) -> None:
        self.blocks = PlacedBlocks(BLOCK, count=self.count)
        self.pool = [-1] * (self.count * BLOCK)

    def commit(self, sequence: int) -> None: ...

    def truncate(self, sequence: int, length: int) -> None:
        self.blocks.truncate(sequence, length)

    def fork(self, source: int, target: int, length: int) -> None:
        self._copy(self.blocks.fork(source, target, length))

    def drop(self, sequence: int) -> None:
        self.blocks.drop(sequence)

    def trim(self) -> None: ...

    def write(self, row: Row) -> None:
        stop = row.position + len(row.token_ids)
        self._copy(self.blocks.write(row.sequence, row.position, stop))
        for place, token in zip(self.places(row.sequence, stop)[row.position :], row.token_ids, strict=True):
            self.pool[place] = token

    def places(self, sequence: int, length: int) -> list[int]:
        (runs,) = self.blocks.runs([sequence], [0], [length])
        return [place for run in runs for place in run]

    def read(self, sequence: int, length: int) -> list[int]:
        return [self.pool[place] for place in self.places(sequence, length)]

    def _copy(self, copied: Copied | None) -> None:
        if copied:
            source, target = (slice(block * BLOCK, (block + 1) * BLOCK) for block in copied)
            self.pool[target] = self.pool[source]


class Shard:
    def __init__(self, blocks: int = 100, rewind: int | None = None) -> None:
        self.store = Numbers(blocks)
        self.ledger = Ledger(self.store, blocks * BLOCK, BLOCK, rewind, shares=True)

    def step(self, *rows: Row, drops: tuple[int, ...] = (), forks: tuple[Fork, ...] = (), fails: bool = False) -> bool:
        """Whether all rows were accepted. A step that fails has written every other row."""
        accepted, refused = self.ledger.begin(Batch(rows, Orders(drops, forks)))
        for row in accepted[:: 2 if fails else 1]:
            self.store.write(row)
        if fails:
            self.ledger.rollback()
        else:
            self.ledger.commit()
        self.check()
        return not refused

    def check(self) -> None:
        """The store holds what the ledger says, in no more blocks than it counts."""
        for sequence, tokens in self.ledger.tokens.items():
            assert self.store.read(sequence, len(tokens)) == tokens
        assert self.store.blocks.used <= self.ledger.held.used <= self.store.count
        assert self.store.blocks.used == int(self.store.blocks._taken[:-1].sum())


def row(sequence: int, position: int, *tokens: int) -> Row:
    return Row(sequence, position, tokens)


def tokens(count: int, start: int = 0) -> tuple[int, ...]:
    return tuple(range(start, start + count))


def test_forks_share_whole_blocks_and_have_the_rest_of_their_own() -> None:
    shard = Shard()
    shard.step(row(1, 0, *tokens(11)))
    shard.step(row(2, 11, 50), row(3, 9, 60), row(1, 11, 70), forks=(Fork(1, 2, 11), Fork(1, 3, 9)))
    assert shard.store.blocks.used == shard.ledger.held.used == 2 + 3
    assert shard.ledger.used == 5 * BLOCK
    assert shard.ledger.tokens[3] == [*tokens(9), 60]


def test_a_block_goes_with_the_last_who_holds_it() -> None:
    shard = Shard()
    shard.step(row(1, 0, *tokens(8)))
    shard.step(forks=(Fork(1, 2, 8),), drops=(1,))
    assert shard.ledger.used == 8
    shard.step(drops=(2,))
    assert shard.ledger.used == shard.store.blocks.used == 0


def test_whoever_goes_back_into_a_shared_block_writes_into_a_copy() -> None:
    shard = Shard()
    shard.step(row(1, 0, *tokens(12)))
    shard.step(forks=(Fork(1, 2, 12), Fork(1, 3, 12)))
    assert shard.ledger.used == 12
    shard.step(row(2, 6, 99), row(1, 7, 98))  # in one step, in the same block
    assert shard.ledger.tokens == {1: [*tokens(7), 98], 2: [*tokens(6), 99], 3: list(tokens(12))}
    assert shard.ledger.used == 12 + 2 * BLOCK


def test_a_copy_that_does_not_fit_is_refused_before_anything_is_written() -> None:
    shard = Shard(blocks=3)
    shard.step(row(1, 0, *tokens(12)))
    shard.step(forks=(Fork(1, 2, 12),))
    assert not shard.step(row(2, 6, 99))  # 1 needs all three blocks: there is none for a copy
    assert shard.ledger.tokens[2] == list(tokens(12))
    assert shard.step(row(2, 6, 99), drops=(1,))


def test_a_fork_gets_the_room_that_its_first_token_needs() -> None:
    """Room for the token after a fork is taken by the fork: it cannot be promised to others meanwhile."""
    shard = Shard(blocks=4)
    shard.step(row(1, 0, *tokens(10)))
    shard.step(forks=(Fork(1, 2, 10), Fork(1, 3, 10)))
    assert set(shard.ledger.tokens) == {1, 2}  # there was no fourth place for 3's last tokens
    assert not shard.step(row(4, 0, 7))
    assert shard.step(row(1, 10, 8), row(2, 10, 9))


def test_sequences_that_grow_side_by_side_stay_in_one_piece() -> None:
    shard = Shard(blocks=64)
    for position in range(0, 40, BLOCK):
        shard.step(*(row(sequence, position, *tokens(BLOCK)) for sequence in range(4)))
    runs = shard.store.blocks.runs([0, 1, 2, 3], [0] * 4, [40] * 4)
    assert [len(found) for found in runs] == [1, 1, 1, 1]


def test_what_is_shared_is_the_same_range_for_all() -> None:
    shard = Shard()
    shard.step(row(1, 0, *tokens(40)))
    forks = tuple(Fork(1, target, length) for target, length in ((2, 38), (3, 38), (4, 17)))
    shard.step(row(2, 38, 7), row(3, 38, 7), row(4, 17, 7), forks=forks)
    runs = shard.store.blocks.runs([1, 2, 3, 4], [0] * 4, [40, 39, 39, 18])
    assert runs[0][0] == runs[1][0] == runs[2][0] == runs[3][0] == range(16)
    assert runs[0][1] == runs[1][1] == runs[2][1] == range(16, 36)
    assert len({run for found in runs for run in found}) == 2 + 4


def test_blocks_that_a_window_left_behind_are_free() -> None:
    blocks = PlacedBlocks(BLOCK, count=8)
    blocks.write(1, 0, 30)
    blocks.forget(1, 11)
    assert blocks.used == 8 - 2
    blocks.fork(1, 2, 28)
    blocks.forget(1, 17)
    assert blocks.used == 6  # 2 still needs them
    blocks.drop(2)
    assert blocks.used == 4
    blocks.write(3, 0, 16)
    (runs,) = blocks.runs([1], [16], [30])
    assert [place for run in runs for place in run] == list(range(16, 30))


SEQUENCES = st.integers(0, 4)
STEPS = st.tuples(
    st.lists(st.tuples(SEQUENCES, st.integers(0, 18), st.integers(1, 9)), max_size=4),
    st.lists(SEQUENCES, max_size=1),
    st.lists(st.tuples(SEQUENCES, SEQUENCES, st.integers(1, 18)), max_size=3),
    st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=14), st.sampled_from([None, 0, 5]))
def test_whatever_comes_every_sequence_keeps_its_own_tokens_and_room_is_enough(
    steps: list[tuple[list[tuple[int, int, int]], list[int], list[tuple[int, int, int]], bool]], rewind: int | None
) -> None:
    shard = Shard(blocks=7, rewind=rewind)
    fresh = iter(range(10**6))
    for given_rows, drops, forks, fails in steps:
        rows = {s: Row(s, p, tuple(next(fresh) for _ in range(n))) for s, p, n in given_rows}.values()
        shard.step(*rows, drops=tuple(drops), forks=tuple(Fork(*fork) for fork in forks), fails=fails)


@pytest.mark.parametrize("count", [1, 7, 40])
def test_a_cache_can_be_filled_to_the_last_block(count: int) -> None:
    blocks = PlacedBlocks(BLOCK, count=count)
    for sequence in range(count):
        blocks.write(sequence, 0, 1)
    assert sorted(np.concatenate(list(blocks.tables.values()))) == list(range(count))
    for sequence in range(0, count, 2):
        blocks.drop(sequence)
    blocks.write(count, 0, BLOCK * ((count + 1) // 2))  # in as many pieces as there are gaps
    assert blocks.used == count
