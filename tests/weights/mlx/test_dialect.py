"""config.json for mlx-lm: nothing of a model is lost in it, and what mlx-lm would compute otherwise is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.families import make_checkpoint
from together.errors import UnsupportedModel
from together.models.config import effective
from together.models.reading import read_published
from together.models.spec import described
from together.weights.mlx.dialect import mlx_config, refuse_unknown, windows_note

LATER = ("smollm3", "smollm3-biased", "olmo2", "olmo3")
FAMILIES = ("llama", "llama-tied", "mistral", "mistral-window", "qwen2", "qwen3", "gemma3_text", "qwen3_moe", *LATER)
USUAL = {"group_size": 64, "bits": 4, "mode": "affine"}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 4.0,
    "original_max_position_embeddings": 1024,
    "beta_fast": 16.0,
}
Plain = dict[str, Any]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make_checkpoint(tmp_path_factory.mktemp(name) / "tiny", name) for name in FAMILIES}


def published(folder: Path) -> Plain:
    found: Plain = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def made(folder: Path, **changes: Any) -> Plain:
    """The config.json for mlx-lm of a folder whose own has these `changes`."""
    config = published(folder) | changes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = described(folder, read_published(folder))
    refuse_unknown(found.config, found.spec)
    return mlx_config(config, found.config, found.spec, USUAL)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_says_the_same_of_the_model(folders: dict[str, Path], name: str) -> None:
    before = effective("tiny", published(folders[name]))
    config = made(folders[name])
    assert effective("tiny", config) == before
    assert config["quantization"] == config["quantization_config"] == USUAL
    assert "rope_parameters" not in config, "mlx-lm's Llama would pass over it"


def test_it_says_the_same_of_rope_that_is_scaled(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("llama", "qwen2", "qwen3"):
        folder = make_checkpoint(tmp_path / name, name, rope_parameters=YARN)
        config = made(folder)
        assert effective("tiny", config) == effective("tiny", published(folder))
        assert config["rope_theta"] == 1e6
        assert config["rope_scaling"]["beta_fast"] == 16.0


def test_the_text_part_of_a_wrapper_stands_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "gemma3_text")
    text = published(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text, "vision_config": {}}))
    config = made(folder)
    assert (config["model_type"], config["architectures"]) == ("gemma3_text", ["Gemma3ForCausalLM"])
    assert config["sliding_window_pattern"] == 3
    assert effective("tiny", config)["layer_types"] == text["layer_types"]


def test_keys_that_nobody_here_reads_are_left_out(tmp_path: Path) -> None:
    config = made(make_checkpoint(tmp_path / "tiny", "llama"), rope_traditional=True, model_file="evil.py")
    assert not {"rope_traditional", "model_file"} & config.keys(), "mlx-lm would obey them"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("qwen3_moe", {"rope_parameters": YARN}, r"rope that is scaled by yarn, which mlx-lm does not compute in the"),
        ("qwen3", {"attention_bias": True}, r"biases of attention \(attention_bias\)"),
        ("qwen2", {"head_dim": 24}, r"heads of 24 values"),
        ("gemma3_text", {"layer_types": ["sliding_attention"] * 4}, r"layers with and without a window"),
        (
            "gemma3_text",
            {"layer_types": ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]},
            r"in an order of its own",
        ),
        ("phi3", {}, r"of the family phi3, which convert does not write yet"),
        ("llama", {"hidden_act": "gelu"}, r"hidden_act 'gelu': MLX does not run that"),
    ],
)
def test_what_mlx_lm_would_compute_otherwise_is_refused(
    tmp_path: Path, name: str, changes: Plain, message: str
) -> None:
    folder = make_checkpoint(tmp_path / "tiny", name)
    with pytest.raises(UnsupportedModel, match=message):
        made(folder, **changes)


def test_another_theta_under_a_window_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "olmo3")
    ropes = published(folder)["rope_parameters"]
    local = ropes["sliding_attention"] | {"rope_theta": 1e4}
    with pytest.raises(UnsupportedModel, match="another rope_theta in layers with a window"):
        made(folder, rope_parameters=ropes | {"sliding_attention": local})


def test_scaled_rope_under_a_window_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "gemma3_text")
    ropes = published(folder)["rope_parameters"]
    with pytest.raises(UnsupportedModel, match="scaled rope in layers with a window"):
        made(folder, rope_parameters={**ropes, "sliding_attention": ropes["full_attention"]})


def test_windows_that_mlx_lm_passes_over_are_said(folders: dict[str, Path]) -> None:
    notes = {
        name: str(windows_note(described(folder, read_published(folder)).spec)) for name, folder in folders.items()
    }
    assert notes.pop("mistral-window").startswith("mlx-lm does not use the sliding window of 8 tokens")
    assert set(notes.values()) == {""}
