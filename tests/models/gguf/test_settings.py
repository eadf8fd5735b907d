"""What a family's GGUF files say of their own, and what they leave to those who know the architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.models.gguf.test_config import EMBED, SHAPES, read, renamed
from together.errors import BrokenModel, TogetherError, UnsupportedModel
from together.models.gguf.families import FAMILIES, as_stored
from together.models.gguf.refusals import check_settings
from together.models.headers import TensorInfo

QUERIES: dict[str, tuple[int, ...]] = {"model.layers.0.self_attn.q_proj.bias": (256,)}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 8.0, "rope.scaling.original_context_length": 8192}
SWA = {"attention.sliding_window": 4096}


def made(architecture: str, settings: dict[str, Any], shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, Any]:
    return read(renamed(architecture) | {f"{architecture}.{key}": value for key, value in settings.items()}, shapes)


def test_granite_has_four_factors() -> None:
    factors = {"attention.scale": 0.0078125, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 8.0}
    config = made("granite", factors)
    keys = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")
    assert [config[key] for key in keys] == list(factors.values())
    neutral = made("granite", dict.fromkeys(factors, 0.0))  # so llama.cpp reads 0
    assert [neutral[key] for key in keys] == [32**-0.5, 1, 1, 1]


def test_a_granite_without_rope_is_refused() -> None:
    assert made("granite", {"rope.scaling.finetuned": True})["model_type"] == "granite"
    with pytest.raises(UnsupportedModel, match="finetuned"):
        made("granite", {"rope.scaling.finetuned": False})


def test_smollm3_has_rope_in_three_of_four_layers() -> None:
    assert made("smollm3", {})["no_rope_layers"] == [1, 1, 1, 0]


def test_olmo_with_windows_is_olmo_3() -> None:
    assert made("olmo2", {})["model_type"] == "olmo2"
    flags = [True, False, True, False]
    more = {"rope.scaling.attn_factor": 1.2079441547393799, "attention.sliding_window_pattern": flags}
    config = made("olmo2", {**SWA, **YARN, **more})
    assert config["model_type"] == "olmo3"
    assert config["layer_types"] == ["sliding_attention", "full_attention"] * 2
    full, local = (config["rope_parameters"][kind] for kind in ("full_attention", "sliding_attention"))
    assert (full["rope_type"], full["factor"], "attention_factor" in full) == ("yarn", 8.0, False)
    assert local == {"rope_type": "default", "rope_theta": 500_000.0}
    odd = made("olmo2", {**SWA, **YARN, "rope.scaling.yarn_attn_factor": 1.5})
    assert odd["rope_parameters"]["full_attention"]["attention_factor"] == 1.5


@pytest.mark.parametrize("flags", [[True, False], [1, 0, 1, 0], "LLLG"])
def test_a_pattern_of_windows_that_is_none_is_refused(flags: object) -> None:
    with pytest.raises(TogetherError, match="sliding_window_pattern"):
        made("exaone4", {**SWA, "attention.sliding_window_pattern": flags})


def test_exaone_has_windows_or_none() -> None:
    assert made("exaone4", {})["sliding_window"] is None
    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    assert made("exaone4", SWA)["layer_types"] == kinds
    assert made("exaone4", {**SWA, "attention.sliding_window_pattern": 4})["layer_types"] == kinds


def test_biases_of_queries_keys_and_values_alone() -> None:
    for architecture in ("seed_oss", "glm4"):
        half = {"rope.dimension_count": 16}
        assert not made(architecture, half if architecture == "glm4" else {})["attention_bias"]
        found = made(architecture, half if architecture == "glm4" else {}, SHAPES | QUERIES)
        assert found["attention_bias"]
        assert not found.get("attention_out_bias")


def test_glm_says_how_much_of_a_head_is_turned() -> None:
    assert made("glm4", {"rope.dimension_count": 8})["rope_parameters"]["partial_rotary_factor"] == 0.25
    with pytest.raises(BrokenModel, match=r"glm4\.rope\.dimension_count"):
        made("glm4", {})
    with pytest.raises(UnsupportedModel, match="dimension_count"):
        made("glm4", {"rope.dimension_count": 48})


def test_phi_without_a_window_writes_0() -> None:
    scaling = {"rope.scaling.original_context_length": 4096}
    assert made("phi3", {**scaling, "attention.sliding_window": 0})["sliding_window"] is None
    assert made("phi3", {**scaling, "attention.sliding_window": 2047})["sliding_window"] == 2047
    with pytest.raises(UnsupportedModel, match="attn_factor"):
        made("phi3", {**scaling, "rope.scaling.attn_factor": 1.19})


def test_ministral_or_mistral() -> None:
    assert made("mistral3", {}, {EMBED: (1000, 256)})["model_type"] == "mistral"
    grown = {"attention.temperature_scale": 0.1, "rope.scaling.yarn_log_multiplier": 1.0}
    config = made("mistral3", {**YARN, **grown})
    assert config["model_type"] == "ministral3"
    rope = config["rope_parameters"]
    assert [rope[key] for key in ("mscale", "mscale_all_dim", "llama_4_scaling_beta")] == [1.0, 1.0, 0.1]
    with pytest.raises(UnsupportedModel, match="default"):
        made("mistral3", grown)
    with pytest.raises(UnsupportedModel, match="beta_fast"):  # as Ollama's own files say it
        made("mistral3", {**YARN, **grown, "rope.scaling.beta_fast": 32.0})


COUNTS = {"expert_count": 8, "expert_used_count": 2}
SHARED = {**COUNTS, "expert_feed_forward_length": 64, "expert_shared_feed_forward_length": 128}
GLM = {
    **SHARED,
    "rope.dimension_count": 16,
    "expert_gating_func": 2,
    "expert_shared_count": 1,
    "expert_weights_scale": 2.5,
    "expert_weights_norm": True,
    "leading_dense_block_count": 1,
    "nextn_predict_layers": 1,
}


def test_a_llama_with_experts_is_a_mixtral() -> None:
    assert made("llama", {"expert_count": 0})["model_type"] == "llama"
    config = made("llama", COUNTS)
    assert config["model_type"] == "mixtral"
    assert (config["num_local_experts"], config["num_experts_per_tok"], config["sliding_window"]) == (8, 2, None)


def test_a_shared_expert_of_its_own_width() -> None:
    config = made("qwen2moe", SHARED)
    assert (config["moe_intermediate_size"], config["shared_expert_intermediate_size"]) == (64, 128)
    assert not config["norm_topk_prob"]  # as llama.cpp has it, without a word in the file
    assert not config["qkv_bias"]
    assert made("qwen2moe", SHARED, SHAPES | QUERIES)["qkv_bias"]


@pytest.mark.parametrize("shape", [(256,), (1, 256)])
def test_older_files_leave_out_an_axis_of_1(shape: tuple[int, ...]) -> None:
    name = "model.layers.0.mlp.shared_expert_gate.weight"
    tensor = TensorInfo(name, Path("m.gguf"), "F32", shape, 0, 1024, gguf=True)
    assert as_stored(made("qwen2moe", SHARED), tensor).shape == (1, 256)


def test_layers_that_predict_more_tokens_do_not_count() -> None:
    norm: dict[str, tuple[int, ...]] = {"model.layers.0.self_attn.q_norm.weight": (32,)}
    config = made("glm4moe", GLM, SHAPES | QUERIES | norm)
    assert config["num_hidden_layers"] == 3
    assert (config["routed_scaling_factor"], config["first_k_dense_replace"], config["n_group"]) == (2.5, 1, 1)
    assert config["norm_topk_prob"]
    assert config["use_qk_norm"]
    assert config["attention_bias"]
    assert not made("glm4moe", GLM)["use_qk_norm"]


@pytest.mark.parametrize(("architecture", "more"), [("glm4moe", GLM), ("minimax-m2", SHARED)])
def test_a_router_of_softmax_is_refused(architecture: str, more: dict[str, Any]) -> None:
    assert made(architecture, {**more, "rope.dimension_count": 16})["num_experts_per_tok"] == 2
    with pytest.raises(UnsupportedModel, match="expert_gating_func"):
        made(architecture, {**more, "rope.dimension_count": 16, "expert_gating_func": 1})


def test_what_one_family_computes_is_refused_in_another() -> None:
    grouped = {"general.architecture": "qwen3moe", "qwen3moe.expert_count": 8, "qwen3moe.expert_group_count": 4}
    with pytest.raises(UnsupportedModel, match="expert_group_count 4"):
        check_settings("m", grouped, FAMILIES["qwen3moe"])
    other = {key.replace("qwen3moe", "glm4moe"): value for key, value in grouped.items()}
    check_settings("m", other | {"general.architecture": "glm4moe"}, FAMILIES["glm4moe"])


HYBRID = {
    "attention.key_length": 64,
    "attention.value_length": 64,
    "rope.dimension_count": 16,
    "rope.dimension_sections": [11, 11, 10, 0],
    "ssm.conv_kernel": 4,
    "ssm.state_size": 16,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 6,
    "ssm.inner_size": 144,
}


def test_recurrent_layers() -> None:
    config = made("qwen35", {**HYBRID, "nextn_predict_layers": 1, "full_attention_interval": 3})
    assert config["layer_types"] == ["linear_attention", "linear_attention", "full_attention"]
    keys = ("key_head_dim", "value_head_dim", "num_key_heads", "num_value_heads", "conv_kernel_dim")
    assert [config[f"linear_{key}"] for key in keys] == [16, 24, 2, 6, 4]
    assert config["rope_parameters"]["partial_rotary_factor"] == 0.25


def test_newer_files_say_which_layers_are_recurrent() -> None:
    """Also of the layers behind the last one, which predict more tokens at once."""
    flags = [False, True, True, False]
    for said in (flags, [int(each) for each in flags]):
        more = {"nextn_predict_layers": 1, "full_attention_interval": 3, "attention.recurrent_layers": said}
        kinds = made("qwen35", {**HYBRID, **more})["layer_types"]
        assert kinds == ["full_attention", "linear_attention", "linear_attention"]


@pytest.mark.parametrize("flags", [[True] * 3, [True, 2, False, False], True, []])
def test_flags_of_recurrent_layers_that_are_none_are_refused(flags: object) -> None:
    with pytest.raises(TogetherError, match="recurrent_layers"):
        made("qwen35", {**HYBRID, "attention.recurrent_layers": flags})


def test_a_model_of_experts_alone_has_no_other_width() -> None:
    config = made("qwen35moe", {**HYBRID, **SHARED, "feed_forward_length": None})
    assert (config["num_experts"], config["moe_intermediate_size"]) == (8, 64)


LATENT = {
    **SHARED,
    "attention.head_count_kv": 1,
    "attention.key_length": 72,
    "attention.value_length": 64,
    "attention.key_length_mla": 24,
    "attention.value_length_mla": 20,
    "attention.kv_lora_rank": 64,
    "attention.q_lora_rank": 48,
    "rope.dimension_count": 8,
    "expert_gating_func": 2,
    "expert_shared_count": 1,
    "expert_weights_norm": True,
    "leading_dense_block_count": 1,
}


def test_heads_of_latent_attention() -> None:
    config = made("deepseek2", LATENT)
    older = {
        "attention.key_length_mla": None,
        "attention.value_length_mla": None,
        "attention.key_length": 24,
        "attention.value_length": 20,
        "attention.head_count_kv": 8,
    }
    for found in (config, made("deepseek2", {**LATENT, **older})):
        keys = ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "head_dim")
        assert [found[key] for key in keys] == [64, 48, 8, 16, 20, 8]
        assert (found["num_key_value_heads"], found["n_group"], found["rope_interleave"]) == (8, 1, True)
        assert found["mlp_layer_types"] == ["dense", "sparse", "sparse", "sparse"]
    assert made("deepseek2", {**LATENT, "attention.q_lora_rank": None})["q_lora_rank"] is None


def test_scales_of_latent_attention_are_ten_times_what_files_say() -> None:
    rope = made("deepseek2", {**LATENT, **YARN, "rope.scaling.yarn_log_multiplier": 0.10000000149011612})
    assert [rope["rope_parameters"][key] for key in ("mscale", "mscale_all_dim")] == [1.0, 1.0]
    with pytest.raises(UnsupportedModel, match="yarn_log_multiplier 'left out'"):
        made("deepseek2", {**LATENT, **YARN})


@pytest.mark.parametrize("said", [None, 1])
def test_deepseek_2_is_refused(said: int | None) -> None:
    """Its router weighs by softmax, also where files say nothing; GLM-4.7-Flash's say nothing and mean another."""
    with pytest.raises(UnsupportedModel, match="expert_gating_func"):
        made("deepseek2", {**LATENT, "expert_gating_func": said})
    words = {f"deepseek2.{key}": value for key, value in {**LATENT, "expert_gating_func": None}.items()}
    config = read(renamed("deepseek2") | words | {"tokenizer.ggml.pre": "glm4"})
    assert config["model_type"] == "glm4_moe_lite"


