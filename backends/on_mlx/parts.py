"""Matrices that a file and mlx-lm's class have otherwise: as one, or as several whose rows follow one another."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from together.models.families import BY_NAME
from together.models.matrices import BIASES, SCALES, beside
from together.models.names import shifted
from together.models.spec import ModelSpec
from together.types import LayerRange, Packing

_ENDS = ("weight", SCALES, BIASES)


def fit_rows(
    model: Module,
    weights: dict[str, mx.array],
    packings: dict[str, Packing],
    config: Mapping[str, Any],
    spec: ModelSpec,
    layers: LayerRange,
    dtype: mx.Dtype,
) -> None:
    """Split and join such matrices as the model has them: rows are packed each by itself, so they stay as they are.

    Of parts that are packed each in another way one plain matrix is made, in `dtype`.
    `config` is the effective one of the whole model, `packings` are by the paths of modules.
    """
    if BY_NAME[spec.family].regrouped:
        return
    paths = {path for path, _ in model.named_modules()}
    for layer in range(layers.start, layers.stop):
        for name, parts in BY_NAME[spec.family].parted(config, layer).items():
            if any(len(shape) != 2 for shape in parts.values()):
                continue
            whole, names = shifted(name, layers.start), [shifted(part, layers.start) for part in parts]
            is_whole = whole.removesuffix(".weight") in paths
            if whole in weights and not is_whole:
                _split(weights, packings, whole, dict(zip(names, (shape[0] for shape in parts.values()), strict=True)))
            elif is_whole and names[0] in weights:
                _join(weights, packings, whole, names, dtype)


def _split(weights: dict[str, mx.array], packings: dict[str, Packing], whole: str, rows: Mapping[str, int]) -> None:
    """`rows` are how many each part has, by its name."""
    ends = list(accumulate(rows.values()))
    for end in _ENDS:
        array = weights.pop(beside(whole, end), None)
        if array is not None:
            places = zip(rows, [0, *ends], ends, strict=False)
            weights |= {beside(part, end): array[start:stop] for part, start, stop in places}
    packing = packings.pop(whole.removesuffix(".weight"), None)
    if packing is not None:
        packings |= {part.removesuffix(".weight"): packing for part in rows}


def _join(
    weights: dict[str, mx.array], packings: dict[str, Packing], whole: str, names: list[str], dtype: mx.Dtype
) -> None:
    kinds = [packings.pop(name.removesuffix(".weight"), None) for name in names]
    packing = kinds[0] if len(set(kinds)) == 1 else None
    if packing is not None:
        packings[whole.removesuffix(".weight")] = packing
        for end in _ENDS:
            arrays = [weights.pop(beside(name, end)) for name in names if beside(name, end) in weights]
            if arrays:
                weights[beside(whole, end)] = mx.concatenate(arrays)
        return
    plain = [_plain(weights, name, kind) for name, kind in zip(names, kinds, strict=True)]
    weights[whole] = mx.concatenate([part.astype(dtype) for part in plain])


def _plain(weights: dict[str, mx.array], name: str, packing: Packing | None) -> mx.array:
    if packing is None:
        return weights.pop(name)
    words, scales = (weights.pop(beside(name, end)) for end in ("weight", SCALES))
    biases = weights.pop(beside(name, BIASES), None)
    found: mx.array = mx.dequantize(words, scales, biases, packing.group, packing.bits, packing.mode)
    return found
