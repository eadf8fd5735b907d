"""Quantized checkpoints: what their tensors' shapes say is counted, read and checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.folders import CONFIG
from together.errors import BrokenModel, UnsupportedModel
from together.models.config import effective
from together.models.form import STACK
from together.models.layout import needs
from together.models.names import EMBED, NORM
from together.models.needed import needed_tensors
from together.models.packing import FP_PACKINGS, Packing
from together.models.spec import read_runnable, read_spec
from together.types import LayerRange

SIZES = {"hidden_size": 64, "intermediate_size": 128, "tie_word_embeddings": True}
CLAIM = {"quantization": {"group_size": 32, "bits": 2}}  # wrong, as many configurations are
FOUR = Packing("affine", 4, 64)
Q, UP = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"
Tensors = dict[str, np.ndarray[Any, Any]]


def plain() -> Tensors:
    shapes = needs(effective("m", CONFIG | SIZES), head=False)
    return {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}


def packed(tensors: Tensors, packing: Packing, *names: str) -> Tensors:
    """With these matrices packed; all of them where none is named."""
    found = dict(tensors)
    for name in names or [name for name, tensor in tensors.items() if tensor.ndim > 1]:
        outputs, inputs = tensors[name].shape
        start, groups = name.removesuffix("weight"), (outputs, packing.groups(inputs))
        found[name] = np.zeros((outputs, packing.words(inputs)), np.uint32)
        found[f"{start}scales"] = np.zeros(groups, np.float16 if packing.mode == "affine" else np.uint8)
        if packing.mode == "affine":
            found[f"{start}biases"] = np.zeros(groups, np.float16)
    return found


def write(folder: Path, tensors: Tensors, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | SIZES | CLAIM | config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises((UnsupportedModel, BrokenModel)) as caught:
        read_runnable(folder)
    return str(caught.value)


@pytest.mark.parametrize("packing", [FOUR, Packing("affine", 3, 32), *FP_PACKINGS.values()], ids=str)
def test_packed_matrices_are_counted_as_they_lie(tmp_path: Path, packing: Packing) -> None:
    whole, tensors = plain(), packed(plain(), packing)
    spec = read_runnable(write(tmp_path / "m", tensors))
    layer = spec.layer_weights[0]
    matrices = sum(tensor.size for name, tensor in whole.items() if ".layers.0." in name and tensor.ndim > 1)
    assert layer.packed == ((packing, matrices),)
    own = [tensor for name, tensor in tensors.items() if ".layers.0." in name]
    norms = sum(tensor.size for name, tensor in whole.items() if ".layers.0." in name and tensor.ndim == 1)
    assert layer.nbytes("fp16") == sum(tensor.nbytes for tensor in own)
    assert layer.nbytes("fp32") == layer.packed_bytes + 4 * norms
    assert spec.stage_bytes(LayerRange(0, 2), "fp16") == sum(tensor.nbytes for tensor in tensors.values())


def test_only_what_has_scales_is_packed(tmp_path: Path) -> None:
    tensors = packed(packed(plain(), FOUR, Q), FP_PACKINGS["mxfp4"], UP)
    folder = write(tmp_path / "m", tensors)
    found = needed_tensors(folder, LayerRange(0, 2), tmp_path)
    assert {name: matrix.packing for name, matrix in found.packed.items()} == {Q: FOUR, UP: FP_PACKINGS["mxfp4"]}
    assert found.packed[Q].shape == (64, 64)
    assert {tensor.name for tensor in found.tensors} == set(tensors)
    assert {tensor.name for tensor in found.plain} == {name for name, t in plain().items() if name not in (Q, UP)}
    assert read_spec(folder).dtype == "fp16"


def test_another_range_reads_none_of_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", packed(plain(), FOUR))
    found = needed_tensors(folder, LayerRange(1, 2), tmp_path)
    assert EMBED in found.packed  # tied: the last stage's head
    assert not any(".layers.0." in tensor.name for tensor in found.tensors)


def _without(name: str) -> Tensors:
    tensors = packed(plain(), FOUR)
    del tensors[name]
    return tensors


def _with(name: str, tensor: np.ndarray[Any, Any]) -> Tensors:
    return packed(plain(), FOUR) | {name: tensor}


FAULTS: dict[str, Tensors] = {
    "a width that is not the model's": _with(Q, np.zeros((64, 14), np.uint32)),
    "another height": _with(Q, np.zeros((32, 8), np.uint32)),
    "words of another type": _with(Q, np.zeros((64, 8), np.int32)),
    "scales of another type": _with(Q.replace("weight", "scales"), np.zeros((64, 1), np.uint8)),
    "scales of another height": _with(Q.replace("weight", "scales"), np.zeros((32, 1), np.float16)),
    "other biases than scales": _with(Q.replace("weight", "biases"), np.zeros((64, 2), np.float16)),
    "biases that are not there": _without(Q.replace("weight", "biases")),
    "a plain matrix with scales": _with(Q, np.zeros((64, 64), np.float16)),
    "a bare number": _with(Q.replace("weight", "scales"), np.zeros((), np.float16)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fits_no_packing_is_refused_by_name(tmp_path: Path, fault: str) -> None:
    said = refusal(write(tmp_path / "m", FAULTS[fault]))
    assert Q in said
    assert "64×64" in said


def test_a_part_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    """As mlx-lm's second scale of nvfp4: without it every weight would be another one."""
    scale = Q.replace("weight", "global_scale")
    assert scale in refusal(write(tmp_path / "m", _with(scale, np.ones((), np.float32))))


