"""What a shard says of how it computes: what a benchmark shows is what multiplies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from backends.base import Computing
from backends.on_torch.compiled import lanes
from backends.on_torch.computing import computing_of
from backends.on_torch.kernels import Precision, called, fastest_kernel, quantized_linears
from backends.on_torch.linear import Held, Packer, can_pack, speed_up
from backends.on_torch.packed import made_up
from backends.on_torch.stacked import Stacked
from tests.support.chain import load_shard
from tests.support.families import LAYERS, make_checkpoint
from together.types import LayerRange, Packing

CPU = torch.device("cpu")
FOUR = Packing("affine", 4, 64)


def test_a_shard_counts_its_matrices_and_threads(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "llama", "llama", "fp32")
    first = load_shard(folder, "torch", LayerRange(0, 1)).computing
    last = load_shard(folder, "torch", LayerRange(1, LAYERS)).computing
    assert first == Computing(torch.get_num_threads(), ("linear (7)",))
    assert last.kernels == (f"linear ({7 * (LAYERS - 1) + 1})",)  # the head, too


def test_a_gpu_has_no_threads_of_ours() -> None:
    assert computing_of(nn.Linear(2, 2), torch.device("cuda")) == Computing(0, ("linear (1)",))


@pytest.mark.skipif(not can_pack(), reason="this torch has no FBGEMM")
def test_packed_layers_say_so() -> None:
    weight = torch.randn(48, 512, dtype=torch.bfloat16)
    with Packer(torch.bfloat16) as packer:
        model = nn.Sequential(packer.layer(Held(weight), None), packer.layer(Held(weight), None), nn.Linear(4, 4))
    assert computing_of(model, CPU).kernels == ("packed in fp16 (2)", "linear (1)")


def test_layers_that_are_widened_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.on_torch.half.native", lambda dtype, device: False)
    monkeypatch.setattr("backends.on_torch.linear.packs", lambda dtype, device, home: False)
    model = speed_up(nn.Sequential(nn.Linear(4, 4, dtype=torch.bfloat16)))
    assert computing_of(model, CPU).kernels == ("widened to fp32 (1)",)


@pytest.mark.skipif(lanes() == 0, reason="llvmlite has no build for this system")
def test_layers_whose_few_rows_are_computed_by_a_loop_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.on_torch.half.native", lambda dtype, device: True)
    monkeypatch.setattr("backends.on_torch.linear.packs", lambda dtype, device, home: False)
    monkeypatch.setattr("backends.on_torch.linear.most_few", lambda dtype, home: 1)
    model = speed_up(nn.Sequential(*(nn.Linear(inputs, 32, dtype=torch.bfloat16) for inputs in (32, 33))))
    assert computing_of(model, CPU).kernels == ("linear, few rows by a loop (1)", "linear (1)")


def test_quantized_layers_name_their_kernel() -> None:
    precision = Precision(torch.float32, CPU, exact=False)
    matrices = [Stacked([made_up(FOUR, (outputs, 128), torch.float32, CPU)]) for outputs in (32, 16)]
    layers = quantized_linears(matrices, [None, None], precision)
    assert computing_of(nn.Sequential(*layers), CPU).kernels == (f"{called(fastest_kernel(FOUR, 128, precision))} (2)",)
