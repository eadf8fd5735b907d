"""Attention whose keys and values are made from one latent, on mlx-lm's modules: rows of several sequences at once.

mlx-lm's own classes attend one sequence. Here the latent is kept as it is, with the part of keys that rope turns behind
it, and queries ask it itself; where many of them see the same, each head's keys and values are made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from math import log
from typing import Any, Protocol, cast

import mlx.core as mx
from mlx.nn.layers.base import Module

from backends.layer_caches import whole_blocks
from backends.on_mlx.memory import moved
from together.models.state import Latent
from together.types import Packing

_EPSILON = 1e-6  # of the norms in front, as transformers has it, whatever the model's is
_SCORES = 2**23  # of some heads at a time
_WHOLE, _KEYS, _VALUES = "kv_b_proj", "embed_q", "unembed_out"


@dataclass(slots=True)
class MlxLatentCache:
    """One sequence in one layer: `[1, 1, room, rank + turned]`."""

    kept: mx.array

    @classmethod
    def empty(cls, dtype: mx.Dtype, state: Latent) -> MlxLatentCache:
        return cls(mx.zeros((1, 1, 0, state.per_token), dtype))

    @property
    def room(self) -> int:
        return self.kept.shape[2]

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        return (self.kept,)

    def write(self, new: mx.array, position: int) -> mx.array:
        """Keep a row's tokens at `position`; returns all that its last one sees, `[1, 1, tokens, rank + turned]`."""
        end = position + new.shape[2]
        if end > self.room:
            self.kept = moved(self.kept, 0, position, whole_blocks(end))
        self.kept[:, :, position:end] = new
        return self.kept[:, :, :end]

    def truncate(self, length: int) -> None:
        room = whole_blocks(length)
        if room < self.room:
            self.kept = moved(self.kept, 0, room, room)

    def copy(self, length: int) -> MlxLatentCache:
        return MlxLatentCache(moved(self.kept, 0, length, whole_blocks(length)))


class LatentCaches(Protocol):
    """What the layer gets as its cache in one step."""

    @property
    def offset(self) -> mx.array: ...
    @property
    def bounds(self) -> tuple[tuple[int, int], ...]: ...
    @property
    def positions(self) -> tuple[int, ...]: ...
    @property
    def caches(self) -> tuple[Any, ...]: ...


