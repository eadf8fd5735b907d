"""What GGUF files of Granite 4, Qwen3-Next, Nemotron-H, Llama 4 and Qwen3-VL say, and what they leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.models.gguf.test_config import EMBED, SHAPES, llama3_factors, read, renamed
from tests.models.gguf.test_settings import COUNTS, HYBRID, SHARED, made
from together.errors import BrokenModel, UnsupportedModel
from together.models.gguf.families import FAMILIES, as_stored, canonical_name
from together.models.headers import TensorInfo

MAMBA = {
    "ssm.conv_kernel": 4,
    "ssm.state_size": 16,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 8,
    "ssm.inner_size": 512,
    "rope.scaling.finetuned": False,
}
GRANITE = {**MAMBA, "attention.head_count_kv": [0, 2, 0, 2]}
BIASES: dict[str, tuple[int, ...]] = {
    "model.layers.0.mamba.conv1d.bias": (576,),
    "model.layers.1.self_attn.o_proj.bias": (256,),
}


def test_granite_4_says_its_layers_by_heads_for_keys() -> None:
    config = made("granitehybrid", GRANITE)
    assert config["layer_types"] == ["linear_attention", "full_attention"] * 2
    keys = ("num_key_value_heads", "mamba_n_heads", "mamba_d_head", "mamba_expand", "num_local_experts")
    assert [config[key] for key in keys] == [2, 8, 64, 2, 0]
    assert (config["position_embedding_type"], config["shared_intermediate_size"]) == ("nope", 512)
    assert not config["mamba_conv_bias"]
    biased = made("granitehybrid", {**GRANITE, **SHARED, "rope.scaling.finetuned": None}, SHAPES | BIASES)
    assert (biased["mamba_conv_bias"], biased["attention_bias"]) == (True, True)
    assert (biased["num_local_experts"], biased["num_experts_per_tok"]) == (8, 2)
    assert (biased["position_embedding_type"], biased["shared_intermediate_size"]) == ("rope", 128)


@pytest.mark.parametrize(
    ("more", "said"),
    [({"attention.head_count_kv": [0, 2, 0, 4]}, "head_count_kv"), ({"ssm.inner_size": 500}, "inner_size")],
)
def test_another_granite_4_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        made("granitehybrid", {**GRANITE, **more})


@pytest.mark.parametrize(
    ("part", "stored", "shape"),
    [("A_log", (8, 1), (8,)), ("D", (8, 1), (8,)), ("norm.weight", (2, 256), (512,)), ("dt_bias", (8,), (8,))],
)
def test_shapes_of_layers_by_mambas_rule(part: str, stored: tuple[int, ...], shape: tuple[int, ...]) -> None:
    tensor = TensorInfo(f"model.layers.0.mamba.{part}", Path("m.gguf"), "F32", stored, 0, 4096, gguf=True)
    found = as_stored(made("granitehybrid", GRANITE), tensor)
    assert (found.shape, found.decay) == (shape, part == "A_log")


def test_qwen3_next_counts_its_layers_as_qwen3_5_does() -> None:
    config = made("qwen3next", {**HYBRID, **SHARED, "nextn_predict_layers": 1})
    assert config["layer_types"] == ["linear_attention"] * 3
    keys = ("num_experts", "moe_intermediate_size", "norm_topk_prob", "linear_num_value_heads")
    assert [config[key] for key in keys] == [8, 64, True, 6]
    for name in ("in_proj_qkv", "in_proj_z", "A_log"):  # heads of values lie as they were published
        tensor = TensorInfo(f"model.layers.0.linear_attn.{name}", Path("m.gguf"), "F32", (6,), 0, 24, gguf=True)
        assert as_stored(config, tensor).tiles is None


NEMOTRON = {
    **MAMBA,
    "attention.head_count_kv": [0, 2, 0, 0],
    "attention.key_length": 64,
    "attention.value_length": 64,
    "attention.layer_norm_epsilon": 1e-5,
    "feed_forward_length": [0, 0, 512, 0],
    "rope.dimension_count": 32,  # by the width of the states, whatever heads have
}
EXPERTS = {**SHARED, "expert_shared_count": 1, "expert_weights_scale": 2.5, "expert_weights_norm": True}


def test_nemotron_says_its_layers_by_heads_and_widths() -> None:
    config = made("nemotron_h", NEMOTRON)
    assert config["layer_types"] == ["linear_attention", "full_attention", "mlp", "linear_attention"]
    assert (config["mamba_num_heads"], config["mamba_head_dim"], config["intermediate_size"]) == (8, 64, 512)
    lone = made("nemotron_h", {**NEMOTRON, "attention.layer_norm_rms_epsilon": None})
    assert (lone["layer_norm_epsilon"], lone["head_dim"]) == (1e-5, 64)
    counted = {
        **NEMOTRON,
        **EXPERTS,
        "moe_latent_size": 64,
        "block_count": 5,
        "nextn_predict_layers": 1,
        "attention.head_count_kv": [0, 2, 0, 0, 2],
        "feed_forward_length": [0, 0, 64, 0, 64],
    }
    sparse = made("nemotron_h_moe", counted)
    assert sparse["layer_types"] == ["linear_attention", "full_attention", "moe", "linear_attention"]
    keys = ("n_routed_experts", "moe_latent_size", "moe_shared_expert_intermediate_size", "routed_scaling_factor")
    assert [sparse[key] for key in keys] == [8, 64, 128, 2.5]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"attention.layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
        ({"feed_forward_length": [0, 512, 512, 0]}, "feed_forward_length"),
        ({"feed_forward_length": [0, 0, 512, 256]}, "feed_forward_length"),
        ({**EXPERTS, "expert_feed_forward_length": [0, 0, 64, 32]}, "expert_feed_forward_length"),  # as Puzzle has them
        ({**EXPERTS, "expert_gating_func": 1}, "expert_gating_func"),
    ],
)
def test_another_nemotron_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        made("nemotron_h", {**NEMOTRON, **more})


LLAMA4 = {**COUNTS, "expert_feed_forward_length": 64, "interleave_moe_layer_step": 2}


def test_llama_4_has_what_no_file_says() -> None:
    config = made("llama4", LLAMA4)
    assert config["layer_types"] == ["chunked_attention"] * 3 + ["full_attention"]
    assert config["no_rope_layers"] == [1, 1, 1, 0]
    keys = ("attention_chunk_size", "floor_scale", "attn_scale", "intermediate_size", "intermediate_size_mlp")
    assert [config[key] for key in keys] == [8192, 8192, 0.1, 64, 512]
    assert (config["moe_layers"], config["use_qk_norm"], config["attn_temperature_tuning"]) == ([1, 3], True, True)
    assert not made("llama4", {**LLAMA4, "expert_count": 128})["use_qk_norm"]


def test_scout_stretches_its_rope_at_one_bound() -> None:
    factors = [1.0] * 9 + [16.0] * 7
    periods = [2 * 3.141592653589793 * 500_000 ** (i / 16) for i in range(16)]
    assert [period > 8192 for period in periods] == [factor > 1 for factor in factors]
    found = read(renamed("llama4") | {f"llama4.{key}": value for key, value in LLAMA4.items()}, SHAPES, factors)
    rope = found["rope_parameters"]
    assert [rope[key] for key in ("rope_type", "factor", "low_freq_factor", "high_freq_factor")] == [
        "llama3", 16.0, 1.0, 1.0,
    ]  # fmt: skip
    usual = read(renamed("llama"), SHAPES, llama3_factors(8.0))["rope_parameters"]
    assert usual["high_freq_factor"] == 4.0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"attention.sliding_window": 0}, "sliding_window"),  # so a file says that no layer is chunked
        ({"attention.sliding_window": 4096}, "sliding_window"),
        ({"rope.freq_base_swa": 10_000.0}, "freq_base_swa"),
    ],
)
def test_another_llama_4_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        made("llama4", {**LLAMA4, **more})


def test_the_text_of_qwen3_vl() -> None:
    heads = {"attention.key_length": 64, "attention.value_length": 64}
    config = made("qwen3vl", {**heads, "rope.dimension_sections": [12, 10, 10, 0]}, {EMBED: (1000, 256)})
    assert config["rope_parameters"]["mrope_section"] == [12, 10, 10]
    assert config["rope_parameters"]["rope_theta"] == 500_000.0
    assert "vision_config" not in config
    with pytest.raises(UnsupportedModel, match="dimension_sections"):
        made("qwen3vl", {**heads, "rope.dimension_sections": [8, 8, 8, 8]})
    with pytest.raises(BrokenModel, match="dimension_sections"):
        made("qwen3vl", heads)


def test_scales_of_gemmas_experts_are_no_weights() -> None:
    family = FAMILIES["gemma4"]
    assert canonical_name(family, "blk.3.ffn_gate_inp.scale") == "model.layers.3.router.scale"
    assert canonical_name(family, "blk.3.ffn_down_exps.scale") == "model.layers.3.router.per_expert_scale"
    assert canonical_name(family, "blk.3.attn_q.scale") == "blk.3.attn_q.scale"  # nobody knows one there
