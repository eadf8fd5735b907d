"""Matrices that files may have as several, whose rows follow one another: transformers' classes have them as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backends.on_torch.packed import Packed
from backends.on_torch.stacked import Stacked
from backends.on_torch.tensors import Lazy, Quantized, Scaled
from together.models.family import Family
from together.models.names import shifted
from together.types import LayerRange, Packing


@dataclass(frozen=True, slots=True)
class JoinedRows:
    """Stands for a matrix of which there are only parts."""

    parts: tuple[Lazy | Scaled | Quantized, ...]

    @property
    def quantized(self) -> list[Quantized]:
        """The parts, where all are packed alike; else none: the matrix is plain then."""
        found = [part for part in self.parts if isinstance(part, Quantized)]
        alike = len({part.packing for part in found}) == 1 and len(found) == len(self.parts)
        return found if alike else []

    @property
    def packing(self) -> Packing:
        return self.quantized[0].packing

    @property
    def shape(self) -> tuple[int, ...]:
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def read(self, start: int, stop: int) -> Packed:
        return Stacked(self.quantized).read(start, stop)

    def __getitem__(self, _: object) -> Tensor:
        return torch.cat([part[...] for part in self.parts])


def join_rows(sources: dict[str, Any], family: Family, config: Mapping[str, Any], layers: LayerRange) -> None:
    """Put such matrices in the place of their parts; `config` is the effective one of the whole model."""
    if family.regrouped:
        return
    for layer in range(layers.start, layers.stop):
        for whole, parts in family.parted(config, layer).items():
            names = [shifted(name, layers.start) for name in parts]
            if all(name in sources for name in names) and all(len(shape) == 2 for shape in parts.values()):
                found = tuple(sources.pop(name) for name in names)
                sources[shifted(whole, layers.start)] = found[0] if len(found) == 1 else JoinedRows(found)
