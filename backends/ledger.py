"""What the shards of all backends share: the ledger of cached tokens, and the frame of a step. Imports no framework.

The position is the truth: a shard that holds more tokens truncates to it, one that holds fewer refuses the row. Lengths
are committed after the last layer, so a failed step leaves nothing behind: the next one first gives back what it wrote
and the blocks it took. Only its truncations stay; the next row at that position would make them again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from backends.base import NOTHING_SAID, ShardShape, StepOutput, check_frame
from backends.blocks import TokenBlocks
from together.sampling import argmax_answers, draws_for, sample
from together.types import BLOCK, Activation, Batch, Continuation, LayerRange, Orders, Row, RowResult, Sampled, Threads

SCORED = 2**22  # logits that exist at once while tokens are scored: 32 rows of 128k, which fit a step's workspace
Array = TypeVar("Array")
Logits = NDArray[np.float32]


# --- how many tokens a sequence holds ---------------------------------------------------------------------------------


class CacheStore(Protocol):
    """The tensors behind the ledger; lengths are always within what the ledger granted.

    A store may forget tokens that lie further back than `rewind` from the length at which a step began. `truncate` may
    name the current length (then rows written beyond it are forgotten), `drop` a sequence that was never written.
    `commit`: what was written since stays, and nobody goes back behind `rewind` from here. `trim`: memory in which
    nothing lies goes back to the system, as far as that is possible; it comes again when it is written.
    """

    def commit(self, sequence: int) -> None: ...

    def truncate(self, sequence: int, length: int) -> None: ...

    def fork(self, source: int, target: int, length: int) -> None: ...

    def drop(self, sequence: int) -> None: ...

    def trim(self) -> None: ...


@dataclass(slots=True)
class Ledger:
    """Admits rows and applies orders; also keeps each sequence's token ids, which the last stage's sampler needs.

    It is the one place that counts. A block that forks share counts once where the store really `shares` it; the block
    that a write needs for itself is counted when its row is admitted, or the row is refused.
    """

    store: CacheStore
    capacity: int
    block: int = BLOCK
    rewind: int | None = None
    shares: bool = False  # whether the store's forks hold their source's whole blocks, and copies them before it writes
    per_sequence: int = 0  # tokens that each sequence counts for beside its own: a recurrent state, in whole blocks
    tokens: dict[int, list[int]] = field(default_factory=dict)  # sequence → committed token ids
    floors: dict[int, int] = field(default_factory=dict)  # sequence → lowest position it can go back to, apart from 0
    held: TokenBlocks = field(init=False)
    _begun: dict[int, Row] = field(default_factory=dict, init=False)  # accepted, not committed

    def __post_init__(self) -> None:
        assert self.per_sequence % self.block == 0, "a sequence's own state counts as whole blocks"
        self.held = TokenBlocks(self.block, self.per_sequence // self.block)

    @property
    def used(self) -> int:
        """Tokens that all allocated blocks can hold."""
        return self.held.used * self.block

    def begin(self, batch: Batch) -> tuple[tuple[Row, ...], tuple[RowResult, ...]]:
        """Undo a failed step, apply the orders, truncate and admit: (rows to run, refusals), both in batch order.

        No row is empty or at a negative position, and no sequence has two: the shard refuses such a batch as a whole.
        """
        self.rollback()
        self._obey(batch.orders)
        refused: list[RowResult] = []
        for row in batch.rows:
            reason = self._refusal(row)
            if reason is None:
                self._admit(row)
            else:
                refused.append(RowResult(row.sequence, row.position, refusal=reason))
        return tuple(self._begun.values()), tuple(refused)

    def commit(self) -> None:
        """After the last layer ran: the tokens of the begun rows are cached now."""
        for row in self._begun.values():
            self.tokens.setdefault(row.sequence, []).extend(row.token_ids)
            self.store.commit(row.sequence)
            if self.rewind is not None:
                floor = self.length(row.sequence) - self.rewind
                self.floors[row.sequence] = max(floor, self.floors.get(row.sequence, 0))
        self._begun.clear()

    def rollback(self) -> None:
        """Give back what begun rows took and wrote since the last commit; `begin` does it by itself."""
        for sequence in self._begun:
            length = self.length(sequence)
            if length:
                self.store.truncate(sequence, length)
                self.held.truncate(sequence, length)
            else:
                self._drop(sequence)
        self._begun.clear()

    def length(self, sequence: int) -> int:
        return len(self.tokens.get(sequence, ()))

    def _refusal(self, row: Row) -> str | None:
        held, floor = self.length(row.sequence), self.floors.get(row.sequence, 0)
        if row.position > held:
            return f"holds {held} tokens of the sequence, was asked to go on at {row.position}"
        if 0 < row.position < floor:  # back to 0 is always possible: nothing of it is needed
            return f"can go back to token {floor} of the sequence, was asked to go back to {row.position}"
        if not self._fits(self.held.growth(row.sequence, row.position, row.position + len(row.token_ids))):
            return f"the KV cache is full ({self.used} of {self.capacity} tokens allocated)"
        return None

    def _admit(self, row: Row) -> None:
        if row.position == 0:
            self._drop(row.sequence)
        elif row.position < self.length(row.sequence):
            self.store.truncate(row.sequence, row.position)
            del self.tokens[row.sequence][row.position :]
        self.held.write(row.sequence, row.position, row.position + len(row.token_ids))
        self._begun[row.sequence] = row

    def _fits(self, blocks: int) -> bool:
        """Whether there is room for so many more."""
        return self.used + blocks * self.block <= self.capacity

    def _obey(self, orders: Orders) -> None:
        for fork in orders.forks:
            self._fork(fork.source, fork.target, fork.length)
        for sequence in orders.drops:
            self._drop(sequence)
        if orders.trim:
            self.store.trim()

    def _drop(self, sequence: int) -> None:
        if sequence in self.held.tables:
            self.held.drop(sequence)
            self.tokens.pop(sequence, None)
            self.floors.pop(sequence, None)
            self.store.drop(sequence)

    def _fork(self, source: int, target: int, length: int) -> None:
        """Does nothing if the target exists, the source is too short or there is no room: the next row says so."""
        known, floor = target in self.held.tables, self.floors.get(source, 0)
        if known or not max(1, floor) <= length <= self.length(source):
            return
        shared = length // self.block if self.shares else 0
        if not self._fits(-(-length // self.block) - shared + self.held.per_sequence):
            return
        self.store.fork(source, target, length)
        self.tokens[target] = self.tokens[source][:length]
        if self.shares:
            self.held.fork(source, target, length)
        else:
            self.held.write(target, 0, length)
        if floor:
            self.floors[target] = floor  # the copy has no more of the past than its source


# --- the frame of a step ----------------------------------------------------------------------------------------------


class LedgerShard(ABC, Generic[Array]):
    """The contract's Shard over a framework's `Array`s; the framework implements the abstract methods.

    All rows of a step are packed: their tokens follow one another, so that a step reads each weight once.
    """

    def __init__(self, shape: ShardShape, ledger: Ledger) -> None:
        self._shape, self._ledger = shape, ledger
        self.computing = NOTHING_SAID  # for a framework that knows more to fill in

    @property
    def layers(self) -> LayerRange:
        return self._shape.layers

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
    def shares(self) -> bool:
        return self._ledger.shares

    @property
    def per_sequence(self) -> int:
        return self._ledger.per_sequence

    @property
    def sequences(self) -> int:
        return len(self._ledger.held.tables)

    def share(self, stages: int) -> Threads | None:
        """Nothing to choose, unless a framework overrides it."""
        return None

    def limit(self, percent: int) -> None:
        """Nothing to choose, unless a framework overrides it."""

    def step(self, batch: Batch, hidden: Activation | None) -> StepOutput:
        rows, refusals, given = self._begin(batch, hidden)
        if not rows:
            nothing = Activation(self._shape.dtype, 0, self._shape.width, b"")
            return StepOutput(None if self._shape.last else nothing, refusals)
        states = self._forward(rows, given)
        if self._shape.last:
            drawn, scores = self._draw(rows, states), self._score(rows, states)
            output = StepOutput(None, _in_order(batch, rows, refusals, drawn, scores))
        else:
            output = StepOutput(self._write(rows, states), refusals)
        self._ledger.commit()
        return output

    def logits(self, batch: Batch, hidden: Activation | None) -> Logits:
        """Last stage only: a step that draws nothing; the raw logits at all offsets of its rows, `[offsets, vocab]`."""
        rows, _, given = self._begin(batch, hidden)
        states = self._forward(rows, given)
        logits = self._to_numpy(rows, self._logits(states, _places(rows)))
        self._ledger.commit()
        return logits

    @abstractmethod
    def close(self) -> None: ...

    # --- what a framework implements ---

    @abstractmethod
    def _read(self, hidden: Activation) -> Array:
        """The states of an activation that fits; read only."""

    @abstractmethod
    def _join(self, states: Array, parts: Iterable[slice]) -> Array:
        """These parts of the packed states, packed again."""

    @abstractmethod
    def _forward(self, rows: tuple[Row, ...], states: Array | None) -> Array:
        """The states of the rows after the last layer; on the first stage `states` is None. Writes the caches."""

    @abstractmethod
    def _write(self, rows: tuple[Row, ...], states: Array) -> Activation:
        """Computed states as what travels."""

    @abstractmethod
    def _logits(self, states: Array, places: list[int]) -> Array:
        """Raw logits of these tokens, `[places, vocab]`: the head runs over nothing else."""

    @abstractmethod
    def _to_numpy(self, rows: tuple[Row, ...], logits: Array) -> Logits:
        """Computed logits in fp32."""

    def _greedy(self, rows: tuple[Row, ...], logits: Array, rest: list[int]) -> tuple[list[int], bool, Logits]:
        """The best token at each place, whether its logit is finite everywhere, and the logits at the places `rest`.

        Frameworks that can find the best on their device override this.
        """
        values = self._to_numpy(rows, logits)
        best = values.argmax(axis=-1)
        return best.tolist(), bool(np.isfinite(values.max(axis=-1)).all()), values[rest]

    def _chosen(self, rows: tuple[Row, ...], logits: Array, ids: list[int]) -> tuple[Logits, Logits]:
        """In each row of the logits that of one id, and the logarithm of the sum of all exponentials: `[rows]` each.

        Frameworks that can do it on their device override this.
        """
        values = self._to_numpy(rows, logits)
        peaks = values.max(axis=-1)
        sums = np.exp(values - peaks[:, None]).sum(axis=-1)
        return values[np.arange(len(ids)), ids], peaks + np.log(sums)

    def _settle(self, rows: tuple[Row, ...]) -> None:
        """Finish what the rows wrote to their caches, where no result asked for it."""

    # --- the frame ---

    def _begin(
        self, batch: Batch, hidden: Activation | None
    ) -> tuple[tuple[Row, ...], tuple[RowResult, ...], Array | None]:
        """(rows to run, refusals, states of these rows). Raises FrameRefused before anything has changed."""
        self._check(batch, hidden)
        given = self._read(hidden) if hidden is not None and hidden.tokens else None
        rows, refusals = self._ledger.begin(batch)
        if given is not None and rows and refusals:
            given = self._join(given, spans(batch, rows))
        return rows, refusals, given

    def _check(self, batch: Batch, hidden: Activation | None) -> None:
        """Raises FrameRefused for a frame that this shard cannot run."""
        check_frame(self._shape, batch, hidden)

    def _draw(self, rows: tuple[Row, ...], states: Array) -> list[Sampled]:
        """The tokens at all offsets, in order: plain greedy ones by the framework, the others by the shared sampler."""
        plain = [argmax_answers(row.sample) for row in rows if row.sample for _ in row.sample.offsets]
        if not plain:
            self._settle(rows)
            return []
        rest = [i for i, answered in enumerate(plain) if not answered]
        best, finite, logits = self._greedy(rows, self._logits(states, _places(rows)), rest)
        self._require_finite(finite)
        draws = [draw for row in rows for draw in draws_for(row, self._ledger.tokens.get(row.sequence, ()))]
        others = iter(sample(logits, [draws[i] for i in rest]) if rest else ())
        return [Sampled(token) if answered else next(others) for token, answered in zip(best, plain, strict=True)]

    def _score(self, rows: tuple[Row, ...], states: Array) -> list[float]:
        """The log-probabilities that rows ask for, in order; the head makes at most SCORED logits at a time."""
        scores: list[float] = []
        count = max(1, SCORED // self._shape.vocabulary)
        wanted = [(at + score.offset, score.token_id) for row, at in starts(rows) for score in _asked(row)]
        for begin in range(0, len(wanted), count):
            places, ids = zip(*wanted[begin : begin + count], strict=True)
            chosen, total = self._chosen(rows, self._logits(states, list(places)), list(ids))
            self._require_finite(bool(np.isfinite(total).all()))
            scores.extend((chosen - total).tolist())
        return scores

    def _require_finite(self, finite: bool) -> None:
        if not finite:
            raise ValueError(
                f"{self._shape.model} computes no finite logits in {self._shape.dtype}; load it in bf16 or fp32"
            )


def starts(rows: Sequence[Row]) -> Iterator[tuple[Row, int]]:
    """Each row with the place of its first token in the packing."""
    return zip(rows, accumulate((len(row.token_ids) for row in rows), initial=0), strict=False)


def spans(batch: Batch, accepted: tuple[Row, ...]) -> Iterator[slice]:
    """Where each accepted row's tokens lie in the packed states of the whole batch."""
    wanted = {row.sequence for row in accepted}
    return (slice(at, at + len(row.token_ids)) for row, at in starts(batch.rows) if row.sequence in wanted)


