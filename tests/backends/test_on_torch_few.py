"""Products of few rows: right against fp64, read once, and chosen by times."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from backends.on_torch import compiled, few, half, token_trial
from backends.on_torch import linear as torch_linear
from backends.on_torch.few import MOST_ROWS, faster_to, few_rows, few_rows_of, takes
from backends.on_torch.half import HalfLinear, multiplied, use_loops
from backends.on_torch.linear import speed_up
from tests.support.chain import Chain, assert_close, load_shard, new_sequence, row
from tests.support.families import LAYERS, make_checkpoint, prompt_ids, reference_logits
from together.types import LayerRange

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
ROUND: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
SHAPES = [(8, 32), (13, 64), (301, 96), (37, 576), (1030, 2048)]  # of 1, 2 and 4 turns

pytestmark = pytest.mark.skipif(compiled.lanes() == 0, reason="llvmlite has no build for this system")


def seeded(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def steps_apart(found: Tensor, exact: Tensor) -> Tensor:
    """From the nearest number of the dtype, in units of its precision at the largest product."""
    return (found.double() - exact).abs() / exact.abs().max() / torch.finfo(found.dtype).eps


@pytest.fixture(params=["pairs", "no pairs"], autouse=True)
def pairs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With the processor's own products of bf16 numbers, and without."""
    wanted: bool = request.param == "pairs"
    if wanted and not compiled.has_bf16_products():
        pytest.skip("this processor has none")
    monkeypatch.setattr(few, "has_bf16_products", lambda: wanted)
    return wanted


@HALVES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", range(1, MOST_ROWS + 1))
def test_products_are_rounded_once(dtype: torch.dtype, shape: tuple[int, int], count: int) -> None:
    """Sums are fp32: what is left is half a step of the dtype, and a little."""
    weight, given = seeded(*shape, dtype=dtype), seeded(count, shape[1], dtype=dtype)
    assert takes(weight, count)
    found = few_rows(given, weight)
    assert (found.shape, found.dtype) == ((count, shape[0]), dtype)
    assert steps_apart(found, given.double() @ weight.double().T).max() < 0.51


@HALVES
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.0, 1e-39, 3e38])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_hostile_weights_and_rows_are_as_in_torch(dtype: torch.dtype, value: float, count: int) -> None:
    weight, given = seeded(40, 64, dtype=dtype), seeded(count, 64, dtype=dtype)
    weight[7, 5] = weight[39, 63] = given[count - 1, 33] = value
    wanted = (given.double() @ weight.double().T).float().to(dtype)
    torch.testing.assert_close(few_rows(given, weight), wanted, equal_nan=True)


@HALVES
def test_ties_are_rounded_to_even(dtype: torch.dtype) -> None:
    weight, given = torch.zeros(8, 32, dtype=dtype), torch.ones(1, 32, dtype=dtype)
    weight[:, 0] = torch.arange(1, 9)
    weight[:, 1] = torch.finfo(dtype).eps / 2 * torch.tensor([1, 2, 2, 4, 4, 4, 4, 8])
    wanted = (given.double() @ weight.double().T).to(dtype)
    torch.testing.assert_close(few_rows(given, weight), wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("weight", "rows"),
    [
        (seeded(8, 40), 1),
        (seeded(7, 64), 1),
        (seeded(16, 64).float(), 1),
        (seeded(16, 128)[:, :64], 1),
        (seeded(64, 16).T, 1),
        (seeded(16, 64), MOST_ROWS + 1),
    ],
    ids=["odd inputs", "few outputs", "fp32", "apart", "transposed", "many rows"],
)
def test_other_products_are_left_to_torch(weight: Tensor, rows: int) -> None:
    assert not takes(weight, rows)
    given = seeded(rows, weight.shape[1], dtype=weight.dtype)
    torch.testing.assert_close(multiplied(given, weight, MOST_ROWS), linear(given, weight), rtol=0.02, atol=0.1)


def test_rows_that_lie_apart_are_multiplied() -> None:
    weight, given = seeded(16, 64), seeded(3, 128)[:, ::2]
    torch.testing.assert_close(few_rows(given, weight), linear(given, weight), rtol=0.02, atol=0.1)


