"""What each layer takes beside the hidden states, which a first stage makes of token ids and their embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from together.models.names import OPENING_UNIT, unit_of


@dataclass(frozen=True, slots=True)
class TorchLayerInputs:
    """Of a shard whose layers take some: `model` is transformers' inner one, `width` what each layer takes.

    A first stage has transformers' own modules for them, which make those of all layers of the model.
    """

    model: Any
    width: int
    hidden: int
    layers: int  # of the shard

    def __post_init__(self) -> None:
        self.model.project_per_layer_inputs = _given  # what is given was made on the first stage

    def begin(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """`[1, tokens]` ids to `[1, tokens, hidden]` embeddings, and `[1, tokens, layers, width]` of all layers."""
        kind, embeds = type(self.model), self.model.embed_tokens(ids)
        found: Tensor = kind.project_per_layer_inputs(self.model, embeds, self.model.get_per_layer_inputs(ids))
        return embeds, found

    def part(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """`[tokens, hidden and all inputs]` as `begin` has it."""
        return states[None, :, : self.hidden], states[:, self.hidden :].unflatten(1, (-1, self.width))[None]

    def joined(self, states: Tensor, inputs: Tensor) -> Tensor:
        """`[tokens, hidden]` with what the layers behind the shard take: what travels, as one matrix."""
        behind = inputs[0, :, self.layers :].flatten(1)
        return torch.cat((states, behind), dim=1) if behind.shape[1] else states


def _given(embeds: Tensor, inputs: Tensor) -> Tensor:
    return inputs


def absent_behind(parameters: Mapping[str, Any], first: int) -> dict[str, tuple[int, ...]]:
    """The shapes of all layers from `first` on: a first stage's model is made with them, and goes without."""
    numbers = {name: name.split(".layers.")[1].split(".")[0] for name in parameters if ".layers." in name}
    return {name: tuple(parameters[name].shape) for name, number in numbers.items() if int(number) >= first}


def drop_opening(model: Any) -> None:
    """Take away what only a first stage has."""
    for name, _ in list(model.named_parameters()):
        if unit_of(name) == OPENING_UNIT:
            path, _, _ = name.rpartition(".")
            model.set_submodule(path, nn.Identity())
