"""Experts with quantized matrices: of a layer's many, the few that were chosen are multiplied."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from backends.on_torch.half import multiplied
from backends.on_torch.nbits import NBitsStack
from backends.on_torch.packed import Packed
from backends.on_torch.quantized import Tiles


class Experts(Protocol):
    """One projection of all experts, `[experts, outputs, inputs]`."""

    def __call__(self, rows: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """By expert: `[n, inputs]` → `[n, outputs]` in the same dtype, with n above 0."""


class EachExpert:
    """One after the other: plain ones, and packed ones by tiles of plain weights."""

    def __init__(self, weights: Packed | Tensor) -> None:
        self._weights = weights

    def __call__(self, rows: Mapping[int, Tensor]) -> dict[int, Tensor]:
        return {expert: self._product(expert, given) for expert, given in rows.items()}

    def _product(self, expert: int, rows: Tensor) -> Tensor:
        if isinstance(self._weights, Tensor):
            return multiplied(rows, self._weights[expert])
        return Tiles(self._weights[expert])(rows)


class ExpertStacks:
    """Several experts to a session."""

    def __init__(self, stacks: Sequence[NBitsStack], step: int) -> None:
        self._stacks, self._step = stacks, step

    def __call__(self, rows: Mapping[int, Tensor]) -> dict[int, Tensor]:
        found = {}
        for index, stack in enumerate(self._stacks):
            start = index * self._step
            asked = {expert - start: given for expert, given in rows.items() if 0 <= expert - start < self._step}
            if asked:
                found.update({start + place: out for place, out in stack(asked).items()})
        return found


class BiasedExperts:
    """A projection with a bias for each expert, `[experts, outputs]`."""

    def __init__(self, experts: Experts, bias: Tensor) -> None:
        self._experts, self._bias = experts, bias

    def __call__(self, rows: Mapping[int, Tensor]) -> dict[int, Tensor]:
        return {expert: out + self._bias[expert] for expert, out in self._experts(rows).items()}


@dataclass(frozen=True, slots=True)
class Alone:
    """Of experts without a gate: up, `[n, inner]`, to what `down` is given."""

    act: Callable[[Tensor], Tensor]


Gate = Callable[[Tensor, Tensor], Tensor] | Alone  # gate and up, `[n, inner]` each, to what `down` is given


def gate_of(module: Any) -> Gate:
    """What transformers' experts compute between their projections; other than the usual, it takes their weights."""
    if not module.has_gate:
        return Alone(module.act_fn)
    if module.is_concatenated:
        act = module.act_fn
        return lambda gate, up: act(gate) * up
    for name in list(module._parameters):
        delattr(module, name)
    return lambda gate, up: module._apply_gate(torch.stack((gate, up), dim=-1).flatten(-2))


class QuantizedExperts(nn.Module):
    """Takes the place of a layer's experts."""

    def __init__(self, gate: Gate, inner: Sequence[Experts], down: Experts, *, in_turns: bool = False) -> None:
        """`inner` has gate and up, or one with the outputs of both: one after the other, or `in_turns`.

        Of experts without a gate it has up.
        """
        super().__init__()
        self._inner, self._down, self._gate, self._in_turns = inner, down, gate, in_turns

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """hidden `[tokens, width]`, chosen and weights `[tokens, experts per token]`."""
        out = torch.zeros_like(hidden)
        places = {expert: torch.where(chosen == expert) for expert in torch.unique(chosen).tolist()}
        given = {expert: hidden[tokens] for expert, (tokens, _) in places.items()}
        found = self._down(self._states(given))
        for expert, (tokens, place) in places.items():
            out.index_add_(0, tokens, (found[expert] * weights[tokens, place, None]).to(out.dtype))
        return out

    def _states(self, given: Mapping[int, Tensor]) -> dict[int, Tensor]:
        first, *more = (part(given) for part in self._inner)
        gated = self._gate
        if isinstance(gated, Alone):
            return {expert: gated.act(up) for expert, up in first.items()}
        if more:
            return {expert: gated(gate, more[0][expert]) for expert, gate in first.items()}
        if self._in_turns:
            return {expert: gated(both[:, ::2], both[:, 1::2]) for expert, both in first.items()}
        halves = {expert: both.chunk(2, dim=1) for expert, both in first.items()}
        return {expert: gated(*both) for expert, both in halves.items()}
