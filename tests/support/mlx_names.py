"""Tensors as transformers publishes them, of those of a folder in MLX's format: experts in other ways, above all."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np

from together.models.codes import Floats
from together.models.family import Family
from together.models.stored import CONVOLUTION

_STACKED = re.compile(r"(.+\.(mlp|block_sparse_moe|mixer))\.switch_mlp\.(.+)\.weight")
_MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def published_tensors(weights: Mapping[str, Floats], family: Family) -> Iterator[tuple[str, Floats]]:
    """Experts one by one or fused, and norms beside recurrent layers less 1, as transformers publishes them."""
    recurrent = any(name.endswith(CONVOLUTION) and values.shape[2] == 1 for name, values in weights.items())
    for name, values in weights.items():
        joined = _JOINED.fullmatch(name)
        if joined is not None:
            yield from _joined(weights, *joined.groups())
            continue
        if recurrent and name.endswith(CONVOLUTION):
            values = values.swapaxes(1, 2)
        elif recurrent and name.endswith(family.larger_on_mlx):
            values = values - np.float32(1)
        turned = _TURNED.fullmatch(name)
        if turned is not None:
            yield from _joined_turned(weights, *turned.groups())
            continue
        unfused = _UNFUSED.fullmatch(name)
        if unfused is not None:
            yield from _fused(weights, *unfused.groups())
            continue
        dense = _DENSE.fullmatch(name) if family.name == "granitemoehybrid" else None
        if dense is not None:
            yield from _granites(weights, dense[1], dense[2], ".mlp.", ".shared_mlp.")
            continue
        match = _STACKED.fullmatch(name)
        if match is None:
            yield name, np.ascontiguousarray(values)
            continue
        if f"{match[1]}.router.layer.weight" in weights:
            yield from _granites(weights, match[1], match[3], ".switch_mlp.", ".")
            continue
        name = _MIXTRAL[match[3]] if match[2] == "block_sparse_moe" else match[3]
        for expert, one in enumerate(values):
            yield f"{match[1]}.experts.{expert}.{name}.weight", np.ascontiguousarray(one)


_DENSE = re.compile(r"(model\.layers\.\d+)\.mlp\.(.+)\.weight")


def _granites(
    weights: Mapping[str, Floats], path: str, part: str, within: str, published: str
) -> Iterator[tuple[str, Floats]]:
    """Two tensors, the first with each expert's gate before its up, or those of the only MLP."""
    if part == "down_proj":
        yield f"{path}{published}output_linear.weight", np.ascontiguousarray(weights[f"{path}{within}down_proj.weight"])
    elif part == "gate_proj":
        both = (weights[f"{path}{within}{name}.weight"] for name in ("gate_proj", "up_proj"))
        yield f"{path}{published}input_linear.weight", np.concatenate(tuple(both), axis=-2)


def _joined(weights: Mapping[str, Floats], layer: str, within: str, part: str) -> Iterator[tuple[str, Floats]]:
    """Each expert's gate before its up."""
    if part == "down_proj":
        yield f"{layer}.experts.{part}", np.ascontiguousarray(weights[f"{layer}{within}{part}.weight"])
    elif part == "gate_proj":
        both = (weights[f"{layer}{within}{part}.weight"] for part in ("gate_proj", "up_proj"))
        yield f"{layer}.experts.gate_up_proj", np.concatenate(tuple(both), axis=1)


_JOINED = re.compile(r"(model\.layers\.\d+)(\.experts\.switch_glu\.|\.switch_mlp\.)(.+_proj)\.weight")


def _fused(weights: Mapping[str, Floats], path: str, part: str, end: str) -> Iterator[tuple[str, Floats]]:
    if part == "up_proj":
        return  # together with gate
    values, name = weights[f"{path}.{part}.{end}"], part
    if part == "gate_proj":
        both = np.stack((values, weights[f"{path}.up_proj.{end}"]), axis=2)  # they take turns
        values, name = both.reshape(len(values), -1, *values.shape[2:]), "gate_up_proj"
    turned = values.swapaxes(1, 2) if end == "weight" else values
    yield f"{path}.{name}{'' if end == 'weight' else '_bias'}", np.ascontiguousarray(turned)


def _joined_turned(weights: Mapping[str, Floats], path: str, part: str) -> Iterator[tuple[str, Floats]]:
    """Inputs before outputs, each expert's gate before its up."""
    if part == "down_proj":
        yield f"{path}.{part}", np.ascontiguousarray(weights[f"{path}.{part}.weight"].swapaxes(1, 2))
    elif part == "gate_proj":
        both = (weights[f"{path}.{part}.weight"].swapaxes(1, 2) for part in ("gate_proj", "up_proj"))
        yield f"{path}.gate_up_proj", np.ascontiguousarray(np.concatenate(tuple(both), axis=2))


_TURNED = re.compile(r"(.+\.feed_forward\.experts)\.((?:gate|up|down)_proj)\.weight")
_UNFUSED = re.compile(r"(.+\.mlp\.experts)\.((?:gate|up|down)_proj)\.(weight|bias)")
