"""Layers that multiply the same input, as one product."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # of a module: all have the same input


class SharedProduct:
    """One product for several layers with the same input: whichever comes first computes for all."""

    def __init__(self, product: Callable[[Tensor], Sequence[Tensor]]) -> None:
        """`product` returns what each layer gets."""
        self._product = product
        self._input: Tensor | None = None
        self._found: dict[int, Tensor] = {}  # what has not been asked for yet

    def part(self, place: int, input: Tensor) -> Tensor:
        """Of the layer at `place`. Nobody changes an input before all layers have had it."""
        if input is not self._input or place not in self._found:
            self._input = input
            self._found = dict(enumerate(self._product(input)))
        found = self._found.pop(place)
        if not self._found:
            self._input = None
        return found