def test_older_files_of_deepseek_3_leave_out_its_groups() -> None:
    many = {**LATENT, "expert_count": 256, "expert_used_count": 8}
    assert [made("deepseek2", many)[key] for key in ("n_group", "topk_group")] == [8, 4]
    said = made("deepseek2", {**many, "expert_group_count": 1, "expert_group_used_count": 1})
    assert [said[key] for key in ("n_group", "topk_group")] == [1, 1]


GEMMA4 = {
    "feed_forward_length": [512, 512, 512, 1024],
    "attention.head_count_kv": [2, 4, 2, 4],
    "attention.key_length": 64,
    "attention.value_length": 64,
    "attention.key_length_swa": 32,
    "attention.value_length_swa": 32,
    "attention.shared_kv_layers": 1,
    "attention.sliding_window": 512,
    "attention.sliding_window_pattern": [True, False, True, False],
    "embedding_length_per_layer_input": 48,
    "rope.dimension_count": 64,
    "rope.dimension_count_swa": 32,
    "rope.freq_base_swa": 10_000.0,
    "final_logit_softcapping": 30.0,
}
QUARTER = [1.0] * 8 + [1e30] * 24
VALUES: dict[str, tuple[int, ...]] = {
    "model.layers.1.self_attn.v_proj.weight": (256, 256),
    "model.embed_tokens_per_layer.weight": (1024, 192),
}


