"""GPTQ whose inputs have an order of their own, and groups of another size than declared: refused beforehand."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlx.core")

from tests.models.test_foreign import COMPRESSED, UP, Q, Tensors, plain, refusal, replaced, write
from tests.support.foreign_folders import FORMATS, integers, stored_awq, stored_gptq
from tests.support.hub import HubServer
from together.errors import BrokenModel, UnsupportedModel
from together.head.plan import open_model
from together.models.spec import read_runnable
from together.settings import Settings
from together.weights.hub import describe_hub
from together.weights.store import Store


def disordered(path: str) -> Tensors:
    """A model in GPTQ of which one matrix has its inputs in an order of its own, which only its `g_idx` says."""
    tensors = plain()
    for each in (Q, "model.layers.0.mlp.up_proj", UP):
        parts = stored_gptq(*integers(tensors[f"{each}.weight"], 4, 64, symmetric=True), 4)
        tensors = replaced(tensors, each, **parts)
    tensors[f"{path}.g_idx"] = tensors[f"{path}.g_idx"].flip(0)
    return tensors


@pytest.mark.parametrize("path", [Q, UP])
def test_an_order_that_only_a_tensor_says_is_refused_beforehand(tmp_path: Path, path: str) -> None:
    """A head asks this before anything is unloaded."""
    folder = write(tmp_path / "m", disordered(path), quantization_config={"quant_method": "gptq"})
    assert re.search(rf"{path}\.g_idx .*desc_act.*AWQ", refusal(folder))


def test_of_a_hub_s_model_a_matrix_of_each_layer_is_looked_at(tmp_path: Path, hub: HubServer) -> None:
    """Some kilobytes, and nothing where no layer has such a tensor."""
    settings, orders = Settings(home=str(tmp_path / "home")), 2 * 256 * 4
    hub.add("lab/gptq", write(tmp_path / "gptq", disordered(UP), quantization_config={"quant_method": "gptq"}))
    hub.add("lab/plain", write(tmp_path / "plain", plain()))
    for name, more in (("lab/gptq", orders), ("lab/plain", 0)):
        describe_hub(name, Store(tmp_path / name))
        before = hub.weights_served()
        describe_hub(name, Store(tmp_path / "again" / name))
        described = hub.weights_served() - before
        with pytest.raises((UnsupportedModel, BrokenModel)) as refused:
            asyncio.run(open_model(name, settings))  # the other one has no words
        assert hub.weights_served() - before - 2 * described == more
        assert ("desc_act" in str(refused.value)) == (name == "lab/gptq")


GROUPS: dict[str, tuple[Callable[[int], dict[str, Any]], tuple[int, ...], tuple[int, ...]]] = {
    # What config.json says for a size, sizes that groups of 128 contradict, and those that they do not.
    "gptq": (lambda size: {"quant_method": "gptq", "group_size": size}, (32, 64, 256, -1), (128,)),
    "awq": (lambda size: {"quant_method": "awq", "q_group_size": size}, (32, 64, -1), (128,)),
    "int4": (
        lambda size: COMPRESSED | {"config_groups": {"a": {"weights": {"num_bits": 4, "group_size": size}}}},
        (32, 64, -1),
        (128,),
    ),
    "dynamic": (lambda size: {"quant_method": "gptq", "group_size": size, "dynamic": {"+:up": {}}}, (), (64, 128)),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_a_declared_group_size_that_tensors_contradict_is_refused(tmp_path: Path, kind: str) -> None:
    config, wrong, right = GROUPS[kind]
    numbers = integers(plain()[f"{UP}.weight"], 4, 128, symmetric=True)
    parts = {
        "gptq": lambda: stored_gptq(*numbers, 4),
        "dynamic": lambda: stored_gptq(*numbers, 4),
        "awq": lambda: stored_awq(*numbers),
        "int4": lambda: FORMATS["int4"].write(plain()[f"{UP}.weight"])[0],
    }[kind]()
    for size in wrong:
        folder = write(tmp_path / f"m{size}", replaced(plain(), UP, **parts), quantization_config=config(size))
        said = "whole rows" if size == -1 else str(size)
        assert re.search(rf"{UP}\..* has groups of 128 weights .* declares {said};", refusal(folder))
    for size in right:
        read_runnable(write(tmp_path / f"m{size}", replaced(plain(), UP, **parts), quantization_config=config(size)))


def test_one_group_for_a_row_is_any_size_that_is_no_smaller(tmp_path: Path) -> None:
    parts = stored_gptq(*integers(plain()[f"{UP}.weight"], 4, 256, symmetric=True), 4)
    for size in (-1, 256, 1024):
        said = {"quant_method": "gptq", "group_size": size}
        read_runnable(write(tmp_path / f"m{size}", replaced(plain(), UP, **parts), quantization_config=said))
