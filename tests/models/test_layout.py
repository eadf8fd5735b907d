"""What a checkpoint lacks is told from headers alone, and what no layer needs is passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.folders import CONFIG, Shapes, write_model, write_raw, write_tensors
from together.errors import BrokenModel, UnsupportedModel
from together.models.config import effective
from together.models.layout import needs
from together.models.names import HEAD
from together.models.needed import needed_tensors
from together.models.spec import read_runnable, read_spec
from together.types import LayerRange

Q, UP = "model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"


def shapes(*gone: str, head: bool = True, **config: Any) -> dict[str, tuple[int, ...]]:
    """Of a whole model of `CONFIG`, without some."""
    found = needs(effective("m", CONFIG | {"intermediate_size": 12} | config), head=head)
    return {name: shape for name, shape in found.items() if name not in gone}


def model(folder: Path, found: Shapes, **config: Any) -> Path:
    return write_model(folder, found, intermediate_size=12, **config)


def refusal(folder: Path) -> str:
    with pytest.raises((UnsupportedModel, BrokenModel)) as caught:
        read_runnable(folder)
    return str(caught.value)


def test_a_whole_model_runs(tmp_path: Path) -> None:
    assert read_runnable(model(tmp_path / "m", shapes())).layers == 2


@pytest.mark.parametrize("name", [Q, UP, NORM, "model.embed_tokens.weight", "model.norm.weight"])
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    assert name in refusal(model(tmp_path / "m", shapes(name)))


@pytest.mark.parametrize(("name", "shape"), [(Q, (4, 8)), (UP, (12, 7)), (NORM, (8, 1)), (HEAD, (16, 4))])
def test_a_misshapen_tensor_is_named_with_both_shapes(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    whole = shapes()
    said = refusal(model(tmp_path / "m", whole | {name: shape}))
    assert all("×".join(map(str, size)) in said for size in (shape, whole[name]))
    assert name in said
    assert "get this model again" not in said


@pytest.mark.parametrize(
    ("end", "word"),
    [("qweight", "qweight BF16 4×4"), ("weight_packed", "weight_packed BF16 4×4"), ("W_q", "quantized (hqq)")],
)
def test_packed_matrices_are_named_without_a_word_in_the_config(tmp_path: Path, end: str, word: str) -> None:
    packed = {name: shape for name, shape in shapes().items() if "_proj" not in name}
    packed |= {f"model.layers.{i}.self_attn.q_proj.{end}": (4, 4) for i in range(2)}
    assert word in refusal(model(tmp_path / "m", packed))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "U32"])
def test_matrices_in_a_dtype_that_is_not_computed_in(tmp_path: Path, dtype: str) -> None:
    folder = model(tmp_path / "m", shapes())
    write_tensors(folder / "model.safetensors", shapes(), dtype)
    assert f"quantized ({dtype.lower()})" in refusal(folder)


@pytest.mark.parametrize(
    ("config", "extra", "words"),
    [
        ({}, {}, "no lm_head.weight"),
        ({"tie_word_embeddings": False}, {}, "no lm_head.weight"),
        ({}, {"score.weight": (1, 8)}, "score.weight"),
        ({"architectures": ["LlamaModel"]}, {}, "LlamaModel"),
        ({"architectures": ["LlamaForSequenceClassification"], "tie_word_embeddings": True}, {}, "classifier"),
    ],
)
def test_a_model_without_a_head_is_refused_for_what_it_is(
    tmp_path: Path, config: dict[str, Any], extra: dict[str, tuple[int, ...]], words: str
) -> None:
    said = refusal(model(tmp_path / "m", shapes(HEAD) | extra, **config))
    assert words in said
    assert "choose a causal" in said


def test_a_tied_model_needs_no_head(tmp_path: Path) -> None:
    assert read_runnable(model(tmp_path / "m", shapes(HEAD), tie_word_embeddings=True)).tied
    gemma: dict[str, Any] = {"model_type": "gemma3_text", "head_dim": 4}
    assert read_runnable(model(tmp_path / "g", shapes(HEAD, **gemma), **gemma)).tied
    assert not read_runnable(model(tmp_path / "u", shapes(), tie_word_embeddings=True)).tied, (
        "a head that is there counts"
    )


def test_experts_as_one_tensor_are_named(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "model_type": "qwen3_moe",
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 4,
    }
    apart = shapes(**config)
    assert read_runnable(model(tmp_path / "m", apart, **config)).family == "qwen3_moe"
    merged = {name: shape for name, shape in apart.items() if ".experts." not in name}
    found = merged | {"model.layers.0.mlp.experts.gate_up_proj": (2, 4, 8)}
    assert "as one tensor" in refusal(model(tmp_path / "joined", found, **config))


def test_experts_of_a_projection_may_be_one_tensor(tmp_path: Path) -> None:
    config: dict[str, Any] = {"model_type": "qwen3_moe", "num_experts": 2, "num_experts_per_tok": 1,
                              "moe_intermediate_size": 4}  # fmt: skip
    stacked = {name: shape for name, shape in shapes(**config).items() if ".experts." not in name}
    for layer in range(2):
        start = f"model.layers.{layer}.mlp.switch_mlp."
        stacked |= {f"{start}gate_proj.weight": (2, 4, 8), f"{start}up_proj.weight": (2, 4, 8)}
        stacked[f"{start}down_proj.weight"] = (2, 8, 4)
    apart = read_spec(model(tmp_path / "apart", shapes(**config), **config))
    assert read_runnable(model(tmp_path / "m", stacked, **config)).layer_weights == apart.layer_weights
    del stacked["model.layers.1.mlp.switch_mlp.up_proj.weight"]
    assert "layers.1.mlp.switch_mlp.up_proj" in refusal(model(tmp_path / "lacking", stacked, **config))


def test_what_no_layer_needs_is_neither_counted_nor_read(tmp_path: Path) -> None:
    """Of any dtype and shape; it makes no model quantized either."""
    plain = read_spec(model(tmp_path / "plain", shapes()))
    folder = model(tmp_path / "m", shapes())
    extra = {"model.layers.0.self_attn.bias": ("BOOL", 4), "model.freqs_cis": ("C64", 32), "mtp.fc.weight": ("F4", 2)}
    extra |= {"model.layers.2.eh_proj.weight": ("F8_E5M2FNUZ", 4), "model.layers.1.mlp.stats": ("F64", 32)}
    header, data = _with_extras(folder / "model.safetensors", extra)
    write_raw(folder / "model.safetensors", header, data)
    found = read_runnable(folder)
    assert (found.layer_weights, found.quantization, found.dtype) == (plain.layer_weights, None, "bf16")
    read = {tensor.name for tensor in needed_tensors(folder, LayerRange(0, 2), folder.parent).tensors}
    assert read == set(shapes())


def _with_extras(file: Path, extra: dict[str, tuple[str, int]]) -> tuple[bytes, bytes]:
    """The header and the data of a file with further 2x2 tensors: name → dtype and bytes."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    entries, at = json.loads(raw[8 : 8 + length]), len(raw) - 8 - length
    for name, (dtype, size) in extra.items():
        entries[name] = {"dtype": dtype, "shape": [2, 2], "data_offsets": [at, at + size]}
        at += size
    return json.dumps(entries).encode(), bytes(at)
