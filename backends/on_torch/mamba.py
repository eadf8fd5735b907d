"""Layers with a recurrent state by Mamba-2's rule over packed rows.

What stands around the rule is transformers' own. The rule is ours: transformers' pads each row to whole chunks of 128
or 256 tokens, and has `B` and `C` once for each head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from backends.ledger import starts
from backends.on_torch.recurrent_loop import TokenNumbers, mix_channels, step_state, takes
from backends.on_torch.states import KeptTensors, StepRows, convolved

_SPAN = 64  # tokens whose weights for one another are there at a time


class MambaInputs(NamedTuple):
    """What a row's projections give."""

    mixed: Tensor  # `[tokens, channels]`: x, B and C, before the convolution
    steps: Tensor  # `[tokens, heads]` in fp32: how long each is


def is_mamba(module: Any) -> bool:
    return hasattr(module, "ssm_state_size")


def run_mamba(module: Any, hidden_states: Tensor, *, packed: StepRows, **_: object) -> Tensor:
    """`[1, tokens, hidden]` to the same: projections of all rows at once, the rule row by row."""
    widths = [module.intermediate_size, module.conv_dim, module.num_heads]
    gate, mixed, steps = module.in_proj(hidden_states)[0].split(widths, dim=-1)
    least, most = module.time_step_limit
    lengths = softplus(steps.float() + module.dt_bias.float()).clamp(least, most)
    layer, found = module.layer_idx, []
    for row, at in starts(packed.rows):
        span = slice(at, at + len(row.token_ids))
        kept = packed.recurrent.read(row.sequence, layer)
        states, after = _run(module, MambaInputs(mixed[span], lengths[span]), kept)
        packed.recurrent.write(row.sequence, layer, after)
        found.append(states)
    joined = found[0] if len(found) == 1 else torch.cat(found)
    normed = module.norm(joined.reshape(len(joined), -1), gate)
    out: Tensor = module.out_proj(normed.to(hidden_states.dtype)[None])
    return out


def _run(module: Any, given: MambaInputs, kept: KeptTensors) -> tuple[Tensor, KeptTensors]:
    """One row: `[tokens, heads, head_dim]` in fp32, and what is kept after it."""
    tokens, groups, width = len(given.mixed), module.n_groups, module.ssm_state_size
    if tokens == 1 and takes(kept, module.conv1d):
        return _step(module, given, kept)
    seen = torch.cat((kept.tail, given.mixed.T), dim=1)
    summed = convolved(seen, module.conv1d.weight)
    if module.conv1d.bias is not None:
        summed = summed + module.conv1d.bias[:, None]
    turned = silu(summed).T.float()
    tail = seen[:, seen.shape[1] - kept.tail.shape[1] :].clone()  # a view would keep all of the row
    x, keys, asked = turned.split([module.intermediate_size, groups * width, groups * width], dim=-1)
    x = x.reshape(tokens, module.num_heads, module.head_dim)
    decay = -module.A_log.float().exp() * given.steps
    keys, asked = keys.reshape(tokens, groups, width), asked.reshape(tokens, groups, width)
    found, state = scanned(x * given.steps[..., None], decay, keys, asked, kept.state)
    return found + x * module.D.float()[:, None], KeptTensors(tail, state)


def _step(module: Any, given: MambaInputs, kept: KeptTensors) -> tuple[Tensor, KeptTensors]:
    """The same of one token, by loops."""
    mixed, tail = mix_channels(kept.tail, given.mixed[0], module.conv1d)
    width = module.n_groups * module.ssm_state_size
    x, keys, asked = mixed.split((module.intermediate_size, width, width))
    steps = given.steps[0]
    numbers = TokenNumbers(
        asked.view(module.n_groups, -1),
        keys.view(module.n_groups, -1),
        x.view(module.num_heads, -1),
        (-module.A_log.float().exp() * steps).exp(),
        steps,
        module.D.float(),
    )
    found, state = step_state(numbers, kept.state)
    return found[None], KeptTensors(tail, state)


def scanned(values: Tensor, decay: Tensor, keys: Tensor, asked: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """What each token reads `[tokens, heads, head_dim]`, and the state `[heads, width, head_dim]` after all, in fp32.

    `values` `[tokens, heads, head_dim]` are x by their steps' lengths, `decay` `[tokens, heads]` are logarithms, `keys`
    and `asked` `[tokens, groups, width]` are B and C.
    """
    if len(values) == 1:
        return _next(values[0], decay[0], keys[0], asked[0], state)
    found = []
    for start in range(0, len(values), _SPAN):
        some = slice(start, start + _SPAN)
        read, state = _scan_part(values[some], decay[some], keys[some], asked[some], state)
        found.append(read)
    return found[0] if len(found) == 1 else torch.cat(found), state


def _next(values: Tensor, decay: Tensor, keys: Tensor, asked: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The same for one token, `[1, heads, head_dim]`."""
    group = len(values) // len(keys)
    known, queries = (each.repeat_interleave(group, dim=0) for each in (keys, asked))  # [heads, width]
    after = torch.baddbmm(state * decay.exp()[:, None, None], known[:, :, None], values[:, None])
    return torch.bmm(queries[:, None], after).transpose(0, 1), after


def _scan_part(values: Tensor, decay: Tensor, keys: Tensor, asked: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    tokens, groups, width = keys.shape
    heads, dim = values.shape[1:]
    grouped = groups, heads // groups
    between = _decays(decay.T)  # [heads, tokens, tokens]
    since = decay.cumsum(dim=0).T.exp()  # [heads, tokens]: of what was there before
    known, queries = keys.transpose(0, 1), asked.transpose(0, 1)  # [groups, tokens, width]
    new = values.transpose(0, 1)  # [heads, tokens, head_dim]
    weights = (queries @ known.transpose(1, 2))[:, None] * between.view(*grouped, tokens, tokens)
    read = weights.view(heads, tokens, tokens) @ new
    before = (queries[:, None] @ state.view(*grouped, width, dim)).view(heads, tokens, dim)
    read = read + before * since[..., None]
    left = (new * between[:, -1, :, None]).view(*grouped, tokens, dim)
    added = (known.transpose(1, 2)[:, None] @ left).view(heads, width, dim)
    return read.transpose(0, 1), state * since[:, -1, None, None] + added


def _decays(decay: Tensor) -> Tensor:
    """`[heads, tokens]` of logarithms to `[heads, tokens, tokens]`: what is left of a column's token at a row's.

    Sums of what lies between, as differences of sums from the beginning would lose digits.
    """
    tokens = decay.shape[1]
    later = torch.ones(tokens, tokens, dtype=torch.bool, device=decay.device).tril(-1)
    summed = decay[..., None].expand(-1, -1, tokens).masked_fill(~later, 0).cumsum(dim=1)
    return summed.exp().tril()
