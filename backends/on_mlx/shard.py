"""An MLX shard: runs the rows of a batch through its layers, all packed, and draws tokens at the end. Knows no file.

All rows go through every matrix together, so a step reads each weight once; only attention goes row by row.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from backends.base import StepOutput
from backends.checks import check_batch
from backends.ledger import Ledger, LedgerShard, spans
from backends.on_mlx.cache import MlxSequenceCaches
from backends.on_mlx.model import MX, Slice, read_activation, write_activation
from together.errors import FrameRefused
from together.models.spec import ModelSpec
from together.sampling import argmax_answers, draws_for, sample
from together.types import BLOCK, Activation, Batch, Dtype, LayerRange, Orders, Row, RowResult, Sampled


class MlxShard(LedgerShard):
    """The contract's Shard. Whatever thread loads it must step and close it: MLX's lazy arrays belong to a thread."""

    def __init__(self, spec: ModelSpec, layers: LayerRange, dtype: Dtype, capacity: int, parts: Slice) -> None:
        self._spec, self._layers, self._dtype, self._parts = spec, layers, dtype, parts
        self._caches = MlxSequenceCaches(
            spec.windows[layers.start : layers.stop], spec.kv_heads, spec.head_dim, MX[dtype]
        )
        self._ledger = Ledger(self._caches, capacity, BLOCK, self._caches.rewind)

    def step(self, batch: Batch, hidden: Activation | None) -> StepOutput:
        given = self._read(batch, hidden)
        rows, refusals = self._ledger.begin(batch)
        states = self._run(batch, rows, given)
        if self._last:
            output = StepOutput(None, _in_order(batch, rows, refusals, self._draw(rows, states)))
        else:
            self._evaluate(rows, states)
            output = StepOutput(write_activation(states, self._dtype), refusals)
        self._ledger.commit(rows)
        return output

    def logits(self, batch: Batch, hidden: Activation | None) -> NDArray[np.float32]:
        """Last stage only: a step that draws nothing and gives raw logits, `[offsets of all accepted rows, vocab]`."""
        given = self._read(batch, hidden)
        rows, _ = self._ledger.begin(batch)
        logits = self._parts.logits(_sampled(rows, self._run(batch, rows, given)))
        self._evaluate(rows, logits)
        self._ledger.commit(rows)
        return np.array(logits)

    def close(self) -> None:
        self._caches.sequences.clear()
        del self._parts
        mx.clear_cache()

    @property
    def _last(self) -> bool:
        return self._layers.stop == self._spec.layers

    def _read(self, batch: Batch, hidden: Activation | None) -> mx.array | None:
        """The checked input of inner stages, `[1, tokens, hidden]`. Raises FrameRefused before anything has changed."""
        check_batch(batch, self._spec.vocab_size)
        if self._layers.start > 0:
            return read_activation(hidden, batch.tokens, self._spec.hidden_size, self._dtype)
        if hidden is not None:
            raise FrameRefused("the first stage takes token ids and was sent hidden states as well")
        return None

    def _run(self, batch: Batch, rows: tuple[Row, ...], given: mx.array | None) -> mx.array:
        """The states of the accepted rows after the last layer, `[1, tokens, hidden]`, not computed yet."""
        if not rows:
            return mx.zeros((1, 0, self._spec.hidden_size), MX[self._dtype])
        if given is None:
            states = self._parts.embedding([token for row in rows for token in row.token_ids])
        else:
            states = _accepted(batch, rows, given)
        for layer, cache in zip(self._parts.layers, self._caches.packed(rows), strict=True):
            states = layer(states, None, cache=cache)
        return states

    def _evaluate(self, rows: tuple[Row, ...], *results: mx.array) -> None:
        """Compute the results, and what the rows wrote to their caches: not every result depends on all of it.

        After a failure nobody knows what those caches hold, so their sequences are dropped.
        """
        try:
            mx.eval(*results, *self._caches.arrays(rows))
        except BaseException:
            self._ledger.begin(Batch(orders=Orders(drops=tuple(row.sequence for row in rows))))
            raise

    def _draw(self, rows: tuple[Row, ...], states: mx.array) -> list[Sampled]:
        """The tokens at all offsets, in order: plain greedy ones on the device, the others by the shared sampler."""
        plain = [argmax_answers(row.sample) for row in rows if row.sample for _ in row.sample.offsets]
        if not plain:
            self._evaluate(rows)
            return []
        logits = self._parts.logits(_sampled(rows, states))
        best, rest = logits.argmax(axis=-1), logits[_indices(i for i, answered in enumerate(plain) if not answered)]
        finite = mx.isfinite(logits.max(axis=-1)).all()
        self._evaluate(rows, best, rest, finite)
        if not finite.item():
            raise ValueError(f"{self._spec.name} computes no finite logits in {self._dtype}; load it in bf16 or fp32")
        draws = [draw for row in rows for draw in draws_for(row, self._ledger.tokens.get(row.sequence, ()))]
        left = [draw for draw, answered in zip(draws, plain, strict=True) if not answered]
        others = iter(sample(np.array(rest), left))
        ids = np.array(best).tolist()
        return [Sampled(token) if answered else next(others) for token, answered in zip(ids, plain, strict=True)]


def _accepted(batch: Batch, rows: tuple[Row, ...], given: mx.array) -> mx.array:
    if len(rows) == len(batch.rows):
        return given
    return mx.concatenate([given[:, span] for span in spans(batch, rows)], axis=1)


def _sampled(rows: tuple[Row, ...], states: mx.array) -> mx.array:
    """The states to be sampled at, `[offsets, hidden]`."""
    starts = accumulate((len(row.token_ids) for row in rows), initial=0)
    asked = [(row.sample, start) for row, start in zip(rows, starts, strict=False) if row.sample]
    return states[0, _indices(start + offset for sample, start in asked for offset in sample.offsets)]


def _indices(places: Iterable[int]) -> mx.array:
    return mx.array(list(places), mx.int32)


def _in_order(
    batch: Batch, rows: tuple[Row, ...], refusals: tuple[RowResult, ...], drawn: list[Sampled]
) -> tuple[RowResult, ...]:
    """One result per row of the batch: rows and refusals both come in its order."""
    accepted, refused, tokens = list(reversed(rows)), iter(refusals), iter(drawn)
    results: list[RowResult] = []
    for row in batch.rows:
        if accepted and row is accepted[-1]:
            accepted.pop()
            offsets = row.sample.offsets if row.sample else ()
            results.append(RowResult(row.sequence, row.position, tuple(next(tokens) for _ in offsets)))
        else:
            results.append(next(refused))
    return tuple(results)
