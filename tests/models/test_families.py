"""What a family reads of config.json beside what all of them do."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.families import WRAPPED, model_class
from together.errors import BrokenModel, TogetherError, UnsupportedModel
from together.models.config import effective
from together.models.families import BY_NAME
from together.models.rope import settled

GEMMA: dict[str, Any] = {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0}
IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "architectures")  # nobody reads their defaults
SHAPE: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPE |= {"mamba_n_heads": 4}  # Granite 4's share 96 values among them


@pytest.mark.parametrize("family", BY_NAME)
def test_a_configuration_in_the_normal_form_stays_as_it_is(family: str) -> None:
    found = effective("tiny", {**SHAPE, "model_type": family})
    assert effective("tiny", found) == found


SAID_OTHERWISE = {  # the same in other words
    "deepseek_v3": {"num_nextn_predict_layers"},  # layers that nobody runs
    "exaone4": {"sliding_window_pattern"},  # letters for a number
    "granitemoehybrid": {"position_embedding_type", "time_step_limit"},  # a word for none, and a number without end
    "ministral3": {"rope_parameters"},  # without a length that nobody reads
    "mixtral": {"head_dim"},  # None for what follows from other numbers
    "nemotron_h": {"n_routed_experts", "time_step_limit"},  # of no layer; what transformers makes of time_step_min
    "phi3": {"rope_parameters"},  # which part of a head is turned, where that is all of it
    "qwen3_vl_text": {"rope_parameters"},  # with the sections that its class assumes
    "qwen2_moe": {"sliding_window"},  # 0 for none
}


@pytest.mark.parametrize("family", BY_NAME)
def test_what_a_file_does_not_say_is_what_transformers_assumes(family: str) -> None:
    silent = {"hidden_size": 12288, "num_hidden_layers": 4}
    kind = model_class(family).config_class
    theirs = (kind(text_config=silent).text_config if family in WRAPPED else kind(**silent)).to_dict()
    ours = effective("tiny", {**silent, "model_type": family})
    different = {key for key, value in ours.items() if key in theirs and key not in IDS and value != theirs[key]}
    assert different == SAID_OTHERWISE.get(family, set())


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        (
            {"model_type": "smollm3", "no_rope_layers": [1, 0]},
            BrokenModel,
            "for other layers than its 4",
        ),
        (GEMMA | {"num_kv_shared_layers": 4}, BrokenModel, "num_kv_shared_layers = 4"),
        (GEMMA | {"num_kv_shared_layers": 1}, BrokenModel, "num_kv_shared_layers = 1"),  # no other sees everything
        (
            GEMMA | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 10},
            BrokenModel,
            "vocab_size_per_layer_input = 10",
        ),
        (GEMMA | {"enable_moe_block": True}, BrokenModel, "top_k_experts = None"),
        (GEMMA | {"enable_moe_block": True, "top_k_experts": 2}, BrokenModel, "num_experts = 0"),
        (GEMMA | {"layer_types": ["sliding_attention"] * 4}, UnsupportedModel, "a window in its last layer"),
        (GEMMA | {"sliding_window": None}, BrokenModel, "sliding_window = None"),
        (GEMMA | {"global_head_dim": 5}, BrokenModel, "global_head_dim = 5"),
        (
            GEMMA | {"attention_k_eq_v": True, "num_global_key_value_heads": 3},
            BrokenModel,
            "num_global_key_value_heads = 3",
        ),
        (GEMMA | {"use_bidirectional_attention": "all"}, UnsupportedModel, "both directions"),
        (GEMMA | {"partial_rotary_factor": 0.5}, UnsupportedModel, "rope of the kind default that turns a part"),
        (GEMMA | {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, UnsupportedModel, "by 'yarn'"),
        (GEMMA | {"per_layer_config": {"0": {"head_dim": 8}}}, UnsupportedModel, "settings of single layers"),
        (
            GEMMA | {"per_layer_config": {"3": {"num_key_value_heads": 1}}},
            UnsupportedModel,
            "settings of single layers",
        ),
        (GEMMA | {"per_layer_config": {"3": {"skip": ["mlp"]}}}, UnsupportedModel, "settings of single layers"),
        (GEMMA | {"per_layer_config": {"x": {}}}, BrokenModel, "per_layer_config"),
        ({"model_type": "granitemoehybrid", "mamba_n_heads": 5}, BrokenModel, "mamba_d_head = None"),
        ({"model_type": "granitemoehybrid", "mamba_d_head": 20}, BrokenModel, "mamba_d_head = 20"),
        ({"model_type": "granitemoehybrid", "mamba_n_groups": 3}, BrokenModel, "mamba_n_groups = 3"),
        ({"model_type": "granitemoehybrid", "mamba_d_conv": 1}, BrokenModel, "mamba_d_conv = 1"),
        ({"model_type": "granitemoehybrid", "time_step_limit": [2, 1]}, BrokenModel, r"time_step_limit = \[2, 1\]"),
        ({"model_type": "granitemoehybrid", "position_embedding_type": "alibi"}, UnsupportedModel, "'alibi'"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "MM*"}, BrokenModel, "for other layers than its 4"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "MM*|"}, UnsupportedModel, r"of the kind '\|'"),
        ({"model_type": "nemotron_h", "tie_word_embeddings": True}, UnsupportedModel, "ties its LM head"),
        ({"model_type": "nemotron_h", "mamba_hidden_act": "gelu"}, UnsupportedModel, "mamba_hidden_act 'gelu'"),
        ({"model_type": "nemotron_h", "n_groups": 3}, BrokenModel, "n_groups = 3"),
        ({"model_type": "smollm3", "no_rope_layers": "all"}, BrokenModel, "no_rope_layers"),
        (
            {"model_type": "llama", "rope_scaling": {"type": "longrope"}},
            UnsupportedModel,
            "by 'longrope', which",
        ),
        ({"model_type": "phi3", "rope_scaling": {"type": "longrope"}}, BrokenModel, "short_factor = None"),
        (
            {"model_type": "phi3", "rope_scaling": {"type": "su", "short_factor": [1] * 6, "long_factor": [2] * 5}},
            BrokenModel,
            r"long_factor = \[2.0, ",
        ),
        ({"model_type": "phi3", "partial_rotary_factor": 2.0}, BrokenModel, "partial_rotary_factor = 2.0"),
        (
            {"model_type": "ministral3", "rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            BrokenModel,
            "llama_4_scaling_beta",
        ),
        (
            {"model_type": "ministral3", "rope_theta": 1e4, "rope_scaling": {"type": "linear"}},
            UnsupportedModel,
            "linear",
        ),
        (
            {"model_type": "ministral3", "sliding_window": 8, "layer_types": ["full_attention"] * 4},
            UnsupportedModel,
            "layers without one",
        ),
        ({"model_type": "llama4_text", "no_rope_layers": [1, 0]}, BrokenModel, r"no_rope_layers = \[1, 0\]"),
        ({"model_type": "llama4_text", "moe_layers": [4]}, BrokenModel, r"moe_layers = \[4\]"),
        ({"model_type": "llama4_text", "attn_temperature_tuning": "on"}, BrokenModel, "attn_temperature_tuning = 'on'"),
        (
            {"model_type": "llama4_text", "attention_chunk_size": None, "layer_types": ["chunked_attention"] * 4},
            BrokenModel,
            "attention_chunk_size = None",
        ),
        ({"model_type": "phi3", "sliding_window": -1}, BrokenModel, "sliding_window = -1"),
        ({"model_type": "olmo3", "layer_types": ["full_attention"]}, BrokenModel, "layer_types for other layers"),
        ({"model_type": "olmo3", "layer_types": ["round"] * 4}, UnsupportedModel, "layers of the kind 'round'"),
        ({"model_type": "deepseek_v3", "scoring_func": "softmax"}, UnsupportedModel, "scoring_func 'softmax'"),
        ({"model_type": "kimi_k2", "moe_layer_freq": 2}, UnsupportedModel, "moe_layer_freq = 2"),
        ({"model_type": "glm4_moe_lite", "n_group": 5}, BrokenModel, "n_routed_experts = 64"),
        ({"model_type": "glm4_moe", "n_routed_experts": 9, "n_group": 4}, BrokenModel, "n_routed_experts = 9"),
        ({"model_type": "glm4_moe", "n_group": 2, "topk_group": 3}, BrokenModel, "topk_group = 3"),
        ({"model_type": "glm4_moe", "scoring_func": "softmax"}, UnsupportedModel, "scoring_func 'softmax'"),
        ({"model_type": "minimax_m2", "num_local_experts": 0}, BrokenModel, "num_local_experts = 0"),
        ({"model_type": "minimax_m2", "rotary_dim": "half"}, BrokenModel, "rotary_dim = 'half'"),
        ({"model_type": "olmoe", "num_experts": 0}, BrokenModel, "num_experts = 0"),
        ({"model_type": "qwen2_moe", "mlp_only_layers": "all"}, BrokenModel, "mlp_only_layers = 'all'"),
        ({"model_type": "granite", "logits_scaling": 0}, BrokenModel, "logits_scaling = 0"),
        ({"model_type": "llama", "partial_rotary_factor": 0.5}, UnsupportedModel, "a part of each head"),
    ],
)
def test_values_that_are_none_are_named(config: dict[str, Any], error: type[TogetherError], said: str) -> None:
    with pytest.raises(error, match=said):
        effective("tiny", SHAPE | config)


def test_a_rope_for_long_texts() -> None:
    """In Phi-3.5's words, and by its class's own length where that is not said."""
    factors = {"short_factor": [1] * 6, "long_factor": [2] * 6}
    words = SHAPE | {"model_type": "phi3", "max_position_embeddings": 131072, "rope_scaling": {"type": "su"} | factors}
    rope = effective("tiny", words)["rope_parameters"]
    assert (rope["rope_type"], rope["original_max_position_embeddings"]) == ("longrope", 4096)
    assert rope["attention_factor"] == pytest.approx(1.1902380714238083)
    said = effective("tiny", words | {"original_max_position_embeddings": 131072})["rope_parameters"]
    assert said["attention_factor"] == 1.0
    for stretched, factor in ((False, 1.0), (True, 2.0)):
        chosen = settled({"rope_parameters": rope}, stretched=stretched)["rope_parameters"]
        assert chosen["short_factor"] == chosen["long_factor"] == [factor] * 6


@pytest.mark.parametrize(
    ("at_top", "inside", "named"),
    [(1, None, "= 1"), (200_000, None, "= 200000"), (4096, 8192, "= 8192"), (None, 8192, "= 8192")],
)
def test_lengths_of_a_rope_for_long_texts_that_cannot_be(at_top: int | None, inside: int | None, named: str) -> None:
    """They choose the factors by which a whole ring turns."""
    scaling = {"type": "longrope", "short_factor": [1] * 6, "long_factor": [2] * 6}
    words = {"model_type": "phi3", "max_position_embeddings": 131072, "original_max_position_embeddings": at_top}
    with pytest.raises(BrokenModel, match=f"original_max_position_embeddings {named}"):
        effective("tiny", SHAPE | words | {"rope_scaling": scaling | {"original_max_position_embeddings": inside}})


def test_layers_without_rope_may_have_a_window() -> None:
    config = SHAPE | {"model_type": "smollm3", "use_sliding_window": True, "sliding_window": 8}
    found = effective("tiny", config)
    assert found["no_rope_layers"] == [1, 1, 1, 0]
    assert found["layer_types"] == ["full_attention"] * 3 + ["sliding_attention"]


def test_llama_4_in_scouts_words() -> None:
    """With an empty list of layers, and a number for a switch; without chunks every layer sees everything."""
    words = SHAPE | {"model_type": "llama4_text", "no_rope_layers": [], "attn_temperature_tuning": 4}
    found = effective("tiny", words)
    assert found["no_rope_layers"] == [1, 1, 1, 0]
    assert found["layer_types"] == ["chunked_attention"] * 3 + ["full_attention"]
    assert (found["attn_temperature_tuning"], found["moe_layers"]) == (True, [0, 1, 2, 3])
    assert effective("tiny", words | {"interleave_moe_layer_step": 2})["moe_layers"] == [1, 3]
    assert set(effective("tiny", words | {"attention_chunk_size": None})["layer_types"]) == {"full_attention"}


@pytest.mark.parametrize(
    ("pattern", "letters"),
    [({"sliding_window_pattern": "LLG"}, "LLGG"), ({}, "LLLG"), ({"sliding_window_pattern": 2}, "LGLG")],
)
def test_patterns_of_windows(pattern: dict[str, Any], letters: str) -> None:
    """EXAONE's last layer sees everything where letters say the rest."""
    found = effective("tiny", SHAPE | {"model_type": "exaone4"} | pattern)
    assert found["sliding_window_pattern"] == letters
    assert ["L" if kind.startswith("sliding") else "G" for kind in found["layer_types"]] == list(letters)


