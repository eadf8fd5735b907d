"""Llama 4's attention on mlx-lm's modules: rows of several sequences at once, by transformers' rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import mlx.core as mx
from mlx.nn.layers.base import Module


class AttendingCache(Protocol):
    """What the layer gets as its cache in one step."""

    @property
    def offset(self) -> mx.array: ...

    def attend(self, queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array: ...


class TunedAttention(Module):
    """In the place of mlx-lm's, which knows one position for all tokens, and one epsilon for all models."""

    def __init__(self, plain: Module, config: Mapping[str, Any]) -> None:
        """`config` is the effective one."""
        super().__init__()  # type: ignore[no-untyped-call]
        for name, module in plain.children().items():
            self[name] = module
        self._heads, self._kv_heads, self._scale = plain.n_heads, plain.n_kv_heads, plain.scale
        self._epsilon = config["rms_norm_eps"] if plain.use_qk_norm else None
        tuned = config["attn_temperature_tuning"] and not plain.use_rope
        self._growth = (config["floor_scale"], config["attn_scale"]) if tuned else None

    def __call__(self, x: mx.array, mask: None, cache: AttendingCache) -> mx.array:
        _, tokens, _ = x.shape
        counts = (self._heads, self._kv_heads, self._kv_heads)
        queries, keys, values = (
            projected.reshape(1, tokens, count, -1).transpose(0, 2, 1, 3)
            for projected, count in zip((self.q_proj(x), self.k_proj(x), self.v_proj(x)), counts, strict=True)
        )
        if "rope" in self:
            queries, keys = (self.rope(states, cache.offset) for states in (queries, keys))
        if self._epsilon is not None:
            queries, keys = (mx.fast.rms_norm(states, None, self._epsilon) for states in (queries, keys))
        if self._growth is not None:
            floor, scale = self._growth
            grown = mx.log1p(mx.floor((cache.offset.astype(mx.float32) + 1.0) / floor)) * scale + 1.0
            queries = (queries * grown[:, None]).astype(queries.dtype)
        found = cache.attend(queries, keys, values, self._scale)
        return cast(mx.array, self.o_proj(found.transpose(0, 2, 1, 3).reshape(1, tokens, -1)))
