"""A model's description, from files alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.folders import CONFIG, SHAPES, without, write_model
from together.errors import BrokenModel, UnsupportedModel
from together.models.config import FAMILIES
from together.models.names import HEAD, NORM
from together.models.spec import read_shape, read_spec
from together.types import LayerRange

EMBED_PARAMS, LAYER_PARAMS, NORM_PARAMS = 128, (96, 160), 8


def test_shapes_and_counts(tmp_path: Path) -> None:
    spec = read_spec(write_model(tmp_path / "tiny"))
    assert (spec.name, spec.family, spec.layers, spec.context) == ("tiny", "llama", 2, 64)
    assert (spec.hidden_size, spec.vocab_size, spec.heads, spec.kv_heads, spec.head_dim) == (8, 16, 2, 1, 4)
    assert tuple(weights.elements for weights in spec.layer_weights) == LAYER_PARAMS
    ends = (spec.embed_weights, spec.norm_weights, spec.head_weights)
    assert [weights.elements for weights in ends] == [128, 8, 128]
    assert (spec.dtype, spec.tied, spec.quantization) == ("bf16", False, None)
    assert spec.windows == (None, None)


def test_stage_bytes_follow_the_words(tmp_path: Path) -> None:
    """Embedding with the first layer, norm and head with the last; a tied matrix once where both, else twice."""
    first, last, both = LayerRange(0, 1), LayerRange(1, 2), LayerRange(0, 2)
    untied = read_spec(write_model(tmp_path / "u"))
    assert untied.stage_bytes(first, "bf16") == 2 * (EMBED_PARAMS + 96)
    assert untied.stage_bytes(last, "fp32") == 4 * (160 + NORM_PARAMS + 128)
    assert untied.stage_bytes(both, "fp32") == 4 * (128 + 96 + 160 + 8 + 128)
    tied = read_spec(write_model(tmp_path / "t", without(HEAD)))
    assert tied.tied
    assert tied.stage_bytes(last, "fp32") == untied.stage_bytes(last, "fp32")
    assert tied.stage_bytes(both, "fp32") == untied.stage_bytes(both, "fp32") - 4 * 128


def test_kv_bytes(tmp_path: Path) -> None:
    spec = read_spec(write_model(tmp_path / "m"))
    assert spec.kv_elements_per_token_per_layer == 2 * 1 * 4
    assert spec.kv_bytes_per_token(LayerRange(0, 2), "fp16") == 2 * 8 * 2


def test_the_fingerprint_changes_with_anything_that_matters(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "a")
    spec = read_spec(folder)
    assert spec.fingerprint == read_spec(write_model(tmp_path / "b" / "a")).fingerprint
    assert spec.ref(folder).fingerprint == spec.fingerprint
    assert spec.ref(folder).layers == 2
    others = (write_model(tmp_path / "c", rms_norm_eps=1e-5), write_model(tmp_path / "d", dtype="F16"))
    assert len({spec.fingerprint, *(read_spec(other).fingerprint for other in others)}) == 3


@pytest.mark.parametrize(
    ("family", "config", "windows"),
    [
        ("llama", {"sliding_window": 8}, (None, None)),
        ("mistral", {"sliding_window": 8}, (8, 8)),
        ("mistral", {}, (4096, 4096)),
        ("qwen2", {"sliding_window": 8}, (None, None)),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}, (None, 8)),
        ("qwen3_moe", {"sliding_window": 8, "use_sliding_window": True, "mlp_only_layers": [0, 1]}, (8, 8)),
        ("gemma3_text", {"sliding_window": 8, "sliding_window_pattern": 2}, (8, None)),
        ("gemma3_text", {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}, (None, 8)),
    ],
)
def test_windows(tmp_path: Path, family: str, config: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert read_spec(write_model(tmp_path / "m", model_type=family, **config)).windows == windows


def test_explicit_nulls_of_a_config(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", model_type="mistral")
    (folder / "config.json").write_text(
        json.dumps(CONFIG | {"model_type": "mistral", "sliding_window": None, "head_dim": None})
    )
    spec = read_spec(folder)
    assert spec.windows == (None, None)
    assert spec.head_dim == 4


@pytest.mark.parametrize(
    ("config", "dtype", "name"),
    [
        ({"quantization_config": {"quant_method": "hqq", "bits": 4}}, "BF16", "hqq"),
        ({}, "F8_E4M3", "f8_e4m3"),
        ({}, "U32", "u32"),
    ],
)
def test_quantization_has_a_name(tmp_path: Path, config: dict[str, Any], dtype: str, name: str) -> None:
    assert read_spec(write_model(tmp_path / "m", dtype=dtype, **config)).quantization == name


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox", None, ["llama"]])
def test_other_families_are_refused_with_some_that_run(tmp_path: Path, family: object) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        read_spec(write_model(tmp_path / "m", model_type=family))
    assert any(name in str(caught.value).partition("README lists, as ")[2] for name in FAMILIES)


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads"])
@pytest.mark.parametrize("value", [0, -1, "4", 2.5, True, 10**12])
def test_numbers_that_are_none(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(BrokenModel, match=key):
        read_spec(write_model(tmp_path / "m", **{key: value}))


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        (without("model.embed_tokens.weight"), "embed_tokens"),
        (without(NORM), "norm"),
        (without("model.layers.1.mlp.up_proj.weight", "model.layers.1.self_attn.rotary_emb.inv_freq"), "layer 1"),
        (SHAPES | {"model.embed_tokens.weight": (17, 8)}, "embed_tokens"),
        (SHAPES | {NORM: (9,)}, "norm"),
    ],
)
def test_headers_that_are_another_model(tmp_path: Path, shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    with pytest.raises(BrokenModel, match=reason):
        read_spec(write_model(tmp_path / "m", shapes))


def test_the_shape_needs_no_weights(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    shape = read_shape(folder)
    assert (shape.hidden_size, shape.layers, shape.fingerprint) == (8, 2, "")


def test_reading_a_spec_imports_no_framework() -> None:
    heavy = "('torch', 'mlx', 'transformers', 'numpy')"
    code = f"import sys, together.models.spec; print([m for m in sys.modules if m in {heavy}])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
