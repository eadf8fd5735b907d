"""What is particular to quantized matrices on MLX: dtypes, widths, and what stays in memory."""

# ruff: noqa: E402  (the backend can be imported only where MLX exists)

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")

from mlx.nn.layers.linear import Linear
from mlx.utils import tree_flatten

from backends.base import LoadRequest
from backends.on_mlx.backend import use_device
from backends.on_mlx.config import GROUPS
from backends.on_mlx.model import read_slice
from backends.on_mlx.packed import MlxPackedEmbedding, MlxPackedLinear
from tests.support.mlx_folders import FORMS, make_plain, write_mlx
from tests.support.widen import dequantize
from together.models.codes import Floats
from together.models.packing import AFFINE_BITS, FP_PACKINGS
from together.models.spec import read_runnable
from together.types import Dtype, LayerRange, Packing

PACKINGS = (*(Packing("affine", bits, group) for bits in AFFINE_BITS for group in GROUPS), *FP_PACKINGS.values())
ROWS, OUTPUTS, INPUTS = 5, 96, 384
DTYPES = {"fp32": mx.float32, "bf16": mx.bfloat16, "fp16": mx.float16}
ROUNDED = {"fp32": 1e-6, "bf16": 2**-8, "fp16": 2**-11}  # half a unit in the last place, of the largest result


@pytest.fixture(autouse=True)
def _cpu() -> None:
    use_device("cpu", 0)


def packed(kind: type, packing: Packing, dtype: Dtype, stored: Dtype = "fp32") -> tuple[Any, Floats]:
    """A module with random weights, and those as numpy has them."""
    weights = mx.random.normal((OUTPUTS, INPUTS), key=mx.random.key(1)).astype(DTYPES[stored])
    words, *factors = mx.quantize(weights, packing.group, packing.bits, packing.mode)
    module = kind(Linear(INPUTS, OUTPUTS, bias=False), packing, DTYPES[dtype])
    module.load_weights(list(zip(("weight", "scales", "biases"), (words, *factors), strict=False)))
    scales, *biases = (np.array(part if part.dtype == mx.uint8 else part.astype(mx.float32)) for part in factors)
    return module, dequantize(np.array(words), scales, biases[0] if biases else None, packing)


def off(found: Any, wanted: Floats) -> float:
    return float(np.abs(np.array(found.astype(mx.float32)) - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_products_and_rows_of_every_packing(packing: Packing, dtype: Dtype) -> None:
    layer, weights = packed(MlxPackedLinear, packing, dtype)
    given = mx.random.normal((1, ROWS, INPUTS), key=mx.random.key(2)).astype(DTYPES[dtype])
    found = layer(given)
    assert found.dtype == DTYPES[dtype]
    assert off(found, np.array(given.astype(mx.float32)) @ weights.T) <= ROUNDED[dtype]
    embedding, weights = packed(MlxPackedEmbedding, packing, dtype)
    rows, wanted = embedding(mx.array([[3, 95, 3]])), mx.array(weights[[3, 95, 3]][None]).astype(DTYPES[dtype])
    assert (rows.dtype, rows.shape) == (wanted.dtype, wanted.shape)
    assert mx.array_equal(rows, wanted), "computed in fp32 and rounded once"


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scales_of_another_dtype_lose_nothing(stored: Dtype, dtype: Dtype) -> None:
    """Neither their own bits, nor the dtype of the states."""
    layer, weights = packed(MlxPackedLinear, Packing("affine", 4, 64), dtype, stored)
    given = mx.random.normal((1, ROWS, INPUTS), key=mx.random.key(2)).astype(DTYPES[dtype])
    found = layer(given)
    assert found.dtype == DTYPES[dtype]
    assert off(found, np.array(given.astype(mx.float32)) @ weights.T) <= ROUNDED[dtype]
    assert layer.scales.dtype == DTYPES[stored]


@pytest.mark.parametrize("name", ["gemma3_text", "qwen3_moe"])
@pytest.mark.parametrize("form", ["affine-4", "nvfp4"])
def test_a_stage_holds_what_the_plan_counts(tmp_path: Path, name: str, form: str) -> None:
    """Words, scales and biases as they are stored, plain weights in the dtype that is computed in."""
    folder = write_mlx(make_plain(tmp_path / "plain", name, "fp16"), tmp_path / "mlx", FORMS[form], files=2)
    spec = read_runnable(folder)
    for layers in (LayerRange(0, 1), LayerRange(1, 4)):
        request = LoadRequest(folder, layers, "cpu", "fp32", 2**27, tmp_path)
        held = read_slice(request, spec)
        ends = [
            getattr(end, "__self__", end) for end in (held.embed, held.norm, held.head)
        ]  # of a tied one, its module
        modules: dict[int, Any] = {id(module): module for module in (*held.layers, *ends) if module is not None}
        arrays = [dict(tree_flatten(module.parameters())).values() for module in modules.values()]
        assert sum(array.nbytes for array in chain(*arrays)) == spec.stage_bytes(layers, "fp32")


def test_a_stage_says_what_multiplies(tmp_path: Path) -> None:
    """Attention's four matrices and the experts' three of each layer, the router, and the head; no embedding."""
    plain = make_plain(tmp_path / "plain", "qwen3_moe", "fp32")
    quantized = write_mlx(plain, tmp_path / "mlx", FORMS["affine-4"], files=1)

    def kernels(folder: Path) -> set[str]:
        layers = LayerRange(2, read_runnable(folder).layers)
        request = LoadRequest(folder, layers, "cpu", "fp32", 2**27, tmp_path)
        return set(read_slice(request, read_runnable(folder)).computing.kernels)

    assert kernels(plain) == {"matmul (11)", "gather_mm (6)"}
    packed_router = "quantized_matmul, 8 bit (2)"
    assert kernels(quantized) == {"quantized_matmul, 4 bit (9)", "gather_qmm, 4 bit (6)", packed_router}
