"""The ledger's rules, with a store that holds plain lists and fails like tensors would."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.ledger import Ledger, spans
from together.types import Batch, Fork, Orders, Row


@dataclass
class Lists:
    """What was really written per sequence; every order must name something that is there."""

    written: dict[int, list[int]] = field(default_factory=dict)
    trimmed: list[int] = field(default_factory=list)  # how many sequences were there each time

    def commit(self, sequence: int) -> None: ...

    def truncate(self, sequence: int, length: int) -> None:
        assert length > 0
        del self.written.get(sequence, [])[length:]

    def fork(self, source: int, target: int, length: int) -> None:
        assert target not in self.written
        assert length <= len(self.written[source])
        self.written[target] = self.written[source][:length]

    def drop(self, sequence: int) -> None:
        self.written.pop(sequence, None)

    def trim(self) -> None:
        self.trimmed.append(len(self.written))

    def write(self, row: Row) -> None:
        held = self.written.setdefault(row.sequence, [])
        assert len(held) == row.position, "a shard writes at the row's position"
        held.extend(row.token_ids)


class Shard:
    """A store behind a ledger, stepped as a backend does it."""

    def __init__(self, capacity: int = 1000, block: int = 4, rewind: int | None = None, per_sequence: int = 0) -> None:
        self.store = Lists()
        self.ledger = Ledger(self.store, capacity, block, rewind, per_sequence=per_sequence)

    def step(self, *rows: Row, drops: tuple[int, ...] = (), forks: tuple[Fork, ...] = ()) -> list[str]:
        """One committed step; the reasons of refused rows."""
        accepted, refused = self.ledger.begin(Batch(rows, Orders(drops, forks)))
        for row in accepted:
            self.store.write(row)
        self.ledger.commit()
        return [result.refusal or "" for result in refused]

    def fail(self, *rows: Row) -> None:
        """A step that dies after it wrote every other row."""
        accepted, _ = self.ledger.begin(Batch(rows))
        for row in accepted[::2]:
            self.store.write(row)

    def allocated(self) -> dict[int, int]:
        """By sequence, how many tokens its blocks can hold."""
        return {sequence: self.ledger.block * len(table) for sequence, table in self.ledger.held.tables.items()}

    def check(self) -> None:
        """What must hold between steps, whatever happened."""
        assert self.store.written == self.ledger.tokens
        tables, tokens = self.ledger.held.tables, self.ledger.tokens
        assert {s: len(table) for s, table in tables.items()} == {s: -(-len(t) // 4) for s, t in tokens.items()}
        assert self.ledger.used == 4 * len({each for table in tables.values() for each in table})
        assert self.ledger.used <= self.ledger.capacity


def row(sequence: int, position: int, *tokens: int) -> Row:
    return Row(sequence, position, tokens)


def tokens(count: int, start: int = 0) -> tuple[int, ...]:
    return tuple(range(start, start + count))


# --- the position is the truth ----------------------------------------------------------------------------------------


def test_rows_go_on_where_they_ended() -> None:
    shard = Shard()
    assert shard.step(row(1, 0, 10, 11), row(2, 0, 20)) == []
    assert shard.step(row(1, 2, 12), row(2, 1, 21, 22)) == []
    assert shard.ledger.tokens == {1: [10, 11, 12], 2: [20, 21, 22]}
    shard.check()


def test_a_lower_position_truncates() -> None:
    shard = Shard()
    shard.step(row(1, 0, 10, 11, 12))
    assert shard.step(row(1, 1, 99)) == []
    assert shard.ledger.tokens[1] == shard.store.written[1] == [10, 99]


def test_a_higher_position_refuses_that_row_alone() -> None:
    shard = Shard()
    shard.step(row(1, 0, 10))
    reasons = shard.step(row(1, 3, 13), row(2, 1, 21), row(3, 0, 30))
    assert len(reasons) == 2
    assert "holds 1 tokens" in reasons[0]
    assert "holds 0 tokens" in reasons[1]
    assert shard.ledger.tokens == {1: [10], 3: [30]}
    shard.check()


def test_refusals_and_accepted_rows_keep_the_order_of_the_batch() -> None:
    shard = Shard()
    accepted, refused = shard.ledger.begin(Batch((row(5, 9, 1), row(4, 0, 1), row(3, 9, 1), row(2, 0, 1))))
    assert [r.sequence for r in accepted] == [4, 2]
    assert [(r.sequence, r.position) for r in refused] == [(5, 9), (3, 9)]


def test_spans_are_those_of_the_whole_batch() -> None:
    first, second, third = row(1, 0, 10, 11), row(2, 0, 20), row(3, 0, 30, 31, 32)
    batch = Batch((first, second, third))
    assert list(spans(batch, (first, third))) == [slice(0, 2), slice(3, 6)]
    assert list(spans(batch, ())) == []


# --- rewind -----------------------------------------------------------------------------------------------------------


def test_undoing_within_the_rewind_works_and_beyond_it_is_refused() -> None:
    shard = Shard(rewind=3)
    shard.step(row(1, 0, *tokens(10)))
    assert "back to token 7" in shard.step(row(1, 6, 99))[0]
    assert shard.ledger.length(1) == 10
    assert shard.step(row(1, 7, 99)) == []
    assert shard.ledger.tokens[1] == [*tokens(7), 99]


def test_undoing_twice_does_not_reach_further_back() -> None:
    """A window of tensors that was left behind does not come back by undoing: the longest length counts."""
    shard = Shard(rewind=3)
    shard.step(row(1, 0, *tokens(10)))
    assert shard.step(row(1, 7, 99)) == []
    assert "back to token 7" in shard.step(row(1, 6, 99))[0]
    assert shard.step(row(1, 7, 98)) == []


def test_starting_anew_is_always_possible_and_forgets_the_past() -> None:
    shard = Shard(rewind=3)
    shard.step(row(1, 0, *tokens(10)))
    assert shard.step(row(1, 0, 7, 8)) == []
    assert shard.step(row(1, 1, 9)) == []
    assert shard.ledger.tokens[1] == [7, 9]
    shard.check()


def test_without_a_rewind_everything_can_be_undone() -> None:
    shard = Shard()
    shard.step(row(1, 0, *tokens(100)))
    assert shard.step(row(1, 1, 5)) == []


# --- capacity ---------------------------------------------------------------------------------------------------------


def test_capacity_counts_whole_blocks() -> None:
    shard = Shard(capacity=8, block=4)
    assert shard.step(row(1, 0, 1), row(2, 0, 1)) == []
    assert shard.ledger.used == 8
    assert "full (8 of 8" in shard.step(row(3, 0, 1))[0]
    assert shard.step(row(1, 1, *tokens(3)), row(2, 1, *tokens(3))) == []  # within their blocks
    assert "full" in shard.step(row(1, 4, 1))[0]
    shard.check()


def test_a_row_without_room_is_refused_and_keeps_what_it_had() -> None:
    shard = Shard(capacity=8, block=4)
    shard.step(row(1, 0, *tokens(8)))
    assert "full" in shard.step(row(1, 2, *tokens(7)))[0]
    assert shard.ledger.length(1) == 8  # not truncated either
    assert "full" in shard.step(row(1, 0, *tokens(9)))[0]
    shard.check()


def test_truncation_and_drops_give_room_back() -> None:
    shard = Shard(capacity=12, block=4)
    shard.step(row(1, 0, *tokens(12)))
    assert shard.step(row(1, 2, 99), row(2, 0, *tokens(5))) == []
    assert shard.allocated() == {1: 4, 2: 8}
    assert shard.step(row(3, 0, *tokens(8)), drops=(2,)) == []  # orders come before rows
    assert shard.allocated() == {1: 4, 3: 8}
    shard.check()


# --- orders -----------------------------------------------------------------------------------------------------------


def test_a_fork_copies_the_first_tokens() -> None:
    shard = Shard()
    shard.step(row(1, 0, *tokens(6)))
    assert shard.step(row(2, 4, 99), row(1, 6, 6), forks=(Fork(1, 2, 4),)) == []
    assert shard.ledger.tokens == {1: list(tokens(7)), 2: [0, 1, 2, 3, 99]}
    shard.check()


def test_forks_come_before_drops() -> None:
    shard = Shard()
    shard.step(row(1, 0, *tokens(6)))
    assert shard.step(row(2, 6, 6), forks=(Fork(1, 2, 6),), drops=(1,)) == []
    assert shard.ledger.tokens == {2: list(tokens(7))}


def test_orders_are_idempotent() -> None:
    shard = Shard()
    shard.step(row(1, 0, *tokens(6)))
    for _ in range(2):
        shard.step(forks=(Fork(1, 2, 3), Fork(1, 2, 3)), drops=(7, 7))
        assert shard.ledger.tokens == {1: list(tokens(6)), 2: [0, 1, 2]}
    shard.step(row(2, 3, 99))
    shard.step(forks=(Fork(1, 2, 3),))  # repeated after the copy went on: it keeps what it has
    assert shard.ledger.tokens[2] == [0, 1, 2, 99]
    for _ in range(2):
        shard.step(drops=(1, 2))
        assert shard.ledger.used == 0
    shard.check()


@pytest.mark.parametrize("fork", [Fork(1, 2, 7), Fork(1, 2, 0), Fork(9, 2, 1), Fork(1, 2, -1)], ids=str)
def test_a_fork_that_cannot_be_is_not_done_and_the_next_row_says_so(fork: Fork) -> None:
    shard = Shard()
    shard.step(row(1, 0, *tokens(6)))
    assert "holds 0 tokens" in shard.step(row(2, max(1, fork.length), 99), forks=(fork,))[0]
    shard.check()


def test_a_fork_needs_room() -> None:
    shard = Shard(capacity=8, block=4)
    shard.step(row(1, 0, *tokens(5)))
    shard.step(forks=(Fork(1, 2, 1),))
    assert shard.ledger.tokens.keys() == {1}
    shard.check()


def test_a_fork_reaches_no_further_back_than_its_source() -> None:
    shard = Shard(rewind=3)
    shard.step(row(1, 0, *tokens(10)))
    assert "holds 0 tokens" in shard.step(row(2, 6, 99), forks=(Fork(1, 2, 6),))[0]
    assert shard.step(row(3, 7, 99), forks=(Fork(1, 3, 7),)) == []
    assert "back to token 7" in shard.step(row(3, 6, 99))[0]
    assert shard.step(forks=(Fork(3, 4, 7),)) == []
    assert shard.ledger.length(4) == 7


# --- failed steps -----------------------------------------------------------------------------------------------------


def test_a_failed_step_leaves_nothing_behind() -> None:
    shard = Shard(capacity=16, block=4)
    shard.step(row(1, 0, 10, 11), row(2, 0, 20))
    shard.fail(row(1, 2, *tokens(5)), row(2, 1, 21), row(3, 0, 30))
    assert shard.ledger.tokens == {1: [10, 11], 2: [20]}
    shard.step()
    assert shard.allocated() == {1: 4, 2: 4}  # a new sequence is gone, an old one has its old blocks
    shard.check()


def test_a_failed_step_can_be_sent_again_even_when_it_filled_the_cache() -> None:
    shard = Shard(capacity=8, block=4)
    rows = (row(1, 0, *tokens(4)), row(2, 0, *tokens(4)))
    shard.fail(*rows)
    assert shard.step(*rows) == []
    shard.fail(row(3, 0, 1))
    shard.check()


def test_a_failed_step_does_not_hold_its_room_against_others() -> None:
    shard = Shard(capacity=8, block=4)
    shard.fail(row(1, 0, *tokens(8)))
    assert shard.step(row(2, 0, *tokens(8))) == []
    shard.check()


def test_a_truncation_stays_when_its_step_fails() -> None:
    shard = Shard()
    shard.step(row(1, 0, *tokens(6)))
    shard.fail(row(1, 2, 99))
    assert shard.step(row(1, 2, 99)) == []
    assert shard.ledger.tokens[1] == [0, 1, 99]
    shard.check()


def test_a_sequence_of_a_failed_step_can_be_dropped_forked_from_and_forked_to() -> None:
    shard = Shard()
    shard.step(row(1, 0, *tokens(6)))
    shard.fail(row(1, 6, 6), row(2, 0, 50))
    shard.step(forks=(Fork(1, 2, 6), Fork(1, 3, 7)), drops=(1,))
    assert shard.ledger.tokens == {2: list(tokens(6))}
    shard.check()


# --- anything at all --------------------------------------------------------------------------------------------------

SEQUENCES = st.integers(0, 3)
STEPS = st.tuples(
    st.lists(st.tuples(SEQUENCES, st.integers(0, 14), st.integers(1, 6)), max_size=4),
    st.lists(SEQUENCES, max_size=1),
    st.lists(st.tuples(SEQUENCES, SEQUENCES, st.integers(-1, 12)), max_size=2),
    st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, max_size=12), st.sampled_from([None, 0, 3]))
def test_whatever_comes_the_store_holds_what_the_ledger_says(
    steps: list[tuple[list[tuple[int, int, int]], list[int], list[tuple[int, int, int]], bool]], rewind: int | None
) -> None:
    shard = Shard(capacity=24, block=4, rewind=rewind)
    for given_rows, drops, forks, fails in steps:
        rows = list({s: Row(s, p, tokens(n, 100 * s + p)) for s, p, n in given_rows}.values())
        if fails:
            shard.fail(*rows)
            shard.ledger.rollback()
        else:
            shard.step(*rows, drops=tuple(drops), forks=tuple(Fork(*fork) for fork in forks))
        shard.check()


# --- states of a fixed size -------------------------------------------------------------------------------------------


def test_each_sequence_counts_for_its_state_too() -> None:
    shard = Shard(capacity=40, rewind=0, per_sequence=12)
    assert shard.step(row(1, 0, 5), row(2, 0, 5)) == []
    assert shard.ledger.used == 2 * (12 + 4)
    assert shard.step(row(3, 0, 5)) == ["the KV cache is full (32 of 40 tokens allocated)"]
    assert shard.step(row(2, 0, *tokens(5))) == []  # it has its state already
    shard.step(forks=(Fork(1, 4, 1),))
    assert shard.ledger.length(4) == 0, "a fork has a state of its own, and there is no room"
    shard.step(drops=(2,))
    shard.step(forks=(Fork(1, 4, 1),))
    assert (shard.ledger.length(4), shard.ledger.used) == (1, 2 * (12 + 4))


def test_without_a_way_back_only_the_end_can_be_forked() -> None:
    shard = Shard(rewind=0)
    shard.step(row(1, 0, *tokens(6)))
    shard.step(row(1, 6, 9), forks=(Fork(1, 2, 5), Fork(1, 3, 6)))
    assert [shard.ledger.length(sequence) for sequence in (1, 2, 3)] == [7, 0, 6]
    assert shard.step(row(1, 6, 9)) == ["can go back to token 7 of the sequence, was asked to go back to 6"]
    assert shard.step(row(1, 0, 9)) == []


def test_memory_is_given_back_once_the_drops_are_obeyed() -> None:
    shard = Shard()
    shard.step(Row(1, 0, (5, 6)), Row(2, 0, (5, 6)))
    shard.ledger.begin(Batch((), Orders(drops=(1,))))
    assert shard.store.trimmed == []
    shard.ledger.begin(Batch((), Orders(drops=(2,), trim=True)))
    assert shard.store.trimmed == [0]
