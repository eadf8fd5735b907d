"""Norms in one call: as transformers' own in every dtype, and taken for no module that computes something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from backends.on_torch import compiled, norms
from backends.on_torch.norms import RootNorm, fuse_norms, fused_norm
from backends.on_torch.shard import TorchShard
from tests.backends.conftest import Checkpoints
from tests.support.chain import load_shard
from tests.support.families import LAYERS
from together.types import LayerRange

Norm = Callable[..., nn.Module]
KINDS = pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm, Gemma3RMSNorm])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
WIDTHS = 16, 48, 128, 2048
FEW = 0.01  # of all numbers: those that another order of a sum rounds elsewhere

pytestmark = pytest.mark.usefixtures("vectors")


def seeded(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def made(kind: Norm, width: int, dtype: torch.dtype, epsilon: float = 1e-6) -> nn.Module:
    module = kind(width, eps=epsilon).requires_grad_(False)
    module.get_parameter("weight").copy_(seeded(width))
    return module.to(dtype)


def fused(module: nn.Module) -> RootNorm:
    return cast(RootNorm, fused_norm(module))


def assert_as(found: Tensor, wanted: Tensor) -> None:
    """In fp32 within 1e-6; in half precision the same numbers, but for a few that are next to them."""
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    if found.dtype == torch.float32:
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
        return
    torch.testing.assert_close(found, wanted, rtol=2 * torch.finfo(found.dtype).eps, atol=0)
    assert (found != wanted).float().mean() <= FEW


@KINDS
@DTYPES
@pytest.mark.parametrize("width", WIDTHS)
def test_rows_are_as_in_the_family(kind: Norm, dtype: torch.dtype, width: int) -> None:
    module = made(kind, width, dtype)
    for shape in ((1, 1, width), (3, width), (1, 7, 4, width), (2048 // width + 70, width)):
        for scale in (1.0, 1e-3, 50.0):
            given = seeded(*shape, scale=scale).to(dtype)
            assert_as(fused(module)(given), module(given))
    assert fused(module)(torch.empty(1, 0, width, dtype=dtype)).shape == (1, 0, width)


@KINDS
@pytest.mark.parametrize("epsilon", [1e-5, 1e-6, 0.1])
def test_epsilon_is_the_module_s_own(kind: Norm, epsilon: float) -> None:
    module, given = made(kind, 64, torch.float32, epsilon), seeded(5, 64, scale=1e-3)
    assert_as(fused(module)(given), module(given))


@KINDS
@DTYPES
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.0, 6e4, 1e-7])
def test_hostile_rows_are_as_in_torch(kind: Norm, dtype: torch.dtype, value: float) -> None:
    module = made(kind, 64, dtype)
    given = seeded(4, 64).to(dtype)
    given[1, 5], given[2] = value, value
    found, wanted = fused(module)(given), module(given)
    torch.testing.assert_close(found, wanted, rtol=2 * torch.finfo(dtype).eps, atol=0, equal_nan=True)


@DTYPES
def test_rows_that_lie_apart(dtype: torch.dtype) -> None:
    """As keys lie, which were multiplied together with others."""
    module, both = made(Qwen3RMSNorm, 32, dtype), seeded(1, 9, 256).to(dtype)
    given = both[..., 64:192].unflatten(-1, (4, 32))
    assert_as(fused(module)(given), module(given))


def test_another_dtype_is_left_to_the_module() -> None:
    module, given = made(LlamaRMSNorm, 64, torch.bfloat16), seeded(2, 64)
    assert torch.equal(fused(module)(given), module(given))


class _Doubled(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return 2 * super().forward(hidden_states)


class _Named(nn.Module):
    """None of a family's classes, with weights in another order of rounding."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, states: Tensor) -> Tensor:
        wide = states.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight.float()).to(
            states.dtype
        )


@DTYPES
def test_what_a_module_computes_counts_and_not_its_name(dtype: torch.dtype) -> None:
    other, given = made(_Named, 64, dtype), seeded(50, 64).to(dtype)
    assert_as(fused(other)(given), other(given))
    assert fused_norm(made(_Doubled, 64, dtype)) is None


@pytest.mark.parametrize(
    "module",
    [
        nn.LayerNorm(64, bias=False),
        nn.LayerNorm(64),
        nn.Linear(64, 64, bias=False),
        nn.Identity(),
        LlamaRMSNorm(20),
        LlamaRMSNorm(64).double(),
        LlamaRMSNorm(64).to("meta"),
    ],
    ids=["layer norm", "biases", "linear", "nothing", "odd width", "fp64", "no data"],
)
def test_others_stay(module: nn.Module) -> None:
    model = nn.Sequential(module)
    fuse_norms(model)
    assert model[0] is module


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_all_stay() -> None:
    assert fused_norm(LlamaRMSNorm(64)) is None


def test_more_threads_make_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    module, given = made(LlamaRMSNorm, 64, torch.bfloat16), seeded(1000, 64).to(torch.bfloat16)
    alone = fused(module)(given)
    monkeypatch.setattr(norms, "_TASK", 64 * 7)
    monkeypatch.setattr(
        compiled, "_parallel", lambda: lambda function, job, _: compiled._by_own_threads(function, job, 5)
    )
    torch.set_num_threads(2)
    try:
        assert torch.equal(fused(module)(given), alone)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(("name", "each"), [("llama", 2), ("qwen3", 4), ("gemma3_text", 4), ("qwen3_moe", 2)])
def test_models_have_them(checkpoint: Checkpoints, name: str, each: int) -> None:
    """All but those of heads that are no whole vectors wide."""
    shard = cast(TorchShard, load_shard(checkpoint(name), "torch", LayerRange(0, LAYERS)))
    found = Counter(type(module) for module in shard._model.modules())
    assert found[RootNorm] >= each * LAYERS + 1
