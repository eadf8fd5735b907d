"""Attention over packed rows, one sequence at a time, as a function that transformers' layers call. Knows no model.

The layers call it with `packed=...`, which `model(...)` was given as a keyword and passes on untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from backends.on_torch.cache import LayerCache

NAME = "together_packed"


@dataclass(slots=True)
class PackedRow:
    """One row's place in the packing, and its sequence's caches."""

    start: int  # of its tokens among all tokens of the step
    count: int
    position: int
    caches: Sequence[LayerCache]  # one per layer
    masks: dict[int | None, Tensor] = field(default_factory=dict)  # by window: the same for all layers of a kind


def register() -> None:
    """Let models be loaded with `attn_implementation=NAME`."""
    AttentionInterface.register(NAME, attend)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    packed: Sequence[PackedRow],
    **_: Any,
) -> tuple[Tensor, None]:
    """Cache keys and values, and attend: query `[1, heads, tokens, head_dim]` → `[1, tokens, heads, head_dim]`."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    results = [_attend_row(row, row.caches[layer], query, key, value, scaling) for row in packed]
    return (results[0] if len(results) == 1 else torch.cat(results, dim=1)), None


def _attend_row(row: PackedRow, cache: LayerCache, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    here = slice(row.start, row.start + row.count)
    keys, values = cache.append(row.position, key[0, :, here], value[0, :, here])
    asked = query[:, :, here]
    if row.count == 1:
        return _attend_one(asked, keys, values, scaling)
    mask = None if _plainly_causal(row, cache) else _mask(row, cache, asked)
    out = scaled_dot_product_attention(
        asked, keys[None], values[None], attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2)  # [1, count, heads, head_dim]


def _attend_one(query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """One token sees all keys: heads that share a key head become that head's queries, so nothing is repeated."""
    _, heads, _, width = query.shape
    grouped = query.reshape(1, keys.shape[0], -1, width)  # [1, kv_heads, heads per kv head, head_dim]
    out = scaled_dot_product_attention(grouped, keys[None], values[None], scale=scaling)
    return out.reshape(1, 1, heads, width)


def _plainly_causal(row: PackedRow, cache: LayerCache) -> bool:
    return row.position == 0 and (cache.window is None or row.count <= cache.window)


def _mask(row: PackedRow, cache: LayerCache, query: Tensor) -> Tensor:
    """What is added to the scores, `[count, keys]`: 0 where a token sees a key, -inf elsewhere."""
    mask = row.masks.get(cache.window)
    if mask is None:
        tokens = torch.arange(row.position, row.position + row.count, device=query.device)[:, None]
        keys = torch.arange(cache.first(row.position), row.position + row.count, device=query.device)
        seen = keys <= tokens
        if cache.window is not None:
            seen &= keys > tokens - cache.window
        mask = torch.zeros_like(seen, dtype=query.dtype).masked_fill_(~seen, float("-inf"))
        row.masks[cache.window] = mask
    return mask
