"""Converted units against mlx-lm's own quantization, bit for bit."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

from tests.support.mlx_folders import FORMS, make_plain, write_mlx
from together.errors import BrokenModel
from together.models.form import Form, asked_form, converted_unit, form_of, targets_of
from together.models.names import unit_of
from together.models.reading import all_tensors
from together.types import Dtype
from together.weights import convert
from together.weights.convert import converted

ODD = {"hidden_size": 64, "intermediate_size": 160, "head_dim": 24}  # 4 heads of 24: a group of 32 and none of 64
THEIRS = {"4": "affine-4", "8": "affine-8", "mxfp4": "mxfp4"}

Stored = dict[str, tuple[str, NDArray[np.uint8]]]  # dtype and bytes by name


def asked(quantize: str) -> Form:
    return form_of(asked_form(quantize) or "")


def ours(folder: Path, form: Form, threads: int = 2) -> Stored:
    """Every tensor of every converted unit, as its file has it."""
    found: Stored = {}
    tensors = all_tensors(folder)
    for unit in dict.fromkeys(unit_of(tensor.name) for tensor in tensors):
        assert unit is not None
        plain = [tensor for tensor in tensors if unit_of(tensor.name) == unit]
        made = converted_unit(unit, targets_of(plain, form), {"format": "mlx"})
        file = folder / f"made-{unit}"
        file.write_bytes(made.header + b"".join(converted(plain, form, threads)))
        assert file.stat().st_size == made.size
        found |= read(file)
        file.unlink()
    return found


def read(file: Path) -> Stored:
    """As MLX reads it."""
    with safe_open(file, "numpy") as opened:
        assert opened.metadata()["format"] == "mlx"
    return loaded(file)


def loaded(file: Path) -> Stored:
    found = mx.load(str(file))
    assert isinstance(found, dict)
    return {name: (str(tensor.dtype), raw(tensor)) for name, tensor in found.items()}


def raw(tensor: mx.array) -> NDArray[np.uint8]:
    return np.array(tensor.reshape(-1).view(mx.uint8))


def theirs(plain: Path, quantize: str) -> Stored:
    """What `mlx_lm.convert` saves."""
    return read(write_mlx(plain, plain.with_name("theirs"), FORMS[THEIRS[quantize]]) / "model.safetensors")


def assert_equal(found: Stored, wanted: Stored) -> None:
    assert found.keys() == wanted.keys()
    for name, (dtype, data) in wanted.items():
        assert found[name][0] == dtype, name
        assert np.array_equal(found[name][1], data), name


@pytest.mark.parametrize(
    ("name", "quantize"),
    [("llama", "8"), ("gemma3_text", "4"), ("qwen3_moe", "4"), ("qwen3_moe", "mxfp4"), ("glm4_moe", "4")],
)
def test_units_are_what_mlx_lm_makes(tmp_path: Path, name: str, quantize: str) -> None:
    folder = make_plain(tmp_path / "tiny", name, "bf16")
    assert_equal(ours(folder, asked(quantize)), theirs(folder, quantize))


@pytest.mark.parametrize(("dtype", "quantize"), [("fp32", "8"), ("fp16", "4"), ("fp16", "mxfp4")])
def test_scales_have_the_dtype_of_the_weights(tmp_path: Path, dtype: Dtype, quantize: str) -> None:
    folder = make_plain(tmp_path / "tiny", "llama", dtype)
    assert_equal(ours(folder, asked(quantize)), theirs(folder, quantize))


@pytest.mark.parametrize(("name", "quantize"), [("llama", "mxfp4"), ("qwen3_moe", "4")])
def test_what_is_no_whole_group_stays_as_it_is(tmp_path: Path, name: str, quantize: str) -> None:
    experts = {"moe_intermediate_size": 40} if name == "qwen3_moe" else {}
    folder = make_plain(tmp_path / "tiny", name, "bf16", **ODD, **experts)
    found = ours(folder, asked(quantize))
    assert_equal(found, theirs(folder, quantize))
    packed = {key.removesuffix(".scales") for key in found if key.endswith("0.self_attn.o_proj.scales")}
    assert bool(packed) is (quantize == "mxfp4")


def test_head_and_embedding_stay_plain_where_that_is_asked(tmp_path: Path) -> None:
    folder = make_plain(tmp_path / "tiny", "llama", "bf16")
    whole, part = ours(folder, asked("4")), ours(folder, Form(form_of("mlx-affine-4-g64@1").packing, head=False))
    ends = {"model.embed_tokens", "lm_head"}
    assert whole.keys() - part.keys() == {f"{end}.{kind}" for end in ends for kind in ("scales", "biases")}
    plain = loaded(folder / "model.safetensors")
    for name in part:
        same = plain if name.removesuffix(".weight") in ends else whole
        assert part[name][0] == same[name][0], name
        assert np.array_equal(part[name][1], same[name][1]), name


@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_and_threads_change_no_byte(tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, form = make_plain(tmp_path / "tiny", "qwen3_moe", "bf16"), asked("4")
    whole = ours(folder, form)
    monkeypatch.setattr(convert, "BLOCK", 7 * 128)  # rows
    assert_equal(ours(folder, form, threads), whole)


def test_a_weight_that_is_no_number_is_refused_by_name(tmp_path: Path) -> None:
    folder = make_plain(tmp_path / "tiny", "llama", "fp32")
    tensor = next(tensor for tensor in all_tensors(folder) if tensor.name.endswith("1.mlp.up_proj.weight"))
    with tensor.file.open("r+b") as file:
        file.seek(tensor.start + 4 * 1000)
        file.write(np.array([np.nan], "<f4").tobytes())
    with pytest.raises(BrokenModel, match=r"model\.layers\.1\.mlp\.up_proj\.weight.* no numbers"):
        ours(folder, asked("4"))


def test_weights_that_no_scale_holds_are_refused_by_name(tmp_path: Path) -> None:
    """Their codes would be no numbers, and the answers wrong in silence."""
    folder = make_plain(tmp_path / "tiny", "llama", "fp32")
    tensor = next(tensor for tensor in all_tensors(folder) if tensor.name.endswith("1.mlp.up_proj.weight"))
    with tensor.file.open("r+b") as file:
        file.seek(tensor.start)
        file.write(np.array([-3e38, 3e38], "<f4").tobytes())
    with pytest.raises(BrokenModel, match=r"model\.layers\.1\.mlp\.up_proj\.weight.* so far apart that no scale"):
        ours(folder, asked("4"))
