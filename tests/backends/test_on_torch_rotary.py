"""Queries and keys turned in one call: in every bit as each family's own function, which nobody else loses."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from backends.on_torch.rotary import Rotation, rotation_for
from backends.on_torch.shard import TorchShard
from tests.support.chain import Chain, assert_close, load_shard, new_sequence, row
from tests.support.families import CASES, LAYERS, make_checkpoint, model_class, prompt_ids, reference_logits
from together.types import LayerRange

FAMILIES = sorted({case.family for case in CASES})
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
HEADS, KV_HEADS = 4, 2
Given = tuple[Tensor, Tensor, Tensor, Tensor]

pytestmark = pytest.mark.usefixtures("vectors")


def family_function(family: str) -> Any:
    return import_module(model_class(family).__module__).apply_rotary_pos_emb


PLAIN = family_function("llama")


def made(width: int, dtype: torch.dtype) -> Rotation:
    return cast(Rotation, rotation_for(PLAIN, HEADS, KV_HEADS, width, dtype))


def given(tokens: int, width: int, dtype: torch.dtype) -> Given:
    """As they lie in a model: heads side by side, keys behind queries of the same token, values behind both."""
    generator = torch.Generator().manual_seed(tokens * width)
    heads = torch.randn(1, tokens, HEADS + 2 * KV_HEADS, width, generator=generator).to(dtype)
    q, k, _ = heads.split([HEADS, KV_HEADS, KV_HEADS], dim=2)
    angles = torch.randn(1, tokens, width, generator=generator)
    return q.transpose(1, 2), k.transpose(1, 2), angles.cos().to(dtype), angles.sin().to(dtype)


def assert_same(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@DTYPES
@pytest.mark.parametrize("width", [32, 64, 80, 128, 256])
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_states_are_the_same_in_every_bit(dtype: torch.dtype, width: int, tokens: int) -> None:
    states = given(tokens, width, dtype)
    assert_same(made(width, dtype)(*states), PLAIN(*states))


@DTYPES
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 6e4, 1e-7])
def test_hostile_states_are_as_in_torch(dtype: torch.dtype, value: float) -> None:
    states = given(3, 64, dtype)
    for place, part in enumerate(states):
        part[..., 1, 5 + 13 * place] = value
    assert_same(made(64, dtype)(*states), PLAIN(*states))


def _batch(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Given:
    return torch.cat((q, q)), torch.cat((k, k)), cos, sin


def _side_by_side(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Given:
    return q.contiguous(), k.contiguous(), cos, sin


def _shared(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Given:
    return q, k, cos[:, :1], sin[:, :1]


def _fewer(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Given:
    return q[:, 1:], k[:, :1], cos, sin


def _wider(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Given:
    return q, k, cos.float(), sin.float()


def _apart(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Given:
    return q, k, cos.transpose(1, 2).contiguous().transpose(1, 2), sin


@pytest.mark.parametrize("change", [_batch, _side_by_side, _shared, _fewer, _wider, _apart])
def test_other_shapes_are_left_to_the_family(change: Any) -> None:
    states = change(*given(3, 64, torch.bfloat16))
    assert_same(made(64, torch.bfloat16)(*states), PLAIN(*states))


def test_another_order_of_axes_is_left_to_the_family() -> None:
    q, k, cos, sin = given(3, 64, torch.float32)
    states = q.transpose(1, 2), k.transpose(1, 2), cos, sin, 2
    assert_same(made(64, torch.float32)(*states), PLAIN(*states))


def _in_pairs(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours are turned, not halves."""

    def turned(states: Tensor) -> Tensor:
        across = torch.stack((-states[..., 1::2], states[..., ::2]), dim=-1).flatten(-2)
        return states * cos.unsqueeze(1) + across * sin.unsqueeze(1)

    return turned(q), turned(k)


def test_another_rotation_is_not_replaced() -> None:
    assert rotation_for(_in_pairs, HEADS, KV_HEADS, 64, torch.float32) is None


@pytest.mark.parametrize(("width", "dtype"), [(12, torch.float32), (65, torch.float32), (64, torch.float64)])
def test_what_no_loop_takes_is_not_replaced(width: int, dtype: torch.dtype) -> None:
    assert rotation_for(PLAIN, HEADS, KV_HEADS, width, dtype) is None


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_nothing_is_replaced() -> None:
    assert rotation_for(PLAIN, HEADS, KV_HEADS, 96, torch.float32) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_models_call_it_and_their_family_does_not(tmp_path: Path, family: str) -> None:
    folder, prompt = make_checkpoint(tmp_path, family, head_dim=64), prompt_ids(24)
    before, plain = model_class(family), family_function(family)
    shard = load_shard(folder, "torch", LayerRange(0, LAYERS))
    for layer in cast(TorchShard, shard)._model.model.layers:
        forward = type(layer.self_attn).forward
        assert isinstance(forward.__globals__["apply_rotary_pos_emb"], Rotation)
    assert (model_class(family), family_function(family)) == (before, plain)
    ring, sequence = Chain([shard]), new_sequence()
    found = [ring.logits(row(sequence, at, prompt[at : at + count])) for at, count in ((0, 20), (20, 1), (21, 3))]
    wanted = reference_logits(folder, prompt)
    for part, (at, count) in zip(found, ((0, 20), (20, 1), (21, 3)), strict=True):
        assert_close(part, wanted[at : at + count])