@HALVES
@pytest.mark.parametrize("count", [1, 4, MOST_ROWS])
def test_several_weights_are_multiplied_in_one_call(
    dtype: torch.dtype, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their heights; each output by one thread, also where there are more threads than tasks."""
    monkeypatch.setattr(few, "_TASK", 8 * 64)
    weights = [seeded(outputs, 64, dtype=dtype) for outputs in (8, 301, 1030)]
    given = seeded(count, 64, dtype=dtype)
    wanted = [few_rows(given, weight) for weight in weights]
    monkeypatch.setattr(
        compiled, "_parallel", lambda: lambda function, job, _: compiled._by_own_threads(function, job, 5)
    )
    for _ in range(10):
        for found, each in zip(few_rows_of(given, weights), wanted, strict=True):
            torch.testing.assert_close(found, each, rtol=0, atol=0)


def test_layers_with_the_same_input_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """With biases of their own; more rows than a loop takes are multiplied by each alone."""
    layers = {
        name: nn.Linear(64, outputs, dtype=torch.bfloat16) for name, outputs in (("gate_proj", 48), ("up_proj", 40))
    }
    mlp = nn.ModuleDict(layers).requires_grad_(False)
    calls: list[int] = []

    def counted(rows: Tensor, weights: list[Tensor]) -> list[Tensor]:
        calls.append(len(rows))
        return few_rows_of(rows, weights)

    monkeypatch.setattr(half, "few_rows_of", counted)
    many, two = seeded(MOST_ROWS + 1, 64), seeded(1, 2, 64)
    wanted = [[layer(given) for layer in layers.values()] for given in (two, many, two)]
    use_loops(mlp, MOST_ROWS)
    for given, products in zip((two, many, two.clone()), wanted, strict=True):
        for layer, each in zip(layers.values(), products, strict=True):
            assert isinstance(layer, HalfLinear)
            torch.testing.assert_close(layer(given), each, rtol=0.02, atol=0.02)
    assert calls == [2, 2]


def test_threads_of_our_own_make_the_same_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch's threads cannot be asked."""
    weight, given = seeded(4000, 512), seeded(2, 512)
    before = few_rows(given, weight)
    monkeypatch.setattr(compiled, "_parallel", lambda: compiled._by_own_threads)
    torch.testing.assert_close(few_rows(given, weight), before, rtol=0, atol=0)


def test_each_output_is_computed_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than there are tasks, all at once, on tasks of a few outputs."""
    monkeypatch.setattr(few, "_TASK", 8 * 64)
    monkeypatch.setattr(
        compiled, "_parallel", lambda: lambda function, job, _: compiled._by_own_threads(function, job, 7)
    )
    weight, given = seeded(4003, 64), seeded(1, 64)
    for _ in range(20):
        torch.testing.assert_close(few_rows(given, weight), linear(given, weight), rtol=0.02, atol=0.1)


@pytest.mark.parametrize(
    ("times", "others", "rows"),
    [
        ([1, 1, 1], [2, 2, 2], 3),
        ([1, 1, 3], [2, 2, 2], 2),
        ([1, 3, 1], [2, 2, 2], 1),
        ([2.1], [2], 1),
        ([2.3], [2], 0),
        ([], [], 0),
    ],
)
def test_it_is_taken_up_to_the_first_count_that_is_clearly_slower(
    times: list[float], others: list[float], rows: int
) -> None:
    assert faster_to(times, others) == rows


def test_a_machine_keeps_how_many_rows_are_few(tmp_path: Path) -> None:
    found = few.most_few(torch.bfloat16, tmp_path)
    (file,) = (tmp_path / "kernels").glob("*.json")
    other = (found + 1) % (MOST_ROWS + 1)
    was, now = (f'"few rows in torch.bfloat16": "{count}"' for count in (found, other))
    assert was in file.read_text()
    file.write_text(file.read_text().replace(was, now))
    few.most_few.cache_clear()
    assert few.most_few(torch.bfloat16, tmp_path) == other
    few.most_few.cache_clear()


def test_without_a_compiler_no_rows_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "llvm", None)
    compiled.lanes.cache_clear()
    try:
        assert not takes(seeded(8, 64), 1)
        assert few.most_few(torch.bfloat16, None) == 0
    finally:
        monkeypatch.undo()
        compiled.lanes.cache_clear()
        few.most_few.cache_clear()


def test_biases_are_added() -> None:
    layer = nn.Linear(64, 32, dtype=torch.bfloat16).requires_grad_(False)
    given = seeded(1, 1, 64)
    wanted = layer(given)
    fast = speed_up(nn.Sequential(layer))[0]
    fast.few = MOST_ROWS
    torch.testing.assert_close(fast(given), wanted, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3_moe"])
def test_models_are_right(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode of one row and of several, by teacher forcing; by the modules, not by a program of their loops."""
    monkeypatch.setattr(token_trial, "allow_token_steps", lambda *stage: None)
    monkeypatch.setattr(torch_linear, "_packing_pays", lambda dtype, home: False)
    monkeypatch.setattr(torch_linear, "most_few", lambda dtype, home: MOST_ROWS)
    seen: Counter[int] = Counter()
    monkeypatch.setattr(half, "few_rows", lambda rows, weight: (seen.update([len(rows)]), few_rows(rows, weight))[1])
    monkeypatch.setattr(
        half,
        "few_rows_of",
        lambda rows, weights: (seen.update([len(rows)] * len(weights)), few_rows_of(rows, weights))[1],
    )
    folder = make_checkpoint(tmp_path, family, "bf16", **ROUND)
    ring, prompt = Chain([load_shard(folder, "torch", LayerRange(0, LAYERS), "bf16")]), prompt_ids(24)
    wanted, (one, two) = reference_logits(folder, prompt), (new_sequence(), new_sequence())
    ring.logits(row(one, 0, prompt[:20]))
    ring.logits(row(two, 0, prompt[:10]))
    assert_close(ring.logits(row(one, 20, prompt[20:21])), wanted[20:21], 0.1)
    assert_close(ring.logits(row(one, 21, prompt[21:22]), row(two, 10, prompt[10:11])), wanted[[21, 10]], 0.1)
    assert seen[1] >= 4 * LAYERS
    assert seen[2] >= 4 * LAYERS
