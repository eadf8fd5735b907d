"""The MLX shard: runs packed rows through the mlx-lm modules of its range, with a KV cache for every sequence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import mlx.core as mx
import numpy as np

from backends.base import ShardShape
from backends.ledger import REWIND, Ledger, LedgerShard, Logits, SequenceCaches, positions, token_ids, whole_blocks
from backends.on_mlx.model import MX, Slice, read_activation, write_activation
from together.models.spec import ModelSpec
from together.types import BLOCK, Activation, Batch, Dtype, LayerRange, Orders, Row


@dataclass(slots=True)
class MlxLayerCache:
    """One sequence in one layer: `[1, kv_heads, room, head_dim]` twice, the first of them for token `start`."""

    window: int | None  # None: full attention
    keys: mx.array
    values: mx.array
    start: int = 0

    @property
    def room(self) -> int:
        return self.keys.shape[2]

    def attend(self, queries: mx.array, keys: mx.array, values: mx.array, position: int, scale: float) -> mx.array:
        """Write a row's new tokens at `position` and let its queries see what they may: `[1, heads, count, dim]`."""
        count = keys.shape[2]
        self._make_room(position, count)
        begin, end = position - self.start, position - self.start + count
        self.keys[:, :, begin:end] = keys
        self.values[:, :, begin:end] = values
        first = 0 if self.window is None else max(0, begin - self.window + 1)
        seen_keys, seen_values = self.keys[:, :, first:end], self.values[:, :, first:end]
        mask = _mask(count, end - first, self.window)
        return mx.fast.scaled_dot_product_attention(queries, seen_keys, seen_values, scale=scale, mask=mask)

    def truncate(self, length: int) -> None:
        """Give back the blocks beyond `length`; the tokens there are overwritten by the next row."""
        assert self.start == 0 or length >= self.start + (self.window or 0) - 1
        room = whole_blocks(length - self.start)
        if room < self.room:
            self._move(0, room, room)

    def copy(self, length: int) -> MlxLayerCache:
        """A cache of its own with the first `length` tokens."""
        twin = MlxLayerCache(self.window, self.keys, self.values, self.start)
        twin._move(0, length - self.start, whole_blocks(length - self.start))
        return twin

    def _make_room(self, position: int, count: int) -> None:
        """A sliding layer leaves behind what no query can see any more, even after undoing REWIND tokens."""
        held = position - self.start
        if held + count <= self.room:
            return
        left = 0 if self.window is None else max(0, held - REWIND - self.window + 1)
        slack = BLOCK if left else 0  # so that the next move is a block away, not a token
        self._move(left, held, whole_blocks(held - left + count) + slack)
        self.start += left

    def _move(self, begin: int, end: int, room: int) -> None:
        self.keys, self.values = _moved(self.keys, begin, end, room), _moved(self.values, begin, end, room)


def _moved(array: mx.array, begin: int, end: int, room: int) -> mx.array:
    """New memory for `room` tokens, with those from `begin` to `end` in front."""
    _, heads, _, dim = array.shape
    fresh = mx.zeros((1, heads, room, dim), array.dtype)
    if end > begin:
        fresh[:, :, : end - begin] = array[:, :, begin:end]
    return fresh


def _mask(queries: int, keys: int, window: int | None) -> mx.array | str | None:
    """The last query stands at the last key; `"causal"` means the same and costs nothing."""
    if queries == 1:
        return None
    if window is None or keys <= window:
        return "causal"
    rows = mx.arange(keys - queries, keys)[:, None]
    columns = mx.arange(keys)[None]
    return (columns <= rows) & (columns > rows - window)


@dataclass(frozen=True, slots=True)
class PackedCache:
    """What one layer gets as its cache in one step: the caches of all rows, and where each row lies in the packing."""

    offset: mx.array  # [tokens]: each token's position, for RoPE
    bounds: tuple[tuple[int, int], ...]  # each row's first and last + 1 token in the packing
    positions: tuple[int, ...]
    caches: tuple[MlxLayerCache, ...]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """mlx-lm's layers call this on the way to `attend`, which does the writing."""
        return keys, values

    def attend(self, queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
        """`[1, heads, tokens, head_dim]` each, all rows packed: every row with its own cache."""
        parts = [
            cache.attend(queries[:, :, a:b], keys[:, :, a:b], values[:, :, a:b], position, scale)
            for cache, position, (a, b) in zip(self.caches, self.positions, self.bounds, strict=True)
        ]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)


class MlxSequenceCaches(SequenceCaches[MlxLayerCache]):
    """All sequences of a shard; `windows` has one entry per layer of it."""

    def __init__(self, windows: Sequence[int | None], kv_heads: int, head_dim: int, dtype: mx.Dtype) -> None:
        nothing = (1, kv_heads, 0, head_dim)
        super().__init__(
            windows, lambda window: MlxLayerCache(window, mx.zeros(nothing, dtype), mx.zeros(nothing, dtype))
        )

    def packed(self, rows: tuple[Row, ...]) -> tuple[PackedCache, ...]:
        """One PackedCache per layer for a step of these rows."""
        stops = tuple(accumulate(len(row.token_ids) for row in rows))
        bounds = tuple(zip((0, *stops), stops, strict=False))
        starts = tuple(row.position for row in rows)
        offset = mx.array(positions(rows), mx.int32)
        columns = zip(*(self.of(row.sequence) for row in rows), strict=True)
        return tuple(PackedCache(offset, bounds, starts, caches) for caches in columns)

    def arrays(self, rows: Iterable[Row]) -> list[mx.array]:
        """The arrays that a step of these rows has written: to be evaluated with it."""
        caches = (cache for row in rows for cache in self.sequences[row.sequence])
        return [array for cache in caches for array in (cache.keys, cache.values)]

    def fork(self, source: int, target: int, length: int) -> None:
        super().fork(source, target, length)
        twins = self.sequences[target]
        mx.eval([(twin.keys, twin.values) for twin in twins])  # or the source could not be written in place


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
