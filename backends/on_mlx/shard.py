"""The MLX shard: runs packed rows through the mlx-lm modules of its range."""

from __future__ import annotations

from collections.abc import Iterable

import mlx.core as mx
import numpy as np

from backends.base import ShardShape
from backends.ledger import Ledger, LedgerShard, Logits, token_ids
from backends.on_mlx.cache import MlxSequenceCaches
from backends.on_mlx.model import MX, Slice, read_activation, write_activation
from together.models.spec import ModelSpec
from together.types import Activation, Batch, Dtype, LayerRange, Orders, Row


class MlxShard(LedgerShard[mx.array]):
    """The thread that loads it must step and close it: MLX's lazy arrays belong to a thread.

    States are `[1, tokens, hidden]`.
    """

    def __init__(self, spec: ModelSpec, layers: LayerRange, dtype: Dtype, capacity: int, parts: Slice) -> None:
        self._parts = parts
        windows = spec.windows[layers.start : layers.stop]
        self._caches = MlxSequenceCaches(windows, spec.kv_heads, spec.head_dim, MX[dtype])
        ledger = Ledger(self._caches, capacity, rewind=self._caches.rewind)
        super().__init__(ShardShape.of(spec, layers, dtype), ledger)

    def close(self) -> None:
        self._caches.sequences.clear()
        del self._parts
        mx.clear_cache()

    def _read(self, hidden: Activation) -> mx.array:
        return read_activation(hidden)

    def _join(self, states: mx.array, parts: Iterable[slice]) -> mx.array:
        return mx.concatenate([states[:, part] for part in parts], axis=1)

    def _forward(self, rows: tuple[Row, ...], states: mx.array | None) -> mx.array:
        """Not computed yet."""
        found = self._parts.embedding(token_ids(rows)) if states is None else states
        for layer, cache in zip(self._parts.layers, self._caches.packed(rows), strict=True):
            found = layer(found, None, cache=cache)
        return found

    def _write(self, rows: tuple[Row, ...], states: mx.array) -> Activation:
        self._evaluate(rows, states)
        return write_activation(states, self._shape.dtype)

    def _logits(self, states: mx.array, places: list[int]) -> mx.array:
        return self._parts.logits(states[0, mx.array(places, mx.int32)])

    def _to_numpy(self, rows: tuple[Row, ...], logits: mx.array) -> Logits:
        self._evaluate(rows, logits)
        return np.array(logits)

    def _greedy(self, rows: tuple[Row, ...], logits: mx.array, rest: list[int]) -> tuple[list[int], bool, Logits]:
        best, others = logits.argmax(axis=-1), logits[mx.array(rest, mx.int32)]
        finite = mx.isfinite(logits.max(axis=-1)).all()
        self._evaluate(rows, best, others, finite)
        return np.array(best).tolist(), bool(finite.item()), np.array(others)

    def _settle(self, rows: tuple[Row, ...]) -> None:
        self._evaluate(rows)

    def _evaluate(self, rows: tuple[Row, ...], *results: mx.array) -> None:
        """Compute the results and what the rows wrote to their caches: not every result depends on all of it.

        After a failure the content of those caches is unknown, so their sequences are dropped.
        """
        try:
            mx.eval(*results, *self._caches.arrays(rows))
        except BaseException:
            self._ledger.begin(Batch(orders=Orders(drops=tuple(row.sequence for row in rows))))
            raise
