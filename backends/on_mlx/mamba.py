"""Layers with a recurrent state by Mamba-2's rule over packed rows; the rule is mlx-lm's own."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.nn.layers.activations import silu

from backends.on_mlx.states import KeptArrays, PackedStates

_LANES = 32  # numbers of `B` that mlx-lm's kernel for one token takes at once: of others it would leave some out


def is_mamba(module: Any) -> bool:
    return hasattr(module, "ssm_state_size")


def run_mamba(module: Any, inputs: mx.array, mask: None, cache: PackedStates) -> mx.array:
    """`[1, tokens, hidden]` to the same: projections of all rows at once, the rule row by row."""
    inner = module.intermediate_size
    gate, mixed, steps = mx.split(module.in_proj(inputs), [inner, inner + module.conv_dim], axis=-1)
    found = []
    for (start, stop), kept in zip(cache.bounds, cache.caches, strict=True):
        states, kept.written = _run(module, mixed[:, start:stop], steps[:, start:stop], kept.held)
        found.append(states)
    joined = found[0] if len(found) == 1 else mx.concatenate(found, axis=1)
    out: mx.array = module.out_proj(_normed(module, joined, gate))
    return out


def _run(module: Any, mixed: mx.array, steps: mx.array, kept: KeptArrays) -> tuple[mx.array, KeptArrays]:
    """One row: `[1, tokens, heads · head_dim]`, and what is kept after it."""
    tokens, inner, width = mixed.shape[1], module.intermediate_size, module.n_groups * module.ssm_state_size
    seen = mx.concatenate([kept.tail, mixed], axis=1)
    x, known, asked = mx.split(silu(module.conv1d(seen)), [inner, inner + width], axis=-1)
    by_group = [each.reshape(1, tokens, module.n_groups, -1) for each in (known, asked)]
    whole = module.ssm_state_size % _LANES == 0
    found, state = (module.rule.ssm_update if whole else module.rule.ssm_attn)(
        x.reshape(1, tokens, module.num_heads, -1),
        module.A_log,
        *by_group,
        module.D.astype(x.dtype),
        steps,
        module.dt_bias,
        kept.state,
        module.time_step_limit,
    )
    return found.reshape(1, tokens, inner), KeptArrays(mx.contiguous(seen[:, tokens:]), state)


def _normed(module: Any, states: mx.array, gate: mx.array) -> mx.array:
    """As transformers has it: the gate in fp32, and a norm of each group, where mlx-lm may have one of all."""
    gated = states.astype(mx.float32) * silu(gate.astype(mx.float32))
    grouped = mx.unflatten(gated, -1, (module.n_groups, -1))
    normed = mx.flatten(mx.fast.rms_norm(grouped, None, module.norm.eps), -2, -1)
    found: mx.array = module.norm.weight * normed.astype(states.dtype)
    return found