def gemma4(more: dict[str, Any], shapes: dict[str, tuple[int, ...]] = VALUES, factors: Any = QUARTER) -> dict[str, Any]:
    settings = {f"gemma4.{key}": value for key, value in {**GEMMA4, **more}.items()}
    return read(renamed("gemma4") | settings, {EMBED: (1000, 256)} | shapes, factors)


def test_gemma_4_has_heads_of_two_sizes() -> None:
    config = gemma4({})
    keys = ("head_dim", "global_head_dim", "num_key_value_heads", "num_kv_shared_layers", "double_intermediate_size")
    assert [config[key] for key in keys] == [32, 64, 2, 1, 1024]
    assert (config["hidden_size_per_layer_input"], config["vocab_size_per_layer_input"]) == (48, 1024)
    rope = config["rope_parameters"]
    assert rope["full_attention"]["partial_rotary_factor"] == 0.25
    assert rope["full_attention"]["rope_theta"] == 500_000.0
    assert rope["sliding_attention"] == {"rope_type": "default", "rope_theta": 10_000.0}
    assert (config["final_logit_softcapping"], config["sliding_window"]) == (30.0, 512)
    assert not config["attention_k_eq_v"]
    assert gemma4({}, {})["num_global_key_value_heads"] == 4  # without values, keys are the values


