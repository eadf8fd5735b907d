"""The checksum toy's shard: layers that hash each token with all tokens before it. Knows no file and no device.

Hidden states are whole numbers below 2**24, exact in fp32, so any cut on any machine gives the same bits. With mix =
splitmix64's finalizer, G the golden ratio's 64 bits and everything modulo 2**64, layer i does for position p:

    fold(x)     = Σ x[w] · (2w + 1) · G
    entry[p]    = mix(fold(hidden[p]) + fold(weight of i) + (p + 1) · G)            what the KV cache holds, 8 bytes
    seen        = Σ entry[j] · (2j + 1)  for j = 0 … p                              reads the whole cache, in its order
    hidden[p,w] = (hidden[p,w] + mix(seen + (w + 1) · G) >> 40) modulo 2**24

and the last stage, with values from 0 to 16 (quiet ids get 16 less):

    logit[v]    = (mix(fold(hidden[p]) + fold(norm) + fold(head[v])) >> 42) / 2**18
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from backends.base import StepOutput
from backends.ledger import Ledger, LedgerShard, spans
from together.errors import FrameRefused
from together.sampling import draws_for, mix64, sample
from together.types import Activation, Batch, LayerRange, Row, RowResult

Words = NDArray[np.uint64]

KV_BYTES = 8  # per token and layer
GOLDEN = 0x9E3779B97F4A7C15
DEVOURED = 2**30  # bytes: more than a test's limit, and no harm where there is none
LIMIT = 2**24  # whole numbers below it are exact in fp32


@dataclass(frozen=True, slots=True)
class Behaviour:
    """The toy's shape, and how it misbehaves."""

    width: int
    vocabulary: int
    context: int
    block: int = 16
    rewind: int | None = None
    step_ms: float = 0.0  # per layer
    fail_at: int | None = None  # a row that covers this position fails the step …
    fail_layer: int = 0  # … on the stage that holds this layer
    most_layers: int | None = None  # a stage of more has no memory for that position
    devour_at: int | None = None  # such a stage fills memory at this position, until the system kills it
    quiet_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Weights:
    """Folded `keys` [layers]; on the first stage `embed` [vocab, width], on the last the folded `head` [vocab]."""

    keys: Words
    embed: Words | None
    head: Words | None


@dataclass(slots=True)
class Entries:
    """The KV cache: per sequence `[layers, tokens]`; the CacheStore behind the ledger."""

    layers: int
    held: dict[int, Words] = field(default_factory=dict)

    def of(self, sequence: int) -> Words:
        return self.held.get(sequence, np.empty((self.layers, 0), np.uint64))

    def append(self, sequence: int, fresh: Words) -> None:
        self.held[sequence] = np.concatenate((self.of(sequence), fresh), axis=1)

    def truncate(self, sequence: int, length: int) -> None:
        self.held[sequence] = self.held[sequence][:, :length]

    def fork(self, source: int, target: int, length: int) -> None:
        self.held[target] = self.held[source][:, :length].copy()

    def drop(self, sequence: int) -> None:
        self.held.pop(sequence, None)


