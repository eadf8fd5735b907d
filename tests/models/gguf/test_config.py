"""What a GGUF file's metadata says becomes a config.json that means the same; what does not run is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from together.errors import BrokenModel, TogetherError, UnsupportedModel
from together.models.config import effective
from together.models.gguf.config import config_of

EMBED = "model.embed_tokens.weight"
LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 4,
    "llama.context_length": 8192,
    "llama.embedding_length": 256,
    "llama.feed_forward_length": 512,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 500_000.0,
    "tokenizer.ggml.eos_token_id": 9,
    "tokenizer.ggml.eot_token_id": 7,
}
SHAPES: dict[str, tuple[int, ...]] = {EMBED: (1000, 256), "lm_head.weight": (1000, 256)}


def read(metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]] = SHAPES, factors: Any = ()) -> dict[str, Any]:
    """The effective configuration, without what the file leaves out (None in `metadata`)."""
    given = {key: value for key, value in metadata.items() if value is not None}
    return effective("m", config_of("m", given, shapes, factors))


def renamed(architecture: str) -> dict[str, Any]:
    found = {key.replace("llama.", f"{architecture}.", 1): value for key, value in LLAMA.items()}
    return found | {"general.architecture": architecture}


def test_a_llama() -> None:
    config = read(LLAMA)
    assert config["model_type"] == "llama"
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (8, 2, 32)
    assert config["vocab_size"] == 1000
    assert config["eos_token_id"] == [9, 7]
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 500_000.0}
    assert not config["tie_word_embeddings"]
    assert read(LLAMA, {EMBED: (1000, 256)})["tie_word_embeddings"]


def test_values_for_each_layer_that_are_alike_are_one() -> None:
    assert read(LLAMA | {"llama.attention.head_count_kv": [2, 2, 2, 2]})["num_key_value_heads"] == 2
    with pytest.raises(UnsupportedModel, match=r"llama\.attention\.head_count_kv"):
        read(LLAMA | {"llama.attention.head_count_kv": [2, 4, 2, 2]})


def test_no_word_of_key_heads_means_as_many_as_heads() -> None:
    assert read(LLAMA | {"llama.attention.head_count_kv": None})["num_key_value_heads"] == 8


def llama3_factors(factor: float, **more: Any) -> list[float]:
    """What llama.cpp's converter stores, by transformers' own frequencies."""
    scaling = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, **more}
    rope = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": factor, **scaling}
    config = LlamaConfig(head_dim=32, rope_parameters=rope, max_position_embeddings=131_072)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / (500_000.0 ** (torch.arange(0, 32, 2) / 32))
    return [float(value) for value in plain / scaled]


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_says_its_rope_by_factors(factor: float) -> None:
    rope = read(LLAMA | {"llama.rope.dimension_count": None}, factors=llama3_factors(factor))["rope_parameters"]
    assert (rope["rope_type"], rope["factor"]) == ("llama3", factor)
    assert rope["original_max_position_embeddings"] == 8192


def test_factors_of_another_rope_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"rope_freqs\.weight"):
        read(LLAMA, factors=llama3_factors(8.0, high_freq_factor=8.0))
    with pytest.raises(UnsupportedModel, match=r"rope_freqs\.weight beside"):
        read(LLAMA | {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}, factors=[2.0] * 16)
    with pytest.raises(UnsupportedModel, match=r"rope_freqs\.weight of length 15"):
        read(LLAMA, factors=llama3_factors(8.0)[:15])
    for wrong in (float("nan"), float("inf"), 0.0, -1.0):
        with pytest.raises(UnsupportedModel, match=r"rope_freqs\.weight"):
            read(LLAMA, factors=[*llama3_factors(8.0)[:15], wrong])
    assert read(LLAMA, factors=[1.0] * 16)["rope_parameters"]["rope_type"] == "default"


def test_scaled_ropes() -> None:
    linear = read(LLAMA | {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0})
    assert linear["rope_parameters"] == {"rope_type": "linear", "rope_theta": 500_000.0, "factor": 4.0}
    yarn = {"type": "yarn", "factor": 4.0, "original_context_length": 2048}
    found = read(LLAMA | {f"llama.rope.scaling.{key}": value for key, value in yarn.items()})["rope_parameters"]
    assert (found["rope_type"], found["factor"], found["original_max_position_embeddings"]) == ("yarn", 4.0, 2048)
    assert read(LLAMA | {"llama.rope.scaling.type": "none"})["rope_parameters"]["rope_type"] == "default"


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("general.architecture", "rwkv6", "rwkv6"),
        ("general.architecture", None, "None"),
        ("llama.rope.scaling.type", "longrope", "longrope"),
        ("llama.attention.value_length", 16, "value_length"),
        ("llama.rope.dimension_count", 16, "dimension_count"),
        ("llama.block_count", 0, "block_count"),
        ("llama.block_count", None, "block_count"),
        ("llama.embedding_length", "256", "embedding_length"),
        ("llama.attention.layer_norm_rms_epsilon", -1.0, "epsilon"),
        ("llama.attention.head_count", float("nan"), "head_count"),
        ("llama.rope.freq_base", float("nan"), "freq_base"),
    ],
)
def test_what_is_missing_or_does_not_run_is_named(key: str, value: object, word: str) -> None:
    with pytest.raises(TogetherError, match=word):
        read(LLAMA | {key: value})


@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
def test_a_factor_without_a_type_is_linear(key: str) -> None:
    """So llama.cpp reads it; older files have the second key alone."""
    found = read(LLAMA | {f"llama.{key}": 4.0})["rope_parameters"]
    assert (found["rope_type"], found["factor"]) == ("linear", 4.0)
    for neutral in (0.0, 1.0):
        assert read(LLAMA | {f"llama.{key}": neutral})["rope_parameters"]["rope_type"] == "default"


def test_a_factor_of_attention_is_refused_without_a_type_too() -> None:
    assert read(LLAMA | {"llama.rope.scaling.attn_factor": 1.0})["rope_parameters"]["rope_type"] == "default"
    with pytest.raises(UnsupportedModel, match="attn_factor"):
        read(LLAMA | {"llama.rope.scaling.attn_factor": 1.2})


def test_yarn_with_more_settings_is_refused() -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_context_length": 2048, "yarn_log_multiplier": 0.1}
    with pytest.raises(UnsupportedModel, match="yarn_log_multiplier"):
        read(LLAMA | {f"llama.rope.scaling.{key}": value for key, value in scaling.items()})


def test_without_an_embedding_it_is_no_model() -> None:
    with pytest.raises(BrokenModel, match=r"token_embd\.weight"):
        read(LLAMA, {})


def test_a_window_makes_it_a_mistral() -> None:
    config = read(LLAMA | {"llama.attention.sliding_window": 4096})
    assert (config["model_type"], config["sliding_window"]) == ("mistral", 4096)


@pytest.mark.parametrize(("layers", "scalar"), [(34, 64), (62, 32)])
def test_a_gemma(layers: int, scalar: int) -> None:
    more = {"attention.sliding_window": 512, "attention.key_length": 64, "attention.value_length": 64}
    found = renamed("gemma3") | {f"gemma3.{key}": value for key, value in more.items()}
    found |= {"gemma3.block_count": layers, "gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    config = read(found, {EMBED: (1000, 256)})
    assert config["query_pre_attn_scalar"] == scalar
    assert config["layer_types"][:6] == ["sliding_attention"] * 5 + ["full_attention"]
    assert config["rope_parameters"]["full_attention"]["factor"] == 8.0
    assert config["rope_parameters"]["sliding_attention"]["rope_theta"] == 10_000.0


def test_experts() -> None:
    counts = {"expert_count": 16, "expert_used_count": 4, "expert_feed_forward_length": 128}
    config = read(renamed("qwen3moe") | {f"qwen3moe.{key}": value for key, value in counts.items()})
    assert (config["num_experts"], config["num_experts_per_tok"], config["moe_intermediate_size"]) == (16, 4, 128)
    assert config["norm_topk_prob"]


def test_gpt_oss_has_what_no_file_says() -> None:
    settings = {
        "expert_count": 32,
        "expert_used_count": 4,
        "expert_feed_forward_length": 128,
        "attention.sliding_window": 128,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 32.0,
        "rope.scaling.original_context_length": 4096,
        "rope.scaling.yarn_beta_fast": 16.0,
    }
    bias: dict[str, tuple[int, ...]] = {"model.layers.0.self_attn.o_proj.bias": (256,)}
    config = read(renamed("gpt-oss") | {f"gpt-oss.{key}": value for key, value in settings.items()}, SHAPES | bias)
    assert (config["num_local_experts"], config["num_experts_per_tok"], config["intermediate_size"]) == (32, 4, 128)
    assert config["layer_types"] == ["sliding_attention", "full_attention"] * 2
    assert config["attention_bias"]
    rope = config["rope_parameters"]
    assert (rope["truncate"], rope["beta_fast"], rope["factor"]) == (False, 16.0, 32.0)


def test_biases_are_asked_for_where_they_are_stored() -> None:
    assert not read(LLAMA)["attention_bias"]
    bias: dict[str, tuple[int, ...]] = {
        "model.layers.0.self_attn.o_proj.bias": (256,),
        "model.layers.0.mlp.down_proj.bias": (256,),
    }
    config = read(LLAMA, SHAPES | bias)
    assert config["attention_bias"]
    assert config["mlp_bias"]