def test_a_pattern_that_is_none_is_named() -> None:
    with pytest.raises(BrokenModel, match="sliding_window_pattern = 'LX'"):
        effective("tiny", SHAPE | {"model_type": "exaone4", "sliding_window_pattern": "LX"})


@pytest.mark.parametrize(("family", "theta"), [("smollm3", 2e6), ("olmo2", 1e4), ("phi3", 1e4)])
def test_theta_is_transformers_own_where_nothing_is_said(family: str, theta: float) -> None:
    assert effective("tiny", SHAPE | {"model_type": family})["rope_parameters"]["rope_theta"] == theta


def test_theta_of_both_kinds_of_layers() -> None:
    ropes = effective("tiny", SHAPE | {"model_type": "olmo3"})["rope_parameters"]
    assert {rope["rope_theta"] for rope in ropes.values()} == {5e5}


def test_an_attention_factor_that_follows_from_the_factor_is_as_good_as_absent() -> None:
    yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}

    def rope(**more: float) -> Any:
        return effective("tiny", SHAPE | {"model_type": "llama", "rope_scaling": yarn | more})["rope_parameters"]

    assert rope(attention_factor=1.2079441541679836) == rope()
    assert rope(attention_factor=1.2)["attention_factor"] == 1.2


def test_a_theta_for_the_whole_of_olmo_3_is_that_of_layers_without_a_window() -> None:
    found = effective("tiny", SHAPE | {"model_type": "olmo3", "rope_theta": 10_000.0})["rope_parameters"]
    assert {kind: each["rope_theta"] for kind, each in found.items()} == {
        "sliding_attention": 500_000.0,
        "full_attention": 10_000.0,
    }


