"""The torch shard: runs packed rows through a transformers model that holds the layers of its range only."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backends.base import ShardShape, StepOutput
from backends.ledger import Ledger, LedgerShard, Logits, SequenceCaches, positions, starts, token_ids
from backends.on_torch.cache import CacheShape, PackedRow, TorchLayerCache
from backends.on_torch.model import TORCH, read_activation, to_numpy, write_activation
from together.models.spec import ModelSpec
from together.types import Activation, Batch, Dtype, LayerRange, Row


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
