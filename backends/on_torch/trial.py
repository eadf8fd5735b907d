"""The step that shows how many threads a shard should have: of its own layers, or of as many as time allows."""

from __future__ import annotations

from copy import copy
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backends.base import with_inputs
from backends.measuring import require_all
from backends.on_torch.shard import TORCH, TorchShard, write_activation
from backends.on_torch.threads import PROMPT, Step, StepThreads
from together.models.spec import ModelSpec
from together.types import BLOCK, Activation, Batch, Dtype, LayerRange, Row, SampleRequest, Sampling

_SPAN = 2**25  # bytes of weights that a timed step reads at most, or one layer: a load waits for the trial
_CPU = torch.device("cpu")


def threads_for(
    spec: ModelSpec, layers: LayerRange, dtype: Dtype, model: Any, home: Path | None, *, exact: bool
) -> StepThreads:
    """Of a shard on the CPU with these layers of the model."""
    size = spec.layer_weights[layers.start].nbytes(dtype)
    last = layers.stop == spec.layers and size * len(layers) <= _SPAN  # the head counts as often as it does in a step
    shape = f"{spec.hidden_size} wide, {size} bytes a layer, {dtype}"
    shape += (", exact" if exact else "") + (f", head of {spec.vocab_size}" if last else "")
    held = LayerRange(layers.start, layers.start + _counted(len(layers), size))
    return StepThreads(shape, partial(trial_step, spec, held, dtype, model, last=last), home)


def fewest_threads(spec: ModelSpec, layers: int, layer_bytes: int, dtype: Dtype, model: Any) -> int:
    """What a step of one token through a made-up model gets where nothing else computes."""
    held = LayerRange(spec.layers - layers, spec.layers - layers + _counted(layers, layer_bytes))
    trial = partial(trial_step, spec, held, dtype, model, last=False)
    return StepThreads("", trial).choose(sharing=1).few


def _counted(layers: int, layer_bytes: int) -> int:
    return max(1, min(layers, _SPAN // max(layer_bytes, 1)))


def trial_step(spec: ModelSpec, held: LayerRange, dtype: Dtype, model: Any, *, last: bool) -> Step:
    """A step of so many tokens through the model's first layers, `held` in the whole model, with caches of its own.

    The last stage's also computes the logits of a token.
    """
    count = len(held)
    layers, shape = LayerRange(1, 1 + count), spec.excerpt(held.start, count, count + (1 if last else 2))
    part = with_parts(model, model.model.layers[:count], model.model.norm if last else nn.Identity())
    room = 2 * max(PROMPT, BLOCK) + shape.cache_size(layers, dtype).per_sequence
    shard = TorchShard(shape, layers, dtype, _CPU, room, part)

    def step(tokens: int) -> object:
        ask = SampleRequest((tokens - 1,), Sampling(temperature=0.0), tokens) if last else None
        batch = Batch((Row(1, 0, (0,) * tokens, ask),))
        given = with_inputs(_states(tokens, spec.hidden_size, dtype), shape.inputs_behind(1))
        if last:
            return shard.logits(batch, given)  # what random states lead to need not be finite
        require_all(shard.step(batch, given))
        return None

    return step


@cache
def _states(tokens: int, width: int, dtype: Dtype) -> Activation:
    return write_activation(torch.randn(tokens, width).to(TORCH[dtype]), dtype)


def with_parts(model: Any, layers: nn.Module, norm: nn.Module) -> Any:
    """The same model with other layers and another norm; all else is shared."""
    outer, inner = copy(model), copy(model.model)
    inner._modules = inner._modules | {"layers": layers, "norm": norm}
    outer._modules = outer._modules | {"model": inner}
    return outer
