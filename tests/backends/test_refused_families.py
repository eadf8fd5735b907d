"""What a library would compute otherwise is refused by name, before anything is unloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backends.on_mlx.config import refuse_ignored
from tests.support.families import make_checkpoint
from together.errors import UnsupportedModel
from together.models.spec import read_config, read_shape, read_spec


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("mixtral", {"head_dim": 20}, "heads of 20 values"),
        ("qwen2", {"head_dim": 20}, "heads of 20 values"),
        ("phi3", {"head_dim": 20}, "heads of 20 values"),
        ("granite", {"head_dim": 20}, "heads of 20 values"),
        ("granite4", {"head_dim": 20}, "heads of 20 values"),
        ("olmoe", {"clip_qkv": 2.0}, "clip_qkv 2.0"),
        ("qwen2_moe", {"mlp_only_layers": [1]}, "layers without experts"),
        ("qwen2_moe", {"norm_topk_prob": True, "qkv_bias": False}, "norm_topk_prob, qkv_bias False"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave False"),
        ("llama4", {"num_experts_per_tok": 2}, "num_experts_per_tok 2"),
    ],
)
def test_mlx_refuses(tmp_path: Path, name: str, settings: dict[str, Any], reason: str) -> None:
    folder = make_checkpoint(tmp_path, name, **settings)
    with pytest.raises(UnsupportedModel, match=reason):
        refuse_ignored(read_config(folder), read_shape(folder))


ON_MLX = [
    ("gpt_oss", {"swiglu_limit": 5.0}, "swiglu_limit 5.0"),
    ("gpt_oss", {"swiglu_alpha": 1.5}, "swiglu_alpha 1.5"),
    ("gemma4_text", {"attention_bias": True}, "attention_bias True"),
    ("gpt_oss", {"attention_bias": False}, "attention_bias False"),
]


@pytest.mark.parametrize(("name", "changes", "said"), ON_MLX)
def test_on_mlx(tmp_path: Path, name: str, changes: dict[str, Any], said: str) -> None:
    folder = make_checkpoint(tmp_path / "model", name)
    refuse_ignored(read_config(folder), read_spec(folder))
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UnsupportedModel, match=said):
        refuse_ignored(read_config(folder), read_spec(folder))
