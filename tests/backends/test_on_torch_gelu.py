"""GELU and its product in one call: as torch's, and taken for no module that computes something else."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers.models.gemma3.configuration_gemma3 import Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP

from backends.on_torch.gelu import GeluProjections, fuse_gelu, gates_by_gelu, gelu_times
from backends.on_torch.shard import TorchShard
from tests.backends.conftest import Checkpoints
from tests.support.chain import load_shard
from tests.support.families import LAYERS
from together.types import LayerRange

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
FEW = 0.15  # of all numbers: torch's own are off where 1 + tanh is small

pytestmark = pytest.mark.usefixtures("vectors")


def made(act: str = "gelu_pytorch_tanh", dtype: torch.dtype = torch.float32) -> Gemma3MLP:
    config = Gemma3TextConfig(hidden_size=32, intermediate_size=80, hidden_activation=act)
    return Gemma3MLP(config).requires_grad_(False).to(dtype)


def seeded(*shape: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def plain(gate: Tensor, up: Tensor) -> Tensor:
    return gelu(gate, approximate="tanh") * up


def assert_near(found: Tensor, wanted: Tensor) -> None:
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    rtol = max(1e-6, 2 * torch.finfo(found.dtype).eps)
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=1e-5, equal_nan=True)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 16), (1, 1, 17), (1, 3, 80), (2, 3, 37), (1, 300, 96)], ids=str)
def test_products_are_as_in_torch(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    gate, up = seeded(*shape).to(dtype), seeded(*shape, scale=1.0).to(dtype)
    assert_near(gelu_times(gate, up), plain(gate, up))
    if dtype != torch.float32:
        assert (gelu_times(gate, up) != plain(gate, up)).float().mean() < FEW


@DTYPES
def test_parts_of_one_product(dtype: torch.dtype) -> None:
    """As gate and up lie where they were multiplied together."""
    both = seeded(1, 9, 160).to(dtype)
    gate, up = both.split([80, 80], dim=-1)
    assert_near(gelu_times(gate, up), plain(gate, up))
    assert_near(gelu_times(both[..., ::2], up), plain(both[..., ::2], up))


@DTYPES
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, -100.0, 60.0, 1e-7, -6e4])
def test_hostile_numbers_are_as_in_torch(dtype: torch.dtype, value: float) -> None:
    gate, up = seeded(2, 48).to(dtype), torch.ones(2, 48, dtype=dtype)
    gate[0, 3] = gate[1, 47] = up[1, 8] = value
    assert_near(gelu_times(gate, up), plain(gate, up))


def test_it_is_as_near_to_the_truth_as_torch_is() -> None:
    gate, one = torch.linspace(-8, 8, 10_000)[None], torch.ones(1, 10_000)
    exact = plain(gate.double(), one.double())
    found, theirs = (float((each.double() - exact).abs().max()) for each in (gelu_times(gate, one), plain(gate, one)))
    assert found < 2 * theirs < 2e-6


@DTYPES
def test_modules_compute_the_same(dtype: torch.dtype) -> None:
    module, given = made(dtype=dtype), seeded(1, 5, 32).to(dtype)
    model = nn.Sequential(module)
    wanted = model(given)
    fuse_gelu(model, dtype)
    assert isinstance(model[0], GeluProjections)
    near = 1e-2 if dtype.itemsize == 2 else 1e-5
    torch.testing.assert_close(model(given), wanted, rtol=near, atol=near)


class _Twice(Gemma3MLP):
    def forward(self, x: Tensor) -> Any:
        return 2 * super().forward(x)


@pytest.mark.parametrize("act", ["silu", "gelu", "relu"])
def test_other_activations_stay(act: str) -> None:
    assert not gates_by_gelu(made(act), torch.float32)


def test_what_a_module_computes_counts_and_not_its_name() -> None:
    other = made()
    other.__class__ = _Twice
    assert not gates_by_gelu(other, torch.float32)
    assert not gates_by_gelu(nn.Linear(4, 4), torch.float32)
    assert gates_by_gelu(made(), torch.float32)
    assert not gates_by_gelu(made(), torch.float64)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_all_stay() -> None:
    assert not gates_by_gelu(made(), torch.float32)


@pytest.mark.parametrize(("name", "count"), [("gemma3_text", LAYERS), ("llama", 0), ("qwen3_moe", 0)])
def test_models_have_them(checkpoint: Checkpoints, name: str, count: int) -> None:
    shard = cast(TorchShard, load_shard(checkpoint(name), "torch", LayerRange(0, LAYERS)))
    assert sum(isinstance(module, GeluProjections) for module in shard._model.modules()) == count