class ChecksumShard(LedgerShard):
    """The contract's Shard; strict, so that a test of the whole product notices what a real model would forgive."""

    def __init__(self, layers: LayerRange, weights: Weights, behaviour: Behaviour, capacity: int) -> None:
        self._layers, self._weights, self._behaviour = layers, weights, behaviour
        self._entries = Entries(len(layers))
        self._ledger = Ledger(self._entries, capacity, behaviour.block, behaviour.rewind)

    def step(self, batch: Batch, hidden: Activation | None) -> StepOutput:
        states = self._read(batch, hidden)
        rows, refusals = self._ledger.begin(batch)
        self._misbehave(rows)
        results = [self._run(row, states[span]) for row, span in zip(rows, spans(batch, rows), strict=True)]
        outputs = [output for output, _ in results]
        if self._weights.head is None:
            result = StepOutput(_packed(outputs, self._behaviour.width), refusals)
        else:
            result = StepOutput(None, self._answers(batch, rows, refusals, outputs, self._weights.head))
        for row, (_, fresh) in zip(rows, results, strict=True):
            self._entries.append(row.sequence, fresh)
        self._ledger.commit(rows)
        return result

    def close(self) -> None:
        self._entries.held.clear()
        self._ledger.tokens.clear()

    def _read(self, batch: Batch, hidden: Activation | None) -> Words:
        """The checked states before the first layer, `[tokens, width]`. Raises FrameRefused."""
        _check(batch, self._behaviour)
        if self._weights.embed is None:
            return _states(hidden, batch.tokens, self._behaviour.width)
        if hidden is not None:
            raise FrameRefused("the first stage takes token ids and was sent hidden states as well")
        ids = [token for row in batch.rows for token in row.token_ids]
        embedded: Words = self._weights.embed[np.array(ids, np.intp)]
        return embedded

    def _run(self, row: Row, states: Words) -> tuple[Words, Words]:
        """One row through all layers: states `[tokens, width]` after the last, and new entries `[layers, tokens]`."""
        cached, width = self._entries.of(row.sequence), self._behaviour.width
        assert cached.shape[1] == row.position, "the ledger and its store agree"
        places = np.arange(row.position + len(states), dtype=np.uint64)
        fresh = np.empty((len(self._layers), len(states)), np.uint64)
        for layer, key in enumerate(self._weights.keys):
            fresh[layer] = mix64(fold(states) + key + (places[row.position :] + 1) * GOLDEN)
            everything = np.concatenate((cached[layer], fresh[layer]))
            seen = np.cumsum(everything * (2 * places + 1))[row.position :]
            noise = mix64(seen[:, None] + (np.arange(width, dtype=np.uint64) + 1) * GOLDEN)
            states = (states + (noise >> 40)) % LIMIT
        return states, fresh

    def _answers(
        self, batch: Batch, rows: tuple[Row, ...], refusals: tuple[RowResult, ...], outputs: list[Words], head: Words
    ) -> tuple[RowResult, ...]:
        """One result per row of the batch, in its order."""
        results = {refusal.sequence: refusal for refusal in refusals}
        for row, output in zip(rows, outputs, strict=True):
            offsets = list(row.sample.offsets) if row.sample else []
            draws = draws_for(row, self._ledger.tokens.get(row.sequence, ()))
            sampled = tuple(sample(self._logits(output[offsets], head), draws))
            results[row.sequence] = RowResult(row.sequence, row.position, sampled)
        return tuple(results[row.sequence] for row in batch.rows)

    def _logits(self, states: Words, head: Words) -> NDArray[np.float32]:
        """`[n, vocab]`"""
        words = mix64(fold(states)[:, None] + head) >> 42
        logits = (words / 2**18).astype(np.float32)
        logits[:, list(self._behaviour.quiet_ids)] -= 16
        return logits

    def _misbehave(self, rows: tuple[Row, ...]) -> None:
        """As config.json orders: be slow, or fail after the ledger let the rows in."""
        if rows:
            time.sleep(self._behaviour.step_ms * len(self._layers) / 1000)
        self._devour(rows)
        place, most = self._behaviour.fail_at, self._behaviour.most_layers
        reached = _covered(rows, place)
        if most is not None and place is not None:
            if reached and len(self._layers) > most:
                raise MemoryError(f"the checksum toy has no memory for position {place} of {len(self._layers)} layers")
            return
        if place is None or not self._layers.start <= self._behaviour.fail_layer < self._layers.stop:
            return
        if reached:
            raise RuntimeError(f"the checksum toy was told to fail at position {place}")

    def _devour(self, rows: tuple[Row, ...]) -> None:
        large = len(self._layers) > (self._behaviour.most_layers or 0)
        if large and _covered(rows, self._behaviour.devour_at):
            np.ones(DEVOURED, np.uint8)


def _covered(rows: tuple[Row, ...], position: int | None) -> bool:
    return position is not None and any(row.position <= position < row.position + len(row.token_ids) for row in rows)


def fold(values: Words) -> Words:
    """`[…, width]` → `[…]`: a weighted sum in which every element and its place count."""
    factors = (2 * np.arange(values.shape[-1], dtype=np.uint64) + 1) * GOLDEN
    folded: Words = (values * factors).sum(axis=-1)
    return folded


def _packed(outputs: list[Words], width: int) -> Activation:
    states = np.concatenate([np.empty((0, width), np.uint64), *outputs])
    return Activation("fp32", len(states), width, states.astype("<f4").tobytes())


def _states(hidden: Activation | None, tokens: int, width: int) -> Words:
    if hidden is None and tokens == 0:  # orders alone
        return np.empty((0, width), np.uint64)
    if hidden is None:
        raise FrameRefused("an inner stage was sent no hidden states")
    found, wanted = (hidden.dtype, hidden.tokens, hidden.width), ("fp32", tokens, width)
    if found != wanted:
        raise FrameRefused(f"hidden states are {found}, this stage takes {wanted} (dtype, tokens, width)")
    values = np.frombuffer(hidden.data, "<f4").reshape(tokens, width)
    if not ((values >= 0) & (values < LIMIT) & (values == np.floor(values))).all():
        raise FrameRefused("hidden states are not whole numbers below 2**24, as the checksum toy's are")
    return values.astype(np.uint64)


def _check(batch: Batch, behaviour: Behaviour) -> None:
    """Raises FrameRefused, naming the sequence, for rows that no shard can run."""
    if len({row.sequence for row in batch.rows}) != len(batch.rows):
        raise FrameRefused("a sequence has two rows in one batch")
    for row in batch.rows:
        fault = _fault(row, behaviour)
        if fault:
            raise FrameRefused(f"the row of sequence {row.sequence} has {fault}")


def _fault(row: Row, behaviour: Behaviour) -> str | None:
    count = len(row.token_ids)
    if count == 0:
        return "no tokens"
    if row.position < 0 or row.position + count > behaviour.context:
        return f"{count} tokens at position {row.position}, outside the context of {behaviour.context}"
    if not all(0 <= token < behaviour.vocabulary for token in row.token_ids):
        return f"a token outside the vocabulary of {behaviour.vocabulary}"
    if row.sample and not all(0 <= offset < count for offset in row.sample.offsets):
        return f"sampling offsets outside its {count} tokens"
    return None
