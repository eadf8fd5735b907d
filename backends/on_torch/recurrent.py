"""Layers with a recurrent state over packed rows, by the gated delta rule; `mamba.py` has those by Mamba-2's.

The rule itself and what stands around it are transformers' own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from backends.ledger import starts
from backends.on_torch.mamba import is_mamba, run_mamba
from backends.on_torch.recurrent_loop import TokenNumbers, mix_channels, step_state, takes
from backends.on_torch.states import KeptTensors, StepRows, convolved


class Inputs(NamedTuple):
    """What a layer's projections give for `[tokens]`."""

    mixed: Tensor  # `[tokens, channels]`: queries, keys and values, before the convolution
    gate: Tensor  # `[tokens, heads, value_dim]`
    beta: Tensor  # `[tokens, heads]`
    decay: Tensor  # the same, a logarithm


def pack_recurrent(model: nn.Module, part: str) -> None:
    """Let the recurrent layers of a transformers model run packed rows; `part` is what has their states."""
    for path, module in list(model.named_modules()):
        if path.rpartition(".")[2] == part and hasattr(module, "A_log"):  # others attend, or are an MLP
            module.__class__ = _packed_class(type(module), run_mamba if is_mamba(module) else run_packed)


def with_parts(kind: Any, stored: Iterable[str]) -> Any:
    """The model's class with two matrices for the inputs of layers where a file has them so; `stored` are its names.

    Qwen3-Next's files in the format GGUF have them, and may pack each in another way.
    """
    if not any(name.endswith(_PARTED) for name in stored):
        return kind

    def make(model: Any, *given: Any, **more: Any) -> None:
        kind.__init__(model, *given, **more)
        for module in model.modules():
            if hasattr(module, _WHOLE):
                delattr(module, _WHOLE)
                module.in_proj_qkv = nn.Linear(module.hidden_size, module.conv_dim, bias=False)
                module.in_proj_z = nn.Linear(module.hidden_size, module.value_dim, bias=False)

    return type(kind.__name__, (kind,), {"__init__": make, "__module__": kind.__module__})


_WHOLE, _PARTED = "in_proj_qkvz", ".in_proj_z.weight"


def _packed_class(kind: Any, forward: Any) -> Any:
    """The class with our `forward`, and all else as before."""
    return type(kind.__name__, (kind,), {"forward": forward, "library": sys.modules[kind.__module__]})


def run_packed(module: Any, hidden_states: Tensor, *, packed: StepRows, **_: object) -> Tensor:
    """`[1, tokens, hidden]` to the same: projections of all rows at once, the rule row by row."""
    given = _inputs(module, hidden_states)
    layer, found = module.layer_idx, []
    for row, at in starts(packed.rows):
        span = slice(at, at + len(row.token_ids))
        kept = packed.recurrent.read(row.sequence, layer)
        states, after = _run(module, Inputs(*(part[span] for part in given)), kept)
        packed.recurrent.write(row.sequence, layer, after)
        found.append(states)
    joined = found[0] if len(found) == 1 else torch.cat(found)
    width = module.head_v_dim
    normed = module.norm(joined.reshape(-1, width), given.gate.reshape(-1, width))
    out: Tensor = module.out_proj(normed.reshape(1, len(joined), -1))
    return out


def _inputs(module: Any, hidden: Tensor) -> Inputs:
    if hasattr(module, _WHOLE):  # Qwen3-Next: all of a key head side by side
        parts = module.in_proj_qkvz(hidden), module.in_proj_ba(hidden)
        query, key, value, gate, b, a = module.fix_query_key_value_ordering(*parts)
        mixed = torch.cat([part.reshape(*part.shape[:2], -1) for part in (query, key, value)], dim=-1)
    else:
        mixed, gate = module.in_proj_qkv(hidden), module.in_proj_z(hidden)
        b, a = _steps(module, hidden)
    decay = -module.A_log.float().exp() * softplus(a.float() + module.dt_bias)
    gate = gate.reshape(-1, module.num_v_heads, module.head_v_dim)
    return Inputs(mixed[0], gate, b[0].sigmoid(), decay[0])


def _steps(module: Any, hidden: Tensor) -> Sequence[Tensor]:
    """What makes beta and the decay, `[…, heads]` each."""
    if hasattr(module, "in_proj_b"):
        return module.in_proj_b(hidden), module.in_proj_a(hidden)
    by_head = module.in_proj_ba(hidden).unflatten(-1, (module.num_k_heads, -1))
    return [part.flatten(-2) for part in by_head.chunk(2, dim=-1)]


def _run(module: Any, given: Inputs, kept: KeptTensors) -> tuple[Tensor, KeptTensors]:
    """One row: `[tokens, heads, value_dim]`, and what is kept after it."""
    tokens = len(given.mixed)
    if tokens == 1 and takes(kept, module.conv1d):
        return _next(module, given, kept)
    seen = torch.cat((kept.tail, given.mixed.T), dim=1)
    turned = silu(convolved(seen, module.conv1d.weight)).T
    tail = seen[:, seen.shape[1] - kept.tail.shape[1] :].clone()  # a view would keep all of the row
    sizes = module.key_dim, module.key_dim, module.value_dim
    widths = module.head_k_dim, module.head_k_dim, module.head_v_dim
    parts = [
        part.reshape(1, tokens, -1, width) for part, width in zip(turned.split(sizes, dim=-1), widths, strict=True)
    ]
    if tokens == 1:
        query, key, value = (part[0, 0] for part in parts)
        found, state = next_state(query, key, value, given.decay[0], given.beta[0], kept.state)
        return found[None], KeptTensors(tail, state)
    found, state = module.library.torch_chunk_gated_delta_rule(
        *parts,
        g=given.decay[None],
        beta=given.beta[None],
        initial_state=kept.state[None],
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    return found[0], KeptTensors(tail, state[0])


def _next(module: Any, given: Inputs, kept: KeptTensors) -> tuple[Tensor, KeptTensors]:
    """The same of one token, by loops."""
    mixed, tail = mix_channels(kept.tail, given.mixed[0], module.conv1d)
    query, key, value = mixed.split((module.key_dim, module.key_dim, module.value_dim))
    asked = TokenNumbers(
        query.view(-1, module.head_k_dim),
        key.view(-1, module.head_k_dim),
        value.view(-1, module.head_v_dim),
        given.decay[0].float().exp(),
        given.beta[0].float(),
    )
    found, state = step_state(asked, kept.state)
    return found[None].to(given.mixed.dtype), KeptTensors(tail, state)


def next_state(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The gated delta rule for one token: what it reads `[heads, value_dim]`, and the state after it.

    `query` and `key` are `[key heads, key_dim]`, `value` is `[heads, value_dim]`, `decay` (a logarithm) and `beta` are
    `[heads]`. The same as transformers' recurrent rule, in products instead of sums over copies of the state.
    """
    group, width = len(value) // len(key), key.shape[1]
    asked, known = (_unit(each.float()).repeat_interleave(group, dim=0)[:, None] for each in (query, key))
    after = state * decay.exp()[:, None, None]
    delta = (value.float()[:, None] - torch.bmm(known, after)) * beta.float()[:, None, None]
    after.baddbmm_(known.transpose(1, 2), delta)
    return torch.bmm(asked * width**-0.5, after)[:, 0].to(value.dtype), after


def _unit(rows: Tensor) -> Tensor:
    return rows * torch.rsqrt((rows * rows).sum(dim=-1, keepdim=True) + _EPSILON)


_EPSILON = 1e-6  # of the length of queries and keys, as transformers has it