def test_biases_beside_plain_weights_are_refused(tmp_path: Path) -> None:
    """Somebody made the matrix plain, or lost its scales."""
    biases = Q.replace("weight", "biases")
    assert biases in refusal(write(tmp_path / "m", plain() | {biases: np.zeros((64, 1), np.float16)}))


@pytest.mark.parametrize(
    ("matrix", "outputs"),
    [("self_attn.o_proj", (64,)), ("mlp.gate", (2,)), ("mlp.switch_mlp.up_proj", (2, 64))],
)
def test_a_bias_that_nobody_adds_is_refused_in_any_layer(tmp_path: Path, matrix: str, outputs: tuple[int, ...]) -> None:
    config: dict[str, Any] = {"model_type": "qwen3_moe", "num_experts": 2, "num_experts_per_tok": 1,
                              "moe_intermediate_size": 64}  # fmt: skip
    shapes = needs(effective("m", CONFIG | SIZES | config), head=False, stored=(STACK,))
    tensors: Tensors = {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
    read_runnable(write(tmp_path / "m", tensors, **config))
    bias = f"model.layers.1.{matrix}.bias"
    assert bias in refusal(write(tmp_path / "biased", tensors | {bias: np.ones(outputs, np.float16)}, **config))


def test_a_packed_norm_is_refused(tmp_path: Path) -> None:
    tensors = _with(NORM.replace("weight", "scales"), np.zeros((1,), np.float16))
    assert NORM in refusal(write(tmp_path / "m", tensors))


def test_scales_without_words_are_no_whole_file(tmp_path: Path) -> None:
    said = refusal(write(tmp_path / "m", _without(Q)))
    assert f"no tensor {Q}" in said


def test_a_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", packed(plain(), FOUR))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "model.safetensors" in refusal(folder)


def test_words_without_scales_are_refused(tmp_path: Path) -> None:
    tensors = _without(Q.replace("weight", "scales"))
    assert "quantized" in refusal(write(tmp_path / "m", tensors))


@pytest.mark.parametrize(
    ("config", "word"),
    [({"quantization_config": {"quant_method": "hqq", "bits": 4, "group_size": 128}}, "hqq"),
     ({"quantization_config": {"format": "unheard of"}}, "quantization_config"), ({"quantization": "odd"}, "quant")],
)  # fmt: skip
def test_a_quantization_of_others_is_refused(tmp_path: Path, config: dict[str, Any], word: str) -> None:
    assert word in refusal(write(tmp_path / "m", plain(), **config))


def test_a_declared_quantization_of_plain_tensors_is_none(tmp_path: Path) -> None:
    assert read_runnable(write(tmp_path / "m", plain())).quantization is None
