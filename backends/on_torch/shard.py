"""The torch shard: runs packed rows through a transformers model of its range, with a KV cache for every sequence."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backends.base import LAYER_INPUTS, ShardShape, StepOutput
from backends.ledger import Ledger, LedgerShard, Logits, axis_positions, token_ids
from backends.on_torch.attention import Step
from backends.on_torch.cache import BLOCK_TOKENS, BlockCaches
from backends.on_torch.computing import computing_of
from backends.on_torch.layer_inputs import TorchLayerInputs
from backends.on_torch.threads import StepThreads
from backends.on_torch.token_steps import TokenSteps
from backends.on_torch.vision import TorchVision
from together.models.families import BY_NAME
from together.models.spec import ModelSpec
from together.types import Activation, Batch, Dtype, LayerRange, NamedTensor, Row, Threads

TORCH: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOKEN_STEPS = "token_steps"  # a mark of models whose steps of a token a program does: a trial has shown that it can
_BITS = {4: torch.int32, 2: torch.int16}  # numpy has no bf16: bits travel as whole numbers


def read_activation(hidden: Activation, device: torch.device) -> Tensor:
    """Hidden states as `[tokens, width]`, on a CPU without a copy: never write to them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")
        states = torch.frombuffer(hidden.data, dtype=TORCH[hidden.dtype])
    return states.reshape(hidden.tokens, hidden.width).to(device)


def _read_other(other: NamedTensor, hidden: Activation, device: torch.device) -> Tensor:
    return read_activation(Activation(other.dtype, hidden.tokens, other.width, other.data), device)


def write_activation(states: Tensor, dtype: Dtype) -> Activation:
    """`[tokens, width]` in `dtype` as what travels; on a CPU without a copy. Waits for the device."""
    tokens, width = states.shape
    bits = states.contiguous().cpu().view(_BITS[states.element_size()]).numpy()
    return Activation(dtype, tokens, width, bits.data.cast("B"))


def to_numpy(logits: Tensor) -> Logits:
    return logits.float().cpu().numpy()