@pytest.mark.parametrize(
    ("more", "factors", "said"),
    [
        ({"feed_forward_length": [512, 1024, 512, 512]}, QUARTER, "feed_forward_length"),
        ({"attention.head_count_kv": [2, 4, 1, 4]}, QUARTER, "head_count_kv"),
        ({"rope.dimension_count_swa": 16}, QUARTER, "dimension_count_swa"),
        ({}, [1.0] * 8 + [4.0] * 24, "rope_freqs"),
        ({}, QUARTER[:16], "rope_freqs"),
        ({}, (), "rope_freqs"),
        ({"attention.sliding_window_pattern": [True] * 4}, QUARTER, "dimension_count_swa"),
    ],
)
def test_another_gemma_4_is_refused(more: dict[str, Any], factors: Any, said: str) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        gemma4(more, factors=factors)


def test_experts_of_gemma_4() -> None:
    many = {**COUNTS, "expert_feed_forward_length": 64}
    config = gemma4(many)
    keys = ("enable_moe_block", "num_experts", "top_k_experts", "num_experts_per_tok", "moe_intermediate_size")
    assert [config[key] for key in keys] == [True, 8, 2, 2, 64]
    assert not gemma4({})["enable_moe_block"]
    check_settings("m", {"general.architecture": "gemma4", "gemma4.expert_count": 128}, FAMILIES["gemma4"])
