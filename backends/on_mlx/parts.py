"""Matrices that mlx-lm has as several, whose rows follow one another in the published one."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import mlx.core as mx

from together.models.families import BY_NAME
from together.models.matrices import BIASES, SCALES, beside
from together.models.names import shifted
from together.models.spec import ModelSpec
from together.types import LayerRange, Packing


def split_rows(
    weights: dict[str, mx.array],
    packings: dict[str, Packing],
    config: Mapping[str, Any],
    spec: ModelSpec,
    layers: LayerRange,
) -> None:
    """Put the parts in the place of such matrices: rows are packed each by itself, so packed ones stay as they are.

    `config` is the effective one of the whole model, `packings` are by the paths of modules.
    """
    for layer in range(layers.start, layers.stop):
        for name, parts in BY_NAME[spec.family].parted(config, layer).items():
            whole = shifted(name, layers.start)
            if whole not in weights or any(len(shape) != 2 for shape in parts.values()):
                continue
            names = [shifted(part, layers.start) for part in parts]
            ends = list(accumulate(shape[0] for shape in parts.values()))
            for end in ("weight", SCALES, BIASES):
                rows = weights.pop(beside(whole, end), None)
                if rows is not None:
                    places = zip(names, [0, *ends], ends, strict=False)
                    weights |= {beside(part, end): rows[start:stop] for part, start, stop in places}
            packing = packings.pop(whole.removesuffix(".weight"), None)
            if packing is not None:
                packings |= {part.removesuffix(".weight"): packing for part in names}