class TorchShard(LedgerShard[Tensor]):
    """`model` is a transformers causal LM; states are `[tokens, hidden]`."""

    def __init__(
        self,
        spec: ModelSpec,
        layers: LayerRange,
        dtype: Dtype,
        device: torch.device,
        capacity: int,
        model: Any,
        threads: StepThreads | None = None,
        vision: TorchVision | None = None,
    ) -> None:
        """Without `threads`, steps are computed with as many as torch has at the time."""
        self._device, self._model, self._threads = device, model, threads
        own = spec.cache_size(layers, dtype).per_sequence
        room = capacity - own  # whoever holds tokens has its own state, which lies elsewhere
        self._caches = BlockCaches(spec.states[layers.start : layers.stop], TORCH[dtype], device, room)
        ledger = Ledger(self._caches, capacity, BLOCK_TOKENS, self._caches.rewind, shares=True, per_sequence=own)
        shape = ShardShape.of(spec, layers, dtype)
        super().__init__(replace(shape, eyes=vision.eyes) if vision else shape, ledger)
        self._vision = vision
        self._logits_scale = BY_NAME[spec.family].logits_scale(model.config.to_dict())
        self._inputs = None
        if spec.layer_inputs:
            self._inputs = TorchLayerInputs(model.model, spec.layer_inputs, spec.hidden_size, len(layers))
        self._token_steps: TokenSteps | None = None
        if getattr(model, TOKEN_STEPS, False):
            self._token_steps = TokenSteps.make(model.model, self._caches, TORCH[dtype])
        self.computing = computing_of(model, device)

    @torch.inference_mode()
    def share(self, stages: int) -> Threads | None:
        return self._threads.choose(stages) if self._threads is not None else None

    def limit(self, percent: int) -> None:
        if self._threads is not None and self._device.type == "cpu":
            self._threads.limit(percent)

    @torch.inference_mode()
    def step(self, batch: Batch, hidden: Activation | None) -> StepOutput:
        return super().step(batch, hidden)

    @torch.inference_mode()
    def logits(self, batch: Batch, hidden: Activation | None) -> Logits:
        return super().logits(batch, hidden)

    def close(self) -> None:
        self._caches.close()
        self._model = self._vision = self._token_steps = None
        if self._device.type != "cpu":
            torch.accelerator.empty_cache()

    def _read(self, hidden: Activation) -> Tensor:
        """With what travels beside them, as more columns."""
        parts = [read_activation(hidden, self._device)]
        parts += [_read_other(other, hidden, self._device) for other in hidden.others]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _join(self, states: Tensor, parts: Iterable[slice]) -> Tensor:
        return torch.cat([states[part] for part in parts])

    def _forward(self, rows: tuple[Row, ...], states: Tensor | None) -> Tensor:
        """Norm included, on the last stage."""
        if self._threads is not None:
            self._threads.use(sum(len(row.token_ids) for row in rows))
        packed = Step.of(self._caches, rows, self._device)
        if self._token_steps is not None and self._token_steps.takes(rows):
            given = self._model.model.embed_tokens(self._ids(token_ids(rows)))[0] if states is None else states
            return self._token_steps(packed, given, self._places(rows))
        inputs: dict[str, Any] = (
            {"input_ids": self._ids(token_ids(rows))} if states is None else {"inputs_embeds": states[None]}
        )
        if self._inputs is not None:
            embeds, beside = self._inputs.begin(inputs["input_ids"]) if states is None else self._inputs.part(states)
            inputs = {"inputs_embeds": embeds, "per_layer_inputs": beside}
        if self._vision is not None and states is None:
            inputs = self._vision.begin(rows, self._model.model.embed_tokens(inputs["input_ids"]))
        output = self._model.model(**inputs, position_ids=self._places(rows), packed=packed, use_cache=False)
        found: Tensor = output.last_hidden_state[0]
        return found if self._inputs is None else self._inputs.joined(found, beside)

    def _places(self, rows: tuple[Row, ...]) -> Tensor:
        """Positions `[1, tokens]`, or `[axes, 1, tokens]` where a row names some."""
        axes = axis_positions(rows)
        return self._ids(axes[0]) if len(axes) == 1 else torch.stack([self._ids(axis) for axis in axes])

    def _ids(self, numbers: list[int]) -> Tensor:
        return torch.tensor([numbers], dtype=torch.long, device=self._device)

    def _write(self, rows: tuple[Row, ...], states: Tensor) -> Activation:
        width, dtype = self._shape.width, self._shape.dtype
        if self._inputs is None:
            return write_activation(states, dtype)
        beside = write_activation(states[:, width:], dtype)
        other = NamedTensor(LAYER_INPUTS, dtype, beside.width, beside.data)
        return replace(write_activation(states[:, :width], dtype), others=(other,))

    def _logits(self, states: Tensor, places: list[int]) -> Tensor:
        logits: Tensor = self._model.lm_head(states[places])
        if self._logits_scale != 1.0:
            logits = logits * self._logits_scale
        cap = getattr(self._model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _to_numpy(self, rows: tuple[Row, ...], logits: Tensor) -> Logits:
        return to_numpy(logits)

    def _greedy(self, rows: tuple[Row, ...], logits: Tensor, rest: list[int]) -> tuple[list[int], bool, Logits]:
        best = logits.argmax(dim=-1, keepdim=True)
        finite = torch.isfinite(logits.gather(-1, best)).all()
        others = to_numpy(logits[rest]) if rest else np.empty((0, logits.shape[1]), np.float32)
        return best[:, 0].tolist(), bool(finite), others

    def _chosen(self, rows: tuple[Row, ...], logits: Tensor, ids: list[int]) -> tuple[Logits, Logits]:
        values = logits.float()
        chosen = values.gather(-1, self._ids(ids).T)
        return to_numpy(chosen[:, 0]), to_numpy(values.logsumexp(dim=-1))
