"""The torch shard: runs packed rows through a transformers model of its range, with a KV cache for every sequence."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from backends.base import ShardShape, StepOutput
from backends.ledger import (
    REWIND,
    Ledger,
    LedgerShard,
    Logits,
    SequenceCaches,
    positions,
    starts,
    token_ids,
    whole_blocks,
)
from together.models.spec import ModelSpec
from together.types import BLOCK, Activation, Batch, Dtype, LayerRange, Row

TORCH: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BITS = {4: torch.int32, 2: torch.int16}  # numpy has no bf16: bits travel as whole numbers


def read_activation(hidden: Activation, device: torch.device) -> Tensor:
    """Hidden states as `[tokens, width]`, on a CPU without a copy: never write to them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")
        states = torch.frombuffer(hidden.data, dtype=TORCH[hidden.dtype])
    return states.reshape(hidden.tokens, hidden.width).to(device)


def write_activation(states: Tensor, dtype: Dtype) -> Activation:
    """`[tokens, width]` in `dtype` as what travels; on a CPU without a copy. Waits for the device."""
    tokens, width = states.shape
    bits = states.contiguous().cpu().view(_BITS[states.element_size()]).numpy()
    return Activation(dtype, tokens, width, bits.data.cast("B"))


def to_numpy(logits: Tensor) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return logits.float().cpu().numpy()


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What one token takes in one layer, and where."""

    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    def empty(self, tokens: int) -> Tensor:
        """Room for keys and values, `[2, kv_heads, tokens, head_dim]`."""
        return torch.empty(2, self.kv_heads, tokens, self.head_dim, dtype=self.dtype, device=self.device)


@dataclass(slots=True)
class TorchLayerCache:
    """One sequence's keys and values in one layer: those of the tokens from `base` on."""

    shape: CacheShape
    window: int | None
    base: int = 0
    data: Tensor = field(init=False)  # [2, kv_heads, room, head_dim]

    def __post_init__(self) -> None:
        self.data = self.shape.empty(0)

    def append(self, position: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put `[kv_heads, n, head_dim]` at `position`; returns all keys and values that the new tokens may look at.

        Those start at `first(position)`. Nothing is lost that going back `REWIND` tokens from `position` needs.
        """
        stop = position + keys.shape[1]
        if stop - self.base > self.data.shape[2]:
            self._grow(position, stop)
        self.data[0, :, position - self.base : stop - self.base] = keys
        self.data[1, :, position - self.base : stop - self.base] = values
        seen = self.data[:, :, self.first(position) - self.base : stop - self.base]
        return seen[0], seen[1]

    def first(self, position: int) -> int:
        """The first token that a token at `position` sees."""
        return 0 if self.window is None else max(0, position - self.window + 1)

    def truncate(self, length: int) -> None:
        """Give back the blocks behind `length`."""
        room = whole_blocks(length - self.base)
        if room < self.data.shape[2]:
            self.data = self.data[:, :, :room].clone()

    def copy(self, length: int) -> TorchLayerCache:
        """A cache of its own with the first `length` tokens, as far as they are still here."""
        twin = TorchLayerCache(self.shape, self.window, self.base)
        kept = length - self.base
        twin.data = self.shape.empty(whole_blocks(kept))
        twin.data[:, :, :kept] = self.data[:, :, :kept]
        return twin

    def _grow(self, position: int, stop: int) -> None:
        """Move what must stay, `[keep, position)`, to a tensor of whole blocks with room up to `stop`."""
        keep = self.base if self.window is None else max(self.base, position - self.window - REWIND)
        spare = BLOCK if keep else 0  # a sliding layer moves its tokens once per block, not with each one
        grown = self.shape.empty(min(whole_blocks(stop - keep + spare), whole_blocks(stop)))
        grown[:, :, : position - keep] = self.data[:, :, keep - self.base : position - self.base]
        self.data, self.base = grown, keep


ATTENTION = "together_packed"


@dataclass(slots=True)
class PackedRow:
    """One row's place in the packing, and its sequence's caches."""

    start: int  # of its tokens among all tokens of the step
    count: int
    position: int
    caches: Sequence[TorchLayerCache]  # one per layer
    masks: dict[int | None, Tensor] = field(default_factory=dict)  # by window: the same for all layers of a kind


def register_attention() -> None:
    """Let models be loaded with `attn_implementation=ATTENTION`."""
    AttentionInterface.register(ATTENTION, attend)


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


def _attend_row(
    row: PackedRow, cache: TorchLayerCache, query: Tensor, key: Tensor, value: Tensor, scaling: float
) -> Tensor:
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


def _plainly_causal(row: PackedRow, cache: TorchLayerCache) -> bool:
    return row.position == 0 and (cache.window is None or row.count <= cache.window)


def _mask(row: PackedRow, cache: TorchLayerCache, query: Tensor) -> Tensor:
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


class TorchShard(LedgerShard[Tensor]):
    """`model` is a transformers causal LM; states are `[tokens, hidden]`."""

    def __init__(
        self, spec: ModelSpec, layers: LayerRange, dtype: Dtype, device: torch.device, capacity: int, model: Any
    ) -> None:
        self._device, self._model = device, model
        shape = CacheShape(spec.kv_heads, spec.head_dim, TORCH[dtype], device)
        self._caches = SequenceCaches(spec.windows[layers.start : layers.stop], partial(TorchLayerCache, shape))
        ledger = Ledger(self._caches, capacity, rewind=self._caches.rewind)
        super().__init__(ShardShape.of(spec, layers, dtype), ledger)

    @torch.inference_mode()
    def step(self, batch: Batch, hidden: Activation | None) -> StepOutput:
        return super().step(batch, hidden)

    @torch.inference_mode()
    def logits(self, batch: Batch, hidden: Activation | None) -> Logits:
        return super().logits(batch, hidden)

    def close(self) -> None:
        self._caches.sequences.clear()
        self._model = None
        if self._device.type != "cpu":
            torch.accelerator.empty_cache()

    def _read(self, hidden: Activation) -> Tensor:
        return read_activation(hidden, self._device)

    def _join(self, states: Tensor, parts: Iterable[slice]) -> Tensor:
        return torch.cat([states[part] for part in parts])

    def _forward(self, rows: tuple[Row, ...], states: Tensor | None) -> Tensor:
        """Norm included, on the last stage."""
        caches = self._caches
        packed = [PackedRow(at, len(row.token_ids), row.position, caches.of(row.sequence)) for row, at in starts(rows)]
        inputs: dict[str, Tensor] = (
            {"input_ids": self._ids(token_ids(rows))} if states is None else {"inputs_embeds": states[None]}
        )
        output = self._model.model(**inputs, position_ids=self._ids(positions(rows)), packed=packed, use_cache=False)
        found: Tensor = output.last_hidden_state[0]
        return found

    def _ids(self, numbers: list[int]) -> Tensor:
        return torch.tensor([numbers], dtype=torch.long, device=self._device)

    def _write(self, rows: tuple[Row, ...], states: Tensor) -> Activation:
        return write_activation(states, self._shape.dtype)

    def _logits(self, states: Tensor, places: list[int]) -> Tensor:
        logits: Tensor = self._model.lm_head(states[places])
        cap = getattr(self._model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _to_numpy(self, rows: tuple[Row, ...], logits: Tensor) -> Logits:
        return to_numpy(logits)

    def _greedy(self, rows: tuple[Row, ...], logits: Tensor, rest: list[int]) -> tuple[list[int], bool, Logits]:
        best = logits.argmax(dim=-1, keepdim=True)
        finite = torch.isfinite(logits.gather(-1, best)).all()
        others = to_numpy(logits[rest]) if rest else np.empty((0, logits.shape[1]), np.float32)
        return best[:, 0].tolist(), bool(finite), others
