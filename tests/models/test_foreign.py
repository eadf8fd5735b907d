"""GPTQ, AWQ, compressed-tensors and FP8: what is recognised, what its rows are, and what is refused by name."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mlx.core")

from safetensors.torch import save_file
from torch import Tensor

from tests.models.test_matrices import FOUR, SIZES, packed
from tests.support.folders import CONFIG
from tests.support.foreign_folders import FORMATS, integers, judged_by_mlx, stored_awq, stored_gptq
from together.errors import BrokenModel, UnsupportedModel
from together.models.config import effective
from together.models.layout import needs
from together.models.matrices import PackedMatrix, ScaledMatrix
from together.models.needed import needed_tensors
from together.models.quantization import foreign_quantization
from together.models.reading import read_published
from together.models.rows import read_groups, read_scaled
from together.models.spec import read_runnable, read_spec
from together.models.units import units_of
from together.types import LayerRange, Packing

Tensors = dict[str, Tensor]
COMPRESSED = {"quant_method": "compressed-tensors"}
Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
WIDE = {"hidden_size": 256, "intermediate_size": 400, "num_attention_heads": 4, "num_key_value_heads": 2,
        "tie_word_embeddings": True, "vocab_size": 64}  # fmt: skip
ROUNDED = {"nvfp4": 2.0**-22}  # of the largest weight: its scale is a quotient in fp32; all others are exact


def drawn(config: dict[str, Any]) -> Tensors:
    random = torch.Generator().manual_seed(0)
    shapes = needs(effective("m", CONFIG | config), head=False)
    return {name: (torch.randn(shape, generator=random) / 20).half() for name, shape in shapes.items()}


@cache
def plain() -> Tensors:
    """Of `WIDE`, drawn once: 36 lists of cases ask while tests are collected."""
    return drawn(WIDE)


def write(folder: Path, tensors: Tensors, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | WIDE | config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def replaced(tensors: Tensors, path: str, **parts: Tensor) -> Tensors:
    """With these tensors in the place of a plain matrix."""
    found = {name: tensor for name, tensor in tensors.items() if name != f"{path}.weight"}
    return found | {f"{path}.{end}": part for end, part in parts.items()}


def stored(folder: Path, path: str) -> PackedMatrix | ScaledMatrix:
    needed = needed_tensors(folder, LayerRange(0, 2), folder.parent)
    found: dict[str, PackedMatrix | ScaledMatrix] = {**needed.packed, **needed.scaled}
    return found[f"{path}.weight"]


def rows(matrix: PackedMatrix | ScaledMatrix, start: int, stop: int) -> Tensor:
    """Plain weights in fp32."""
    if isinstance(matrix, ScaledMatrix):
        return torch.from_numpy(np.concatenate(list(read_scaled(matrix, start, stop))))
    found = read_groups(matrix, start, stop)
    assert found.biases is not None
    group = matrix.packing.group
    assert found.codes.max() < 2**matrix.packing.bits
    wide = found.codes.astype(np.float32) * np.repeat(found.scales, group, 1) + np.repeat(found.biases, group, 1)
    return torch.from_numpy(wide)


def refusal(folder: Path) -> str:
    with pytest.raises((UnsupportedModel, BrokenModel)) as caught:
        read_runnable(folder)
    return str(caught.value)


# --- what the rows are ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_rows_are_what_their_libraries_say(tmp_path: Path, format: str) -> None:
    """All of them, and some that begin and end within words and blocks."""
    how, tensors = FORMATS[format], plain()
    parts, judged = how.write(tensors[f"{UP}.weight"])
    folder = write(tmp_path / "m", replaced(tensors, UP, **parts, **how.extras), **how.config)
    assert read_runnable(folder).quantization is None
    matrix = stored(folder, UP)
    for start, stop in ((0, 400), (3, 9), (129, 257), (391, 400)):
        found = rows(matrix, start, stop)
        assert found.shape == (stop - start, 256)
        bound = ROUNDED.get(format, 0) * float(judged.abs().max())
        torch.testing.assert_close(found, judged[start:stop], rtol=0, atol=bound)


def test_scales_of_any_precision_differ_from_mlx_lm_by_its_rounding(tmp_path: Path) -> None:
    """It rounds scale times zero point to fp16; here nothing is rounded."""
    codes, scales, zeros = integers(plain()[f"{UP}.weight"], 4, 64, symmetric=False)
    scales = (scales * np.random.default_rng(0).uniform(0.9, 1.1, scales.shape)).astype(np.float16).astype(np.float32)
    parts = stored_awq(codes, scales, zeros)
    found = rows(stored(write(tmp_path / "m", replaced(plain(), UP, **parts)), UP), 0, 400)
    exact = (codes - np.repeat(zeros, 64, 1)) * np.repeat(scales, 64, 1)
    assert np.array_equal(found.numpy(), exact.astype(np.float32))
    largest = np.abs(scales * zeros).max()
    assert 0 < (found - judged_by_mlx(parts, 64)).abs().max() <= largest * 2**-11


def test_only_the_configuration_says_which_zero_points_are_stored(tmp_path: Path) -> None:
    codes, scales, zeros = integers(plain()[f"{UP}.weight"], 4, 128, symmetric=False)
    tensors = replaced(plain(), UP, **stored_gptq(codes, scales, zeros, 4))
    found = []
    for version in ("gptq", "gptq_v2"):
        said = {"quant_method": "gptq", "checkpoint_format": version}
        found.append(rows(stored(write(tmp_path / version, tensors, quantization_config=said), UP), 0, 400))
    torch.testing.assert_close(found[1] - found[0], torch.from_numpy(np.repeat(scales, 128, 1)), rtol=1e-5, atol=1e-7)


def test_without_zero_points_they_are_in_the_middle(tmp_path: Path) -> None:
    codes, scales, zeros = integers(plain()[f"{UP}.weight"], 4, 128, symmetric=True)
    whole = stored_awq(codes, scales, zeros)
    some = {end: part for end, part in whole.items() if end != "qzeros"}
    found = [rows(stored(write(tmp_path / name, replaced(plain(), UP, **parts)), UP), 0, 400)
             for name, parts in (("whole", whole), ("some", some))]  # fmt: skip
    assert torch.equal(*found)


def test_zero_points_in_bytes_are_read_as_packed_ones(tmp_path: Path) -> None:
    """As compressed-tensors stored them at first."""
    parts, judged = FORMATS["int4-asymmetric"].write(plain()[f"{UP}.weight"])
    words = parts["weight_zero_point"].numpy().view(np.uint32)
    points = np.stack([words >> 4 * place & 15 for place in range(8)], 1).reshape(-1, words.shape[1])
    parts["weight_zero_point"] = torch.from_numpy(points.astype(np.int8) - np.int8(8))
    found = rows(stored(write(tmp_path / "m", replaced(plain(), UP, **parts)), UP), 0, 400)
    assert torch.equal(found, judged)


def test_an_order_of_its_own_is_refused_when_it_is_read(tmp_path: Path) -> None:
    """A configuration may not say it."""
    codes, scales, zeros = integers(plain()[f"{UP}.weight"], 4, 64, symmetric=True)
    parts = stored_gptq(codes, scales, zeros, 4)
    parts["g_idx"] = parts["g_idx"].roll(1)
    folder = write(tmp_path / "m", replaced(plain(), UP, **parts), quantization_config={"quant_method": "gptq"})
    with pytest.raises(UnsupportedModel, match=rf"{UP}\.g_idx .*desc_act.*AWQ"):
        rows(stored(folder, UP), 0, 400)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")], ids=str)
def test_scales_that_are_no_numbers_are_refused(tmp_path: Path, wrong: float) -> None:
    tensors = plain()
    parts = stored_gptq(*integers(tensors[f"{Q}.weight"], 4, 64, symmetric=True), 4)
    parts["scales"][0, 3] = wrong
    matrix = stored(write(tmp_path / "m", replaced(tensors, Q, **parts)), Q)
    assert isinstance(matrix, PackedMatrix)
    with pytest.raises(BrokenModel, match="scales that are no numbers"):
        read_groups(matrix, 0, 8)
    read_groups(matrix, 8, 16)


def test_a_file_that_ends_early_is_named(tmp_path: Path) -> None:
    codes, scales, zeros = integers(plain()[f"{UP}.weight"], 4, 64, symmetric=True)
    folder = write(tmp_path / "m", replaced(plain(), UP, **stored_gptq(codes, scales, zeros, 4)))
    matrix = stored(folder, UP)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:9000])
    with pytest.raises(BrokenModel, match="it ends within tensor"):
        rows(matrix, 0, 8)


# --- what is counted, and what travels --------------------------------------------------------------------------------


@pytest.mark.parametrize(("format", "packing"), [("gptq-4", (4, 128)), ("gptq-4-channel", (4, 128)), ("awq", (4, 128)),
    ("int4-asymmetric", (4, 64)), ("int8-packed", (8, 128)), ("int8", (8, 128)), ("nvfp4", (5, 16))])  # fmt: skip
def test_packed_matrices_are_counted_as_they_lie(tmp_path: Path, format: str, packing: tuple[int, int]) -> None:
    how = FORMATS[format]
    parts, _ = how.write(plain()[f"{UP}.weight"])
    layer = read_spec(write(tmp_path / "m", replaced(plain(), UP, **parts), **how.config)).layer_weights[1]
    assert layer.packed == ((Packing("affine", *packing), 400 * 256),)
    size = sum(part.nbytes for end, part in parts.items() if end != "weight_shape")
    assert (layer.packed_bytes, layer.wide, layer.scaled) == (size, True, 0)


def test_8_bit_floats_count_as_plain(tmp_path: Path) -> None:
    parts, _ = FORMATS["fp8-blocks"].write(plain()[f"{UP}.weight"])
    spec, before = (read_spec(write(tmp_path / name, tensors)) for name, tensors in
                    (("m", replaced(plain(), UP, **parts)), ("plain", plain())))  # fmt: skip
    assert spec.layer_weights[1].scaled == 400 * 256
    assert spec.layer_weights[1].plain == before.layer_weights[1].plain
    assert (spec.scaled, before.scaled, spec.dtype, spec.packings) == (True, False, "fp16", ())


@pytest.mark.parametrize("format", FORMATS)
def test_all_parts_travel_with_their_layer(tmp_path: Path, format: str) -> None:
    how = FORMATS[format]
    parts, _ = how.write(plain()[f"{UP}.weight"])
    folder = write(tmp_path / "m", replaced(plain(), UP, **parts), **how.config)
    unit = units_of(read_published(folder).headers)["layer-00001.safetensors"]
    assert all(f"{UP}.{end}".encode() in unit.header for end in parts)
    read = {tensor.name for tensor in needed_tensors(folder, LayerRange(1, 2), tmp_path).tensors}
    assert {f"{UP}.{end}" for end in parts if end != "weight_shape"} <= read
    assert not any(".layers.0." in name for name in read)


# --- what is refused --------------------------------------------------------------------------------------------------


DECLARED: dict[str, tuple[dict[str, Any], str]] = {
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    "hqq": ({"quant_method": "hqq"}, "hqq"),
    "aqlm": ({"quant_method": "aqlm"}, "aqlm"),
    "eetq": ({"quant_method": "eetq"}, "eetq"),
    "quanto": ({"quant_method": "quanto"}, "quanto"),
    "torchao": ({"quant_method": "torchao"}, "torchao"),
    "exl2": ({"quant_method": "exl2", "bits": 4.0}, "exl2"),
    "exl3": ({"quant_method": "exl3"}, "exl3"),
    "gptq_marlin": ({"quant_method": "gptq_marlin"}, "gptq_marlin"),
    "marlin": ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "gptq, marlin"),
    "marlin of old": ({"quant_method": "gptq", "is_marlin_format": True}, "gptq, marlin"),
    "bitblas": ({"quant_method": "gptq", "checkpoint_format": "bitblas"}, "gptq, bitblas"),
    "desc_act": ({"quant_method": "gptq", "group_size": 128, "desc_act": True}, "gptq, desc_act"),
    "awq for another kernel": ({"quant_method": "awq", "version": "GEMV"}, "awq, gemv"),
    "sparse": (COMPRESSED | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "compressed-tensors, sparse-24"),
    "transforms": (COMPRESSED | {"transform_config": {"config_groups": {"a": 1}}}, "compressed-tensors, transform"),
}


@pytest.mark.parametrize("kind", DECLARED)
def test_what_config_json_declares_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    config, word = DECLARED[kind]
    said = refusal(write(tmp_path / "m", plain(), quantization_config=config))
    assert f"is quantized ({word}" in said
    assert "--quantize 4" in said


def test_what_is_plain_is_plain_whatever_is_declared(tmp_path: Path) -> None:
    for method in ("gptq", "awq", "compressed-tensors", "fp8", "fbgemm_fp8"):
        folder = write(tmp_path / method, plain(), quantization_config={"quant_method": method})
        assert (read_runnable(folder).quantization, read_spec(folder).packings) == (None, ())
    whole_rows = {"quant_method": "gptq", "desc_act": True, "group_size": -1}
    assert foreign_quantization({"quantization_config": whole_rows}) is None


WORDS = torch.zeros(32, 400, dtype=torch.int32)
BESIDE: dict[str, tuple[Tensors, str]] = {  # in the place of a matrix [400, 256]
    "bitsandbytes in 4 bit": ({"weight": torch.zeros(51200, 1, dtype=torch.uint8),
                               "weight.absmax": torch.zeros(1600)}, "bitsandbytes"),
    "bitsandbytes in 8 bit": ({"weight": torch.zeros(400, 256, dtype=torch.int8), "SCB": torch.zeros(400)},
                              "bitsandbytes"),
    "marlin": ({"B": torch.zeros(16, 800, dtype=torch.int32), "s": torch.zeros(2, 400)}, "marlin"),
    "hqq": ({"W_q": torch.zeros(32, 400, dtype=torch.uint8)}, "hqq"),
    "aqlm": ({"codebooks": torch.zeros(1, 4), "codes": torch.zeros(50, 256), "scales": torch.zeros(50)}, "aqlm"),
    "eetq": ({"weight": torch.zeros(256, 400, dtype=torch.int8), "weight_scales": torch.zeros(400)}, "eetq"),
    "quanto": ({"weight._data": torch.zeros(400, 256, dtype=torch.int8)}, "quanto"),
    "torchao": ({"_weight_qdata": torch.zeros(400, 256, dtype=torch.int8)}, "torchao"),
    "exl2": ({"q_weight": WORDS}, "exl2"),
    "exl3": ({"trellis": WORDS}, "exl3"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BESIDE)
def test_what_tensors_are_called_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    parts, word = BESIDE[kind]
    assert f"is quantized ({word})" in refusal(write(tmp_path / "m", replaced(plain(), UP, **parts)))


def _gptq(**parts: Tensor) -> Tensors:
    return replaced(plain(), UP, **stored_gptq(*integers(plain()[f"{UP}.weight"], 4, 128, symmetric=True), 4) | parts)


def _int4(**parts: Tensor) -> Tensors:
    return replaced(plain(), UP, **FORMATS["int4"].write(plain()[f"{UP}.weight"])[0] | parts)


def _fp8(**parts: Tensor) -> Tensors:
    return replaced(plain(), UP, **FORMATS["fp8-blocks"].write(plain()[f"{UP}.weight"])[0] | parts)


WRONG: dict[str, tuple[Tensors, str]] = {  # what is refused, and what its error names
    "three bits": (_gptq(qweight=torch.zeros(24, 400, dtype=torch.int32)), "qweight I32 24×400"),
    "scales of another height": (_gptq(scales=torch.zeros(3, 400).half()), "scales F16 3×400"),
    "scales of the other way round": (_gptq(scales=torch.zeros(400, 2).half()), "scales F16 400×2"),
    "zero points of another width": (_gptq(qzeros=torch.zeros(2, 48, dtype=torch.int32)), "qzeros I32 2×48"),
    "codes of another type": (_gptq(qweight=torch.zeros(32, 400, dtype=torch.int16)), "qweight I16"),
    "no scales": ({name: each for name, each in _gptq().items() if name != f"{UP}.scales"}, "qweight I32 32×400"),
    "groups that are too small": (_gptq(scales=torch.zeros(32, 400).half(),
                                        qzeros=torch.zeros(32, 50, dtype=torch.int32)), "scales F16 32×400"),
    "an order of another length": (_gptq(g_idx=torch.zeros(2, dtype=torch.int32)), "qweight I32 32×400"),
    "a second scale": (_gptq(channel_scale=torch.ones(256)), "channel_scale"),
    "both plain and packed": (_gptq(weight=torch.zeros(400, 256).half()), "weight F16 400×256"),
    "an order beside packed integers": (_int4(weight_g_idx=torch.zeros(256, dtype=torch.int32)), "weight_g_idx"),
    "a pack of other bits": (_int4(weight_packed=torch.zeros(400, 30, dtype=torch.int32)), "weight_packed I32 400×30"),
    "sparse codes": (_int4(meta=torch.zeros(4, 4, dtype=torch.int16)), "meta"),
    "a scale for each row of blocks": (_fp8(weight_scale_inv=torch.ones(4, 4)), "weight_scale_inv F32 4×4"),
    "two kinds of scales": (_fp8(weight_scale=torch.ones(1)), "weight_scale F32 1"),
    "no scale at all": ({name: each for name, each in _fp8().items() if not name.endswith("inv")}, "f8_e4m3"),
    "a scale beside a plain matrix": (_fp8(weight=torch.zeros(400, 256).half()), "weight F16 400×256"),
    "another kind of 8-bit floats": (_fp8(weight=torch.zeros(400, 256).to(torch.float8_e5m2)), "weight F8_E5M2"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_fits_no_packing_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    tensors, word = WRONG[kind]
    assert word in refusal(write(tmp_path / "m", tensors))


# --- experts one by one -----------------------------------------------------------------------------------------------

EXPERTS: dict[str, Any] = {"model_type": "qwen3_moe", "num_experts": 2, "num_experts_per_tok": 1,
                           "moe_intermediate_size": 64}  # fmt: skip
NARROW = {**SIZES, **EXPERTS, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 16}
_MOE = "model.layers.1.mlp.experts"


def experts(*names: str) -> Tensors:
    """Some packed as MLX packs."""
    arrays = {name: tensor.numpy() for name, tensor in drawn(NARROW).items()}
    return {name: torch.from_numpy(array) for name, array in packed(arrays, FOUR, *names).items()}


def test_experts_that_are_packed_one_by_one_are_stacked(tmp_path: Path) -> None:
    names = [f"{_MOE}.{i}.{kind}_proj.weight" for i in range(2) for kind in ("gate", "up", "down")]
    folder = write(tmp_path / "m", experts(*names), **NARROW)
    assert read_runnable(folder).layer_weights[1].packed == ((FOUR, 6 * 64 * 64),)
    found = needed_tensors(folder, LayerRange(1, 2), tmp_path).packed
    assert {name: matrix.shape for name, matrix in found.items()} == {
        f"model.layers.1.mlp.switch_mlp.{kind}_proj.weight": (2, 64, 64) for kind in ("gate", "up", "down")
    }


@pytest.mark.parametrize("names", [["0.up"], ["0.up", "1.up"]], ids=" and ".join)
def test_experts_of_a_layer_that_are_packed_in_part_are_refused(tmp_path: Path, names: list[str]) -> None:
    """By the name of one that differs from others."""
    folder = write(tmp_path / "m", experts(*(f"{_MOE}.{name}_proj.weight" for name in names)), **NARROW)
    assert f"{_MOE}.0." in refusal(folder)
    assert "some experts" in refusal(folder)
