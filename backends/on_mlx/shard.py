"""The MLX shard: runs packed rows through the mlx-lm modules of its range, with a KV cache for every sequence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, cast

import mlx.core as mx
import numpy as np

from backends.base import ShardShape
from backends.layer_caches import REWIND, SequenceCaches, whole_blocks
from backends.ledger import Ledger, LedgerShard, Logits, axis_positions, positions, token_ids
from backends.on_mlx.latent import MlxLatentCache
from backends.on_mlx.memory import moved
from backends.on_mlx.model import Slice, bits_of, read_activation, write_activation
from backends.on_mlx.states import PackedStates, StateCache
from backends.on_mlx.tensors import MX
from together.models.spec import ModelSpec
from together.models.state import Borrowed, KeysValues, Latent, LayerState, Nothing, Recurrent
from together.types import BLOCK, Activation, Batch, Dtype, LayerRange, Orders, Row


@dataclass(slots=True)
class MlxLayerCache:
    """One sequence in one layer: `[1, kv_heads, room, head_dim]` twice, the first of them for token `start`."""

    window: int | None  # None: full attention
    keys: mx.array
    values: mx.array
    start: int = 0
    chunked: bool = False  # whether a token sees those since the last multiple of `window`, not the last ones

    @classmethod
    def empty(cls, dtype: mx.Dtype, state: KeysValues) -> MlxLayerCache:
        keys, values = ((1, state.heads, 0, width) for width in (state.key_dim, state.value_dim))
        return cls(state.window, mx.zeros(keys, dtype), mx.zeros(values, dtype), chunked=state.chunked)

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        return self.keys, self.values

    @property
    def room(self) -> int:
        return self.keys.shape[2]

    def attend(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        position: int,
        scale: float,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """Write a row's new tokens at `position` and let its queries see what they may: `[1, heads, count, dim]`.

        `sinks` `[heads]` are scores of each query without a value.
        """
        count = keys.shape[2]
        self._make_room(position, count)
        begin, end = position - self.start, position - self.start + count
        self.keys[:, :, begin:end] = keys
        self.values[:, :, begin:end] = values
        return self.see(queries, position, scale, sinks)

    def see(self, queries: mx.array, position: int, scale: float, sinks: mx.array | None = None) -> mx.array:
        """What a row's queries at `position` find, whose keys and values were written before."""
        count = queries.shape[2]
        end = position - self.start + count
        first = self._first(position) - self.start
        seen_keys, seen_values = self.keys[:, :, first:end], self.values[:, :, first:end]
        mask = _mask(count, end - first, self.window, chunked=self.chunked)
        return mx.fast.scaled_dot_product_attention(
            queries, seen_keys, seen_values, scale=scale, mask=mask, sinks=sinks
        )

    def _first(self, position: int) -> int:
        """The first token that the one at `position` sees, of those that are kept."""
        if self.window is None:
            return self.start
        first = position // self.window * self.window if self.chunked else position - self.window + 1
        return max(self.start, first)

    def truncate(self, length: int) -> None:
        """Give back the blocks beyond `length`; the tokens there are overwritten by the next row."""
        assert self.start == 0 or length >= self.start + (self.window or 0) - 1
        room = whole_blocks(length - self.start)
        if room < self.room:
            self._move(0, room, room)

    def copy(self, length: int) -> MlxLayerCache:
        """A cache of its own with the first `length` tokens."""
        twin = copy(self)
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
        self.keys, self.values = moved(self.keys, begin, end, room), moved(self.values, begin, end, room)


@dataclass(frozen=True, slots=True)
class NoCache:
    """Of a layer that reads another layer's, or keeps nothing."""

    arrays: tuple[mx.array, ...] = ()

    def truncate(self, length: int) -> None:
        """There is nothing."""

    def copy(self, length: int) -> NoCache:
        return self


Kind = MlxLayerCache | MlxLatentCache | StateCache | NoCache


def _empty(dtype: mx.Dtype, state: LayerState) -> Kind:
    if isinstance(state, Borrowed | Nothing):
        return NoCache()
    if isinstance(state, Recurrent):
        return StateCache.empty(dtype, state)
    return MlxLatentCache.empty(dtype, state) if isinstance(state, Latent) else MlxLayerCache.empty(dtype, state)


