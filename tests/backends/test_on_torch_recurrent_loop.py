"""The rules of recurrent layers for one token in loops of our own, against the plain ones in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import silu

from backends.on_torch import mamba, recurrent
from backends.on_torch.compiled import lanes
from backends.on_torch.recurrent_loop import TokenNumbers, mix_channels, step_state, takes
from backends.on_torch.states import KeptTensors, convolved
from tests.support.chain import Chain, assert_close, load_shard, row
from tests.support.families import LAYERS, make_checkpoint, prompt_ids, reference_logits
from together.types import LayerRange

PROMPT = prompt_ids(24)
WIDTHS = ((2, 6, 16, 48), (1, 4, 32, 80), (3, 3, 64, 128))  # heads of keys, heads, widths of keys and of values
each_width = pytest.mark.parametrize("widths", WIDTHS, ids=str)


pytestmark = pytest.mark.usefixtures("vectors")


def _close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=2e-6, atol=2e-6 * float(wanted.abs().max()))


@each_width
def test_the_delta_rule(widths: tuple[int, int, int, int]) -> None:
    torch.manual_seed(0)
    keys, heads, width, values = widths
    query, key, value = torch.randn(keys, width), torch.randn(keys, width), torch.randn(heads, values)
    decay, beta, state = -torch.rand(heads), torch.rand(heads), torch.randn(heads, width, values)
    kept = state.clone()
    wanted = recurrent.next_state(query, key, value, decay, beta, state)
    found = step_state(TokenNumbers(query, key, value, decay.exp(), beta), state)
    _close(found[0], wanted[0])
    _close(found[1], wanted[1])
    assert torch.equal(state, kept), "a fork may hold it, too"


@each_width
def test_the_rule_of_mamba_2(widths: tuple[int, int, int, int]) -> None:
    torch.manual_seed(0)
    groups, heads, width, values = widths
    asked, known, x = torch.randn(groups, width), torch.randn(groups, width), torch.randn(heads, values)
    steps, past, state = torch.rand(heads), torch.randn(heads), torch.randn(heads, width, values)
    decay = -torch.rand(heads) * steps
    wanted, after = mamba.scanned((x * steps[:, None])[None], decay[None], known[None], asked[None], state)
    found = step_state(TokenNumbers(asked, known, x, decay.exp(), steps, past), state)
    _close(found[0], wanted[0] + x * past[:, None])
    _close(found[1], after)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_convolution(dtype: torch.dtype, biased: bool) -> None:
    torch.manual_seed(0)
    channels, before = 96, 3
    convolution = torch.nn.Conv1d(channels, channels, before + 1, groups=channels, bias=biased).to(dtype)
    convolution.requires_grad_(False)
    tail, new = torch.randn(channels, before).to(dtype), torch.randn(channels).to(dtype)
    seen = torch.cat((tail, new[:, None]), dim=1)
    wanted = convolved(seen.float(), convolution.weight.float())[:, 0]
    if convolution.bias is not None:
        wanted = wanted + convolution.bias.float()
    found, after = mix_channels(tail, new, convolution)
    _close(found, silu(wanted))
    assert torch.equal(after, seen[:, 1:])


def test_what_has_no_whole_vectors_stays_with_the_plain_rules() -> None:
    convolution, width = torch.nn.Conv1d(32, 32, 4, groups=32), lanes()
    kept = KeptTensors(torch.zeros(32, 3), torch.zeros(2, width, 2 * width))
    assert takes(kept, convolution)
    assert not takes(kept._replace(state=torch.zeros(2, width, width + 4)), convolution)
    assert not takes(kept._replace(state=torch.zeros(2, width + 4, width)), convolution)
    assert not takes(kept._replace(tail=torch.zeros(32, 3, dtype=torch.bfloat16)), convolution)


_DELTA = {"linear_key_head_dim": 32, "linear_value_head_dim": 16}
_MAMBA = {"mamba_d_head": 32, "mamba_n_heads": 4, "mamba_d_state": 32, "hidden_size": 64}
CASES: dict[str, dict[str, Any]] = {
    "qwen3_5": _DELTA,
    "qwen3_next": _DELTA,
    "granite4": _MAMBA,
    "nemotron_h": {"mamba_head_dim": 32, "ssm_state_size": 32},
}


@pytest.mark.parametrize("name", CASES)
def test_tokens_one_by_one_are_the_whole_prompt(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a second row beside, which begins."""
    folder = make_checkpoint(tmp_path / name, name, "fp32", **CASES[name])
    taken = []

    def step(asked: TokenNumbers, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        taken.append(len(state))
        return step_state(asked, state)

    for module in (mamba, recurrent):
        monkeypatch.setattr(module, "step_state", step)
    ring = Chain([load_shard(folder, "torch", LayerRange(0, LAYERS))])
    wanted = reference_logits(folder, PROMPT)
    ring.logits(row(1, 0, PROMPT[:8]))
    for at in range(8, 24):
        other = (row(2, at - 8, PROMPT[at - 8 : at - 7]),)
        found = ring.logits(row(1, at, PROMPT[at : at + 1]), *other)
        assert_close(found, wanted[[at, at - 8]])
    assert len(taken) >= 32, "the loops ran"