def token_ids(rows: Sequence[Row]) -> list[int]:
    return [token for row in rows for token in row.token_ids]


def positions(rows: Sequence[Row]) -> list[int]:
    """Each packed token's position in its sequence."""
    return [row.position + i for row in rows for i in range(len(row.token_ids))]


def axis_positions(rows: Sequence[Row]) -> list[list[int]]:
    """On each axis each packed token's position: one axis where no row names its own, or all do alike."""
    axes = max((len(row.positions) for row in rows), default=0)
    if not axes:
        return [positions(rows)]
    found: list[list[int]] = []
    for axis in range(axes):
        each = (row.positions[axis] if row.positions else positions([row]) for row in rows)
        found.append([place for places in each for place in places])
    return found if any(each != found[0] for each in found[1:]) else found[:1]


def _places(rows: Sequence[Row]) -> list[int]:
    """Where the rows ask for samples, in the packing."""
    return [start + offset for row, start in starts(rows) if row.sample for offset in row.sample.offsets]


def _asked(row: Row) -> tuple[Continuation, ...]:
    return row.sample.score if row.sample else ()


def _in_order(
    batch: Batch, rows: tuple[Row, ...], refusals: tuple[RowResult, ...], drawn: list[Sampled], scores: list[float]
) -> tuple[RowResult, ...]:
    """One result per row of the batch, in its order."""
    results, tokens, values = {refusal.sequence: refusal for refusal in refusals}, iter(drawn), iter(scores)
    for row in rows:
        offsets = row.sample.offsets if row.sample else ()
        sampled = tuple(next(tokens) for _ in offsets)
        found = tuple(next(values) for _ in _asked(row))
        results[row.sequence] = RowResult(row.sequence, row.position, sampled, scores=found)
    return tuple(results[row.sequence] for row in batch.rows)