def _mask(queries: int, keys: int, window: int | None, *, chunked: bool) -> mx.array | str | None:
    """The last query stands at the last key; `"causal"` means the same and costs nothing.

    `chunked`: the first key begins a chunk of `window` tokens.
    """
    if queries == 1:
        return None
    if window is None or keys <= window:
        return "causal"
    rows = mx.arange(keys - queries, keys)[:, None]
    columns = mx.arange(keys)[None]
    if chunked:
        return (columns <= rows) & (columns // window == rows // window)
    return (columns <= rows) & (columns > rows - window)


@dataclass(frozen=True, slots=True)
class PackedCache:
    """What one layer gets as its cache in one step: the caches of all rows, and where each row lies in the packing."""

    offset: mx.array  # [tokens]: each token's position, for RoPE; [axes, tokens] where axes differ
    bounds: tuple[tuple[int, int], ...]  # each row's first and last + 1 token in the packing
    positions: tuple[int, ...]
    caches: tuple[Any, ...]  # of one kind
    reads: bool = False  # whether another layer writes to them, in the same step

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """mlx-lm's layers call this on the way to `attend`, which does the writing."""
        return keys, values

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, scale: float, sinks: mx.array | None = None
    ) -> mx.array:
        """`[1, heads, tokens, head_dim]` each, all rows packed: every row with its own cache."""
        rows = zip(self.caches, self.positions, self.bounds, strict=True)
        if self.reads:
            parts = [cache.see(queries[:, :, a:b], position, scale, sinks) for cache, position, (a, b) in rows]
        else:
            parts = [
                cache.attend(queries[:, :, a:b], keys[:, :, a:b], values[:, :, a:b], position, scale, sinks)
                for cache, position, (a, b) in rows
            ]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)


class MlxSequenceCaches(SequenceCaches[Kind]):
    """All sequences of a shard; `states` has one entry per layer of it."""

    def __init__(self, states: Sequence[LayerState], dtype: mx.Dtype) -> None:
        super().__init__(states, partial(_empty, dtype))

    def commit(self, sequence: int) -> None:
        for cache in self.of(sequence):
            if isinstance(cache, StateCache):
                cache.commit()

    def packed(self, rows: tuple[Row, ...]) -> tuple[PackedCache | PackedStates, ...]:
        """What each layer gets for a step of these rows."""
        stops = tuple(accumulate(len(row.token_ids) for row in rows))
        bounds = tuple(zip((0, *stops), stops, strict=False))
        starts = tuple(row.position for row in rows)
        axes = axis_positions(rows)
        offset = mx.array(axes if len(axes) > 1 else axes[0], mx.int32)
        found: list[PackedCache | PackedStates] = []
        by_layer = zip(*(self.of(row.sequence) for row in rows), strict=True)
        for layer, (state, caches) in enumerate(zip(self._states, by_layer, strict=True)):
            recurrent = tuple(cache for cache in caches if isinstance(cache, StateCache))
            if recurrent:
                found.append(PackedStates(bounds, recurrent))
            elif isinstance(state, Borrowed):
                found.append(PackedCache(offset, bounds, starts, found[layer - state.back].caches, reads=True))
            else:
                found.append(PackedCache(offset, bounds, starts, caches))
        return tuple(found)

    def arrays(self, rows: Iterable[Row]) -> list[mx.array]:
        """The arrays that a step of these rows has written: to be evaluated with it."""
        caches = (cache for row in rows for cache in self.sequences[row.sequence])
        return [array for cache in caches for array in cache.arrays]

    def fork(self, source: int, target: int, length: int) -> None:
        super().fork(source, target, length)
        twins = self.sequences[target]
        mx.eval([twin.arrays for twin in twins])  # or the source could not be written in place

    def trim(self) -> None:
        mx.clear_cache()
        super().trim()


_FIRST = 4  # layers before anything is computed: a device that waits for its work waits for these alone
_PIECE = 256  # logits that are summed by themselves


def log_sums(logits: mx.array) -> mx.array:
    """The logarithm of the sum of all exponentials of each row, in pieces.

    On a CPU MLX adds one by one: over 49,000 logits of a real model the small ones lose 1.6e-4 in all.
    """
    rows, width = logits.shape
    filled = mx.pad(logits, [(0, 0), (0, -width % _PIECE)], constant_values=-mx.inf)
    return mx.logsumexp(mx.logsumexp(filled.reshape(rows, -1, _PIECE), axis=-1), axis=-1)