def test_the_part_that_rope_turns_may_be_a_number_of_values() -> None:
    """As MiniMax publishes it."""
    found = effective("tiny", SHAPE | {"model_type": "minimax_m2", "head_dim": 32, "rotary_dim": 8})
    assert found["rope_parameters"]["partial_rotary_factor"] == 0.25


def test_every_other_of_qwen2_moes_first_layers_has_a_window() -> None:
    config = SHAPE | {"model_type": "qwen2_moe", "use_sliding_window": True, "max_window_layers": 2}
    kinds = effective("tiny", config)["layer_types"]
    assert kinds == ["sliding_attention", "full_attention", "full_attention", "full_attention"]


def test_queries_that_do_not_grow() -> None:
    """0 is a value of its own, where other numbers of a rope must be larger."""
    rope = {"type": "yarn", "rope_theta": 1e6, "factor": 4.0, "llama_4_scaling_beta": 0, "mscale_all_dim": 0}
    found = effective("tiny", SHAPE | {"model_type": "ministral3", "rope_parameters": rope})["rope_parameters"]
    assert found == {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 4.0,
        "original_max_position_embeddings": 262144,
        "llama_4_scaling_beta": 0.0,
    }


def test_heads_of_gemma_4_in_hubs_words_and_as_transformers_saves_them() -> None:
    """In 31B's words, with what its class says of pictures alone."""
    kinds = ["sliding_attention", "full_attention"] * 2
    words = {"attention_k_eq_v": True, "layer_types": kinds, "use_bidirectional_attention": "vision"}
    hub = {"global_head_dim": 64, "num_global_key_value_heads": 1}
    saved = {"per_layer_config": {str(layer): {"head_dim": 64, "num_key_value_heads": 1} for layer in (1, 3)}}
    one, other = (effective("tiny", SHAPE | GEMMA | words | each) for each in (hub, saved))
    assert one == other
    state = BY_NAME["gemma4_text"].state
    assert [state(one, layer).per_token for layer in (0, 1)] == [2 * 2 * 256, 2 * 1 * 64]
    gated = effective("tiny", SHAPE | GEMMA | words | hub | {"attention_k_eq_v": False})
    assert gated["num_global_key_value_heads"] == 2, "the other heads' number, as both libraries have it"
