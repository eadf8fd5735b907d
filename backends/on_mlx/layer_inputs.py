"""What each layer takes beside the hidden states, which a first stage makes of token ids and their embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear

from together.models.spec import ModelSpec

_PARTS = "embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm"


@dataclass(frozen=True, slots=True)
class MlxLayerInputs:
    """The modules that a first stage has for them; formulas as in mlx-lm's `gemma4_text.py`."""

    embed: Callable[[mx.array], mx.array]
    project: Callable[[mx.array], mx.array]
    norm: Callable[[mx.array], mx.array]
    width: int  # of what each layer takes

    def __call__(self, ids: list[int], embeddings: mx.array) -> mx.array:
        """`[1, tokens, hidden]` to `[1, tokens, layers · width]`, of all layers of the model."""
        looked_up = self.embed(mx.array(ids, mx.int32)[None])
        looked_up = looked_up * mx.array(self.width**0.5, looked_up.dtype)
        projected = self.project(embeddings) * embeddings.shape[-1] ** -0.5
        normed = self.norm(mx.unflatten(projected, -1, (-1, self.width)))
        found: mx.array = (mx.flatten(normed, -2) + looked_up) * 2.0**-0.5
        return found


def opened(model: Module, spec: ModelSpec, vocabulary: int, *, first: bool) -> None:
    """Give the model of a first stage these modules for all layers, and take them from any other's."""
    if not first:
        closed(model)
        return
    every = spec.inputs_behind(0)
    model.model.embed_tokens_per_layer = Embedding(vocabulary, every)
    model.model.per_layer_model_projection = Linear(spec.hidden_size, every, bias=False)


def closed(model: Module) -> None:
    for part in _PARTS:
        model.model.pop(part, None)


def layer_inputs(model: Module, spec: ModelSpec) -> MlxLayerInputs | None:
    """Of a model with weights; None where it is no first stage, or layers take nothing."""
    inner: Any = model.model
    if not spec.layer_inputs or _PARTS[0] not in inner:
        return None
    embed, project, norm = (inner[part] for part in _PARTS)
    return MlxLayerInputs(embed, project, norm, spec.layer_inputs)
