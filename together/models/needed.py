"""Which tensors of a folder a stage reads: those that layers, embedding and head need, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from together.models.config import effective
from together.models.eyes import is_tower
from together.models.folder import read_json
from together.models.headers import TensorInfo
from together.models.layout import needs
from together.models.manifest import CONFIG
from together.models.matrices import PackedMatrix, ScaledMatrix
from together.models.quantization import Zeros, zeros_of
from together.models.reading import all_tensors, tensors_for
from together.models.recognise import find_matrices
from together.models.spec import named
from together.models.stored import undone
from together.types import LayerRange


@dataclass(frozen=True, slots=True)
class Needed:
    """What a stage reads: plain tensors, and quantized matrices by their names."""

    plain: tuple[TensorInfo, ...]
    packed: dict[str, PackedMatrix]
    scaled: dict[str, ScaledMatrix]

    @property
    def text(self) -> Needed:
        """Without a vision tower."""
        return replace(
            self,
            plain=tuple(tensor for tensor in self.plain if not is_tower(tensor.name)),
            packed={name: matrix for name, matrix in self.packed.items() if not is_tower(name)},
            scaled={name: matrix for name, matrix in self.scaled.items() if not is_tower(name)},
        )

    @property
    def tower(self) -> tuple[TensorInfo, ...]:
        return tuple(tensor for tensor in self.plain if is_tower(tensor.name))

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All of them, with the parts of matrices."""
        packed = (tensor for matrix in self.packed.values() for tensor in matrix.tensors)
        scaled = (tensor for matrix in self.scaled.values() for tensor in matrix.tensors)
        return (*self.plain, *packed, *scaled)


def needed_tensors(folder: Path, layers: LayerRange, home: Path) -> Needed:
    """What a stage of `layers` reads: `tensors_for` without what no layer needs. Raises as that and `read_config`."""
    words = read_json(folder, CONFIG)
    config = effective(named(folder)[0], words)
    stored = tensors_for(folder, layers, config["num_hidden_layers"], home)
    found = undone(config, stored, lambda: all_tensors(folder))
    return needed_of(config, {tensor.name: tensor for tensor in found}, zeros_of(words))


def needed_of(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], zeros: Zeros) -> Needed:
    """What layers need of these tensors; `config` is the effective one."""
    shapes = needs(config, head=True, stored=tensors)
    found = find_matrices(shapes, tensors, zeros)
    parts = found.parts
    plain = tuple(tensor for name, tensor in tensors.items() if name in shapes and name not in parts)
    return Needed(plain, found.packed, found.scaled)
