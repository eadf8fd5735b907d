"""Attention with sinks and experts with a clamped gate, each against its definition."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from backends.on_torch.attention import Step, attend, mix_by_heads, mix_masked
from backends.on_torch.cache import BlockCaches
from backends.on_torch.compiled import lanes
from backends.on_torch.linear import run_experts
from together.models.state import KeysValues
from together.types import Row

CPU = torch.device("cpu")
HEADS, KV_HEADS, WIDTH, SCALING = 6, 2, 32, 0.3
SINKS = torch.tensor([-30.0, -1.0, 0.0, 1.5, 4.0, 120.0])  # the last one leaves nothing of any value


def wanted(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """`[tokens, heads, width]` of a whole sequence: the sink is a score more, without a value."""
    keys, values = (each.repeat_interleave(HEADS // KV_HEADS, 0) for each in (key, value))
    scores = query @ keys.transpose(1, 2) * SCALING
    tokens = torch.arange(query.shape[1])
    unseen = tokens[None] > tokens[:, None]
    if window is not None:
        unseen |= tokens[None] <= tokens[:, None] - window
    scores = scores.masked_fill(unseen, float("-inf"))
    all_ = torch.cat((scores, SINKS[:, None, None].expand(-1, query.shape[1], 1)), dim=-1)
    return (all_.softmax(-1)[..., :-1] @ values).transpose(0, 1)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("loop", [True, False])
def test_sinks_take_their_share(window: int | None, loop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of long rows, of one-token rows by the loop and by torch, and where two rows share what they see."""
    if loop and (lanes() == 0 or WIDTH % lanes()):
        pytest.skip("no loop for this system")
    if not loop:
        monkeypatch.setattr("backends.on_torch.attention.mixes", lambda pool: False)
    made = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(heads, 40, WIDTH, generator=made) for heads in (HEADS, KV_HEADS, KV_HEADS))
    caches = BlockCaches([KeysValues(KV_HEADS, WIDTH, WIDTH, window)], torch.float32, CPU, 256)
    for at, count in ((0, 33), (33, 4), (37, 1), (38, 1), (39, 1)):
        rows = [Row(1, at, tuple(range(count)))]
        if at == 38:
            caches.fork(1, 2, at)
        if at >= 38:
            rows.append(Row(2, at, (5,)))
        here = torch.arange(at, at + count).repeat(len(rows))
        asked, keys, values = (each[:, here][None] for each in (query, key, value))
        module, step = cast(nn.Module, SimpleNamespace(layer_idx=0)), Step.of(caches, rows, CPU)
        out, _ = attend(module, asked, keys, values, None, scaling=SCALING, packed=step, s_aux=SINKS)
        for part in out[0].split(count):
            torch.testing.assert_close(part, wanted(query, key, value, window)[at : at + count], rtol=1e-5, atol=1e-5)


def test_other_devices_find_the_same_sums() -> None:
    made = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(heads, 20, WIDTH, generator=made) for heads in (HEADS, KV_HEADS, KV_HEADS))
    mask = torch.full((20, 20), float("-inf")).triu_(1)
    given = query[:, 15:], key, value, mask[15:], SCALING
    for one, other in zip(mix_by_heads(*given), mix_masked(*given), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_experts_with_biases_and_a_clamped_gate(dtype: torch.dtype) -> None:
    """Values on both sides of the limit: transformers' own loop is the reference."""
    config = GptOssConfig(hidden_size=48, intermediate_size=40, num_local_experts=4, swiglu_alpha=1.1, swiglu_limit=0.5)
    config._experts_implementation = "eager"
    experts, made = GptOssExperts(config), torch.Generator().manual_seed(0)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=made)
    experts.to(dtype).requires_grad_(False)
    hidden = torch.randn(9, 48, generator=made).to(dtype)
    weights, chosen = torch.randn(9, 4, generator=made).softmax(-1).to(dtype).topk(2)
    inner = hidden @ experts.gate_up_proj[0]
    assert (inner > 0.5).any()
    assert (inner < -0.5).any()
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(
        run_experts(experts, hidden, chosen, weights), experts(hidden, chosen, weights), rtol=bound, atol=bound
    )