class MlxShard(LedgerShard[mx.array]):
    """The thread that loads it must step and close it: MLX's lazy arrays belong to a thread.

    States are `[1, tokens, hidden]`.
    """

    def __init__(self, spec: ModelSpec, layers: LayerRange, dtype: Dtype, capacity: int, parts: Slice) -> None:
        self._parts = parts
        states = spec.states[layers.start : layers.stop]
        self._caches = MlxSequenceCaches(states, MX[dtype])
        self._each, self._behind = spec.layer_inputs, spec.inputs_behind(layers.stop)
        self._sources = {n: n - state.back for n, state in enumerate(states) if isinstance(state, Borrowed)}
        own = spec.cache_size(layers, dtype).per_sequence
        ledger = Ledger(self._caches, capacity, rewind=self._caches.rewind, per_sequence=own)
        super().__init__(ShardShape.of(spec, layers, dtype), ledger)
        self.computing = parts.computing

    def close(self) -> None:
        self._caches.sequences.clear()
        del self._parts
        mx.clear_cache()

    def _read(self, hidden: Activation) -> mx.array:
        return read_activation(hidden)

    def _join(self, states: mx.array, parts: Iterable[slice]) -> mx.array:
        return mx.concatenate([states[:, part] for part in parts], axis=1)

    def _forward(self, rows: tuple[Row, ...], states: mx.array | None) -> mx.array:
        """Of 4, 8, 16, … layers it is computed while the next ones are put together; the rest not yet."""
        found = self._parts.embedding(token_ids(rows)) if states is None else states
        pairs = zip(self._parts.layers, self._caches.packed(rows), strict=True)
        width = self._shape.width
        found, inputs = found[..., :width], found[..., width:] if self._each else None
        given = self._parts.given(positions(rows), found.dtype)
        begun = _FIRST
        lent: dict[int, tuple[Any, ...]] = {}  # by layer: its keys and values, and their positions
        with self._trusted(rows):
            for number, (layer, cache) in enumerate(pairs):
                if number == begun:
                    mx.async_eval(found)
                    begun *= 2
                more: dict[str, Any] = {}
                if inputs is not None:
                    more["per_layer_input"] = inputs[..., number * self._each : (number + 1) * self._each]
                if number in self._sources:
                    more["shared_kv"], more["offset"] = lent[self._sources[number]]
                answer = cast(Any, layer)(found, *given, cache=cache, **more)
                if number in self._sources.values():
                    lent[number] = tuple(answer[1:])
                found = answer[0] if isinstance(answer, tuple) else answer
        if inputs is None or self._shape.last:
            return found
        return mx.concatenate([found, inputs[..., -self._behind :]], axis=-1)

    def _write(self, rows: tuple[Row, ...], states: mx.array) -> Activation:
        bits = bits_of(states, self._shape.dtype)
        self._evaluate(rows, bits)
        return write_activation(bits, self._shape.dtype, self._behind)

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

    def _chosen(self, rows: tuple[Row, ...], logits: mx.array, ids: list[int]) -> tuple[Logits, Logits]:
        chosen = mx.take_along_axis(logits, mx.array(ids, mx.int32)[:, None], axis=-1)[:, 0]
        total = log_sums(logits)
        self._evaluate(rows, chosen, total)
        return np.array(chosen), np.array(total)

    def _settle(self, rows: tuple[Row, ...]) -> None:
        self._evaluate(rows)

    def _evaluate(self, rows: tuple[Row, ...], *results: mx.array) -> None:
        """Compute the results and what the rows wrote to their caches: not every result depends on all of it."""
        with self._trusted(rows):
            mx.eval(*results, *self._caches.arrays(rows))

    @contextmanager
    def _trusted(self, rows: tuple[Row, ...]) -> Iterator[None]:
        """After a failure the content of the rows' caches is unknown, so their sequences are dropped."""
        try:
            yield
        except BaseException:
            self._ledger.begin(Batch(orders=Orders(drops=tuple(row.sequence for row in rows))))
            raise
