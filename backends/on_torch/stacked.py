"""Quantized matrices that multiply the same input, as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from backends.on_torch.packed import Packed
from backends.on_torch.shared import TOGETHER
from together.types import Packing


class Readable(Protocol):
    """A quantized matrix, wherever it lies; `shape` is that of its plain weights."""

    @property
    def packing(self) -> Packing: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, start: int, stop: int) -> Packed:
        """From `start` to `stop` of the first axis. Raises what reading raises."""


@dataclass(frozen=True, slots=True)
class Stacked:
    """Matrices `[outputs, inputs]` of one packing as one, along the outputs."""

    parts: Sequence[Readable]

    @property
    def packing(self) -> Packing:
        return self.parts[0].packing

    @property
    def shape(self) -> tuple[int, ...]:
        return sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:]

    def read(self, start: int, stop: int) -> Packed:
        found, before = [], 0
        for part in self.parts:
            low, high = (min(max(end - before, 0), part.shape[0]) for end in (start, stop))
            if low < high:
                found.append(part.read(low, high))
            before += part.shape[0]
        return joined(found, axis=0)


class StackedExperts(Stacked):
    """Matrices `[experts, outputs, inputs]` of one packing as one, each expert's along its outputs."""

    __slots__ = ()

    @property
    def shape(self) -> tuple[int, ...]:
        experts, _, inputs = self.parts[0].shape
        return experts, sum(part.shape[1] for part in self.parts), inputs

    def read(self, start: int, stop: int) -> Packed:
        return joined([part.read(start, stop) for part in self.parts], axis=1)


def joined(parts: Sequence[Packed], *, axis: int) -> Packed:
    """Without a copy where there is only one."""
    if len(parts) == 1:
        return parts[0]
    biases = [part.biases for part in parts if part.biases is not None]
    return Packed(
        parts[0].packing,
        torch.cat([part.words for part in parts], axis),
        torch.cat([part.scales for part in parts], axis),
        torch.cat(biases, axis) if biases else None,
    )


def with_same_input(matrices: Mapping[str, Readable]) -> list[tuple[str, ...]]:
    """Parameters of layers with the same input that are packed alike, sorted: the same whatever else is loaded."""
    groups: dict[tuple[str, str, Packing], list[str]] = {}
    for name in sorted(matrices):
        path, _, projection = name.removesuffix(".weight").rpartition(".")
        kind = next((kinds[0] for kinds in TOGETHER if projection in kinds), projection)
        groups.setdefault((path, kind, matrices[name].packing), []).append(name)
    return [tuple(group) for group in groups.values()]
