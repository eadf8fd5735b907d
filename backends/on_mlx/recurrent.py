"""Layers with a recurrent state over packed rows, by the gated delta rule; `mamba.py` has those by Mamba-2's.

The rule and what stands around it are mlx-lm's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from types import ModuleType
from typing import Any

import mlx.core as mx
from mlx.nn.layers.activations import silu
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Linear

from backends.on_mlx.mamba import is_mamba, run_mamba
from backends.on_mlx.states import KeptArrays, PackedStates
from together.models.family import Family
from together.models.stored import CONVOLUTION

_EXPERT = re.compile(r"(.+)\.experts\.(\d+)\.(.+)")


def prepared(weights: dict[str, mx.array], family: Family) -> dict[str, mx.array]:
    """Weights as published, by mlx-lm's names, as its classes take them where layers are recurrent.

    mlx-lm does the same only where it sees a convolution, and a range of layers may have none.
    """
    found, experts = {}, dict[str, dict[int, mx.array]]()
    for name, array in weights.items():
        match = _EXPERT.fullmatch(name)
        if match is not None:
            experts.setdefault(f"{match[1]}.switch_mlp.{match[3]}", {})[int(match[2])] = array
        elif name.endswith(CONVOLUTION):
            found[name] = array.moveaxis(2, 1)
        else:
            found[name] = array + 1.0 if name.endswith(family.larger_on_mlx) else array
    stacked = {name: mx.stack([arrays[i] for i in range(len(arrays))]) for name, arrays in experts.items()}
    return found | {own_name(name, family): array for name, array in stacked.items()}


def own_name(name: str, family: Family) -> str:
    """mlx-lm's name of a tensor, whose parts it may call otherwise."""
    for usual, own in family.mlx_parts.items():
        name = name.replace(usual, own)
    return name


def pack_recurrent(part: Any, library: Callable[[str], ModuleType]) -> None:
    """Let a layer's recurrent part run packed rows; `library` gives mlx-lm's files."""
    kind, mamba = type(part), is_mamba(part)
    changes = {"__call__": run_mamba if mamba else _run_packed, "rule": library("ssm" if mamba else "gated_delta")}
    part.__class__ = type(kind.__name__, (kind,), changes)


def take_apart(model: Module, weights: Container[str]) -> None:
    """Give layers two matrices for their inputs where a file has them so, as Qwen3-Next's in the format GGUF."""
    for path, module in model.named_modules():
        if "in_proj_qkvz" not in module or f"{path}.in_proj_z.weight" not in weights:
            continue
        del module["in_proj_qkvz"]
        module.in_proj_qkv = Linear(module.hidden_size, module.conv_dim, bias=False)
        module.in_proj_z = Linear(module.hidden_size, module.value_dim, bias=False)


def _run_packed(module: Any, inputs: mx.array, mask: None, cache: PackedStates) -> mx.array:
    """`[1, tokens, hidden]` to the same: projections of all rows at once, the rule row by row."""
    mixed, gate, b, a = _inputs(module, inputs)
    found = []
    for (start, stop), kept in zip(cache.bounds, cache.caches, strict=True):
        states, kept.written = _run(module, mixed[:, start:stop], b[:, start:stop], a[:, start:stop], kept.held)
        found.append(states)
    joined = found[0] if len(found) == 1 else mx.concatenate(found, axis=1)
    normed = module.norm(joined, gate)
    out: mx.array = module.out_proj(normed.reshape(*inputs.shape[:2], -1))
    return out


def _inputs(module: Any, inputs: mx.array) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """Queries, keys and values before the convolution, the gate, and what makes beta and the decay."""
    if "in_proj_qkvz" in module:  # Qwen3-Next: all of a key head side by side
        parts = module.in_proj_qkvz(inputs), module.in_proj_ba(inputs)
        query, key, value, gate, b, a = module.fix_query_key_value_ordering(*parts)
        flat = [part.reshape(*part.shape[:2], -1) for part in (query, key, value)]
        return mx.concatenate(flat, axis=-1), gate, b, a
    gate = module.in_proj_z(inputs).reshape(*inputs.shape[:2], module.num_v_heads, module.head_v_dim)
    if "in_proj_ba" not in module:
        return module.in_proj_qkv(inputs), gate, module.in_proj_b(inputs), module.in_proj_a(inputs)
    by_head = mx.unflatten(module.in_proj_ba(inputs), -1, (module.num_k_heads, -1))
    b, a = (mx.flatten(part, -2) for part in mx.split(by_head, 2, axis=-1))
    return module.in_proj_qkv(inputs), gate, b, a


def _run(module: Any, mixed: mx.array, b: mx.array, a: mx.array, kept: KeptArrays) -> tuple[mx.array, KeptArrays]:
    """One row: `[1, tokens, heads, value_dim]`, and what is kept after it."""
    tokens, ends = mixed.shape[1], [module.key_dim, 2 * module.key_dim]
    seen = mx.concatenate([kept.tail, mixed], axis=1)
    parts = mx.split(silu(module.conv1d(seen)), ends, axis=-1)
    widths = module.head_k_dim, module.head_k_dim, module.head_v_dim
    query, key, value = (part.reshape(1, tokens, -1, width) for part, width in zip(parts, widths, strict=True))
    query, key = module.rule.normalize_qk(query, key, inv_scale=module.head_k_dim**-0.5, eps=1e-6)
    found, state = module.rule.gated_delta_update(query, key, value, a, b, module.A_log, module.dt_bias, kept.state)
    return found, KeptArrays(mx.contiguous(seen[:, tokens:]), state)