class TurnedHeads(Module):
    """`[heads, key, rank]`, as checkpoints have it: what mlx-lm's `embed_q` has with its last two axes swapped."""

    def __init__(self, heads: int, key: int, rank: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weight = mx.zeros((heads, key, rank))

    def __call__(self, x: mx.array, transpose: bool = True) -> mx.array:
        return x @ (self.weight if transpose else self.weight.swapaxes(-1, -2))


class LatentAttention(Module):
    """In the place of mlx-lm's, with its modules; `rope_parameters` as in the effective configuration."""

    def __init__(self, plain: Module, rope_parameters: Mapping[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        for name, module in plain.children().items():
            self[name] = module
        for norm in ("q_a_layernorm", "kv_a_layernorm"):
            if norm in self:
                self[norm].eps = _EPSILON
        self._heads, self._key, self._value = plain.num_heads, plain.qk_nope_head_dim, plain.v_head_dim
        self._state = Latent(plain.kv_lora_rank, plain.qk_rope_head_dim)
        self._scale = (plain.qk_nope_head_dim + plain.qk_rope_head_dim) ** -0.5 * stretch(rope_parameters)

    def __call__(self, x: mx.array, mask: None, cache: LatentCaches) -> mx.array:
        _, tokens, _ = x.shape
        asked = self.q_proj(x) if "q_proj" in self else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        queries = asked.reshape(1, tokens, self._heads, -1).transpose(0, 2, 1, 3)
        straight, turned = mx.split(queries, [self._key], axis=-1)
        latent, key = mx.split(self.kv_a_proj_with_mqa(x), [self._state.rank], axis=-1)
        turned, key = self.rope(turned, cache.offset), self.rope(key[:, None], cache.offset)
        new = mx.concatenate([self.kv_a_layernorm(latent)[:, None], key], axis=-1)
        parts = [
            self._attend(straight[:, :, a:b], turned[:, :, a:b], each.write(new[:, :, a:b], position))
            for each, position, (a, b) in zip(cache.caches, cache.positions, cache.bounds, strict=True)
        ]
        found = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)
        return cast(mx.array, self.o_proj(found.transpose(0, 2, 1, 3).reshape(1, tokens, -1)))

    def _attend(self, straight: mx.array, turned: mx.array, seen: mx.array) -> mx.array:
        """A row's queries `[1, heads, count, …]`, the last of which sees all `[1, 1, tokens, rank + turned]`."""
        count, tokens = straight.shape[2], seen.shape[2]
        latent, key = mx.split(seen, [self._state.rank], axis=-1)
        mask = "causal" if count > 1 else None
        if not self._state.spreads(count, self._key, self._value):
            queries = mx.concatenate([self.embed_q(straight), turned], axis=-1)
            mixed = mx.fast.scaled_dot_product_attention(queries, seen, latent, scale=self._scale, mask=mask)
            return cast(mx.array, self.unembed_out(mixed))
        queries, parts = mx.concatenate([straight, turned], axis=-1), []
        step = max(1, _SCORES // (count * tokens))
        for first in range(0, self._heads, step):
            some = slice(first, min(first + step, self._heads))
            made = _some(self.embed_q, some)(latent, transpose=False)
            keys = mx.concatenate([made, mx.broadcast_to(key, (*made.shape[:3], key.shape[3]))], axis=-1)
            values = _some(self.unembed_out, some)(latent)
            parts.append(
                mx.fast.scaled_dot_product_attention(queries[:, some], keys, values, scale=self._scale, mask=mask)
            )
        return mx.concatenate(parts, axis=1)


def stretch(rope_parameters: Mapping[str, Any]) -> float:
    """What scaled rope multiplies scores by, beside what it does to queries and keys: transformers' rule."""
    most = rope_parameters.get("mscale_all_dim", 0)
    factor = rope_parameters.get("factor", 1.0)
    if rope_parameters["rope_type"] == "default" or not most or factor <= 1:
        return 1.0
    return float((0.1 * most * log(factor) + 1.0) ** 2)


def _some(module: Module, heads: slice) -> Any:
    """The module of some heads alone."""
    found = copy(module)
    for name in ("weight", "scales", "biases"):
        if found.get(name) is not None:
            found[name] = found[name][heads]
    return found


def parted(
    model: Module, weights: dict[str, mx.array], packings: Mapping[str, Packing]
) -> tuple[dict[str, mx.array], dict[str, Packing]]:
    """Weights and packings by the paths of modules, with checkpoints' matrix for keys and values as this model's two.

    Rows are a head's for keys, then its for values: packed ones stay as they are.
    """
    found, packed = dict(weights), dict(packings)
    for number, layer in enumerate(model.model.layers):
        start = f"model.layers.{number}.self_attn."
        if f"{start}{_WHOLE}.weight" not in weights:
            continue
        attention = layer.self_attn
        heads, rank, key = attention.embed_q.weight.shape
        attention.embed_q = TurnedHeads(heads, key, rank)
        for end in ("weight", "scales", "biases"):
            rows = found.pop(f"{start}{_WHOLE}.{end}", None)
            if rows is not None:
                by_head = rows.reshape(heads, -1, rows.shape[-1])
                found[f"{start}{_KEYS}.{end}"] = mx.contiguous(by_head[:, :key])
                found[f"{start}{_VALUES}.{end}"] = mx.contiguous(by_head[:, key:])
        packing = packed.pop(f"{start}{_WHOLE}", None)
        if packing is not None:
            packed |= {f"{start}{_KEYS}": packing, f"{start}{_VALUES}": packing}
    return found, packed
