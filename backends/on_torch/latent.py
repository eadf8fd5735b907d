"""Attention whose keys and values are made from one latent, which is kept as it is: one vector for each token.

transformers' classes would keep every head's keys and values, up to 85 times as much. Here queries go into the latent's
space and what they find comes back from there, so that a token's step reads the latent alone; where many queries see
the same tokens, keys and values are made of it for some heads at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from backends.on_torch import attention
from backends.on_torch.attention import ATTENTION, LongRow, Step, long_mask, mixed_singles, write_long
from backends.on_torch.half import multiplied, multiplied_by_head
from backends.on_torch.library import library
from backends.on_torch.tensors import Lazy, Quantized, Scaled
from together.models.matrices import BY_HEAD
from together.models.state import Latent

_WHOLE, _KEYS, _VALUES = BY_HEAD
_HEADS = "by_head"  # what the matrix is called here
_NUMBERS = 2**22  # keys and values that are there at a time
Source = Lazy | Scaled | Quantized
Parts = tuple[Source, ...]  # the whole matrix, or mlx-lm's for keys and for values


def register_attention() -> None:
    """Let models be loaded with `attn_implementation=ATTENTION`."""
    library("transformers.modeling_utils").AttentionInterface.register(ATTENTION, attend)


class LatentHeads(nn.Module):
    """What makes each head's keys and values of a latent.

    `keys` `[heads, rank, key]` bring queries into the latent's space, `values` `[heads, value, rank]` bring what they
    find there back.
    """

    few = 0  # rows that a loop multiplies, as `use_loops` says

    def __init__(self, keys: Tensor, values: Tensor, turned: int) -> None:
        super().__init__()
        self.keys, self.values = (nn.Parameter(each, requires_grad=False) for each in (keys, values))
        _, self.value, rank = values.shape
        self.key, self.state = keys.shape[2], Latent(rank, turned)

    def asked(self, queries: Tensor) -> Tensor:
        """`[heads, tokens, key + turned]` as what asks latents: `[heads, tokens, rank + turned]`."""
        straight, turned = queries.split([self.key, self.state.turned], dim=-1)
        return torch.cat((multiplied_by_head(straight, self.keys, self.few), turned), dim=-1)

    def found(self, mixed: Tensor) -> Tensor:
        """Mixed latents `[tokens, heads, rank + turned]` as mixed values `[tokens, heads, value]`."""
        latents = mixed[..., : self.state.rank].transpose(0, 1)
        return multiplied_by_head(latents, self.values, self.few).transpose(0, 1)

    def spread(self, seen: Tensor, first: int, room: Tensor) -> Tensor:
        """Keys and values of some heads of `[tokens, rank + turned]`, into `room`: `[2, heads, tokens, width]`.

        What is narrower is filled up by zeros that lie there.
        """
        latents, turned = seen.split([self.state.rank, self.state.turned], dim=-1)
        _, count, tokens, _ = room.shape
        keys, values = self.keys[first : first + count].transpose(1, 2), self.values[first : first + count]
        for filled, weights in zip(room, (keys, values), strict=True):
            width = weights.shape[1]
            made = multiplied(latents, weights.reshape(-1, self.state.rank))
            filled[:, :, :width] = made.view(tokens, count, width).transpose(0, 1)
        room[0, :, :, self.key : self.key + self.state.turned] = turned
        return room


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    packed: Step,
    **more: Any,
) -> tuple[Tensor, None]:
    """As `attention.attend`, which has all modules without `LatentHeads`.

    Of others keys are latents `[1, 1, tokens, rank + turned]`, and values are the same: query `[1, heads, tokens,
    key + turned]` → `[1, tokens, heads, value]`.
    """
    heads = getattr(module, _HEADS, None)
    if heads is None:
        return attention.attend(module, query, key, value, attention_mask, scaling=scaling, packed=packed, **more)
    state, pool = packed.caches.layers[module.layer_idx]  # type: ignore[index]
    layout = packed.layouts[state]
    out = query.new_empty(query.shape[2], query.shape[1], heads.value)
    if layout.singles is not None:
        tokens = layout.singles.tokens if layout.longs else slice(None)
        asked = query.new_empty(*query.shape[:3], heads.state.per_token)  # of the other tokens nobody reads it
        asked[0, :, tokens] = heads.asked(query[0, :, tokens])
        mixed = mixed_singles(layout.singles, pool, asked, key, value, scaling)
        out[tokens] = heads.found(mixed[0])
    for row in layout.longs:
        here = slice(row.start, row.start + row.count)
        write_long(row, pool, key[0], value[0])
        out[here] = _attend_long(heads, row, pool[0, 0], query[0, :, here], scaling)
    return out[None], None


def _attend_long(heads: LatentHeads, row: LongRow, kept: Tensor, queries: Tensor, scaling: float) -> Tensor:
    """`[heads, count, key + turned]` over what is kept `[places, rank + turned]` → `[count, heads, value]`."""
    seen = kept[row.runs[0].start : row.runs[0].stop] if row.places is None else kept[row.places]
    mask = long_mask(row, None, queries)
    count = len(queries)
    if queries.device.type == "cpu" and not heads.state.spreads(row.count, heads.key, heads.value):
        every = seen.expand(1, count, -1, -1)  # takes no memory: all heads read the same
        mixed = _mixed(heads.asked(queries)[None], every, every, mask, scaling)
        return heads.found(mixed[0].transpose(0, 1))
    width, out = max(queries.shape[2], heads.value), queries.new_empty(row.count, count, heads.value)
    filled = nn.functional.pad(queries, (0, width - queries.shape[2])) if width > queries.shape[2] else queries
    step = max(1, min(_NUMBERS // (2 * len(seen) * width), count))
    room = seen.new_zeros(2, step, len(seen), width)
    for first in range(0, count, step):
        some = slice(first, min(first + step, count))
        keys, values = heads.spread(seen, first, room[:, : some.stop - first])
        mixed = _mixed(filled[None, some], keys[None], values[None], mask, scaling)
        out[:, some] = mixed[0, ..., : heads.value].transpose(0, 1)
    return out


def _mixed(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling)


# --- while a model is loaded ------------------------------------------------------------------------------------------


def take_heads(sources: dict[str, Source]) -> dict[str, Parts]:
    """Take the matrices of heads out of the sources: by the path of their attention."""
    found: dict[str, Parts] = {}
    for name in [name for name in sources if name.endswith((_WHOLE, _KEYS))]:
        path = name.removesuffix(_WHOLE).removesuffix(_KEYS)
        ends = (_WHOLE,) if name.endswith(_WHOLE) else (_KEYS, _VALUES)
        found[path] = tuple(sources.pop(f"{path}{end}") for end in ends)
    return found


def whole_shapes(heads: Mapping[str, Parts]) -> dict[str, tuple[int, ...]]:
    """Of the parameters that transformers' classes have for them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, (first, *rest) in heads.items():
        if rest:  # [heads, rank, key] and [heads, value, rank]
            count, rank, key = first.shape
            shapes[f"{path}{_WHOLE}"] = count * (key + rest[0].shape[1]), rank
        else:
            shapes[f"{path}{_WHOLE}"] = first.shape
    return shapes


def keep_latents(model: nn.Module, heads: Mapping[str, Parts] | None = None) -> None:
    """Let attention keep latents; without `heads`, those that the model has."""
    for path, module in list(model.named_modules()):
        if not hasattr(module, "expand_kv"):
            continue
        parts = [module.kv_b_proj.weight] if heads is None else [part[...] for part in heads[path]]
        if len(parts) == 1:  # rows of a head for keys, then those for values
            by_head = parts[0].view(module.num_heads, -1, parts[0].shape[-1])
            key = module.qk_nope_head_dim
            parts = [by_head[:, :key].transpose(1, 2).contiguous(), by_head[:, key:].contiguous()]
        del module.kv_b_proj
        setattr(module, _HEADS, LatentHeads(parts[0], parts[1], module.qk_rope_head_dim))
        module.expand_kv = _joined  # what transformers' class calls to make keys and values


def _joined(latent: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
    both = torch.cat((latent, turned), dim=-1)
    return both, both
