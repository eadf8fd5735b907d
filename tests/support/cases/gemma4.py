"""Gemma 4: heads of two sizes, values that are keys, a rope of a part of each, and a cap on logits."""

from tests.support.case import Case

_NONE = {"hidden_size_per_layer_input": 0, "tie_word_embeddings": True}  # as dense models have it
_SLIDING, _FULL = "sliding_attention", "full_attention"
_KINDS = [_SLIDING, _FULL, _SLIDING, _FULL]

CASES = (
    Case(
        "gemma4_text",
        "gemma4_text",
        {
            **_NONE,
            "head_dim": 24,
            "global_head_dim": 40,  # a quarter is turned, which is no even number of pairs
            "num_key_value_heads": 2,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "sliding_window": 8,
            "layer_types": _KINDS,
            "final_logit_softcapping": 2.5,
        },
    ),
    Case(
        "gemma4-shared",
        "gemma4_text",
        {
            "tie_word_embeddings": True,
            "num_hidden_layers": 6,
            "vocab_size_per_layer_input": 160,
            "hidden_size_per_layer_input": 12,
            "head_dim": 24,
            "global_head_dim": 40,
            "num_key_value_heads": 1,
            "sliding_window": 8,
            "layer_types": [_FULL, _SLIDING, _FULL, _SLIDING, _SLIDING, _FULL],
            "num_kv_shared_layers": 2,  # one reads the layer before it, and one what lies three before
            "use_double_wide_mlp": True,
        },
        wide={"hidden_size_per_layer_input": 128},
    ),
    Case(
        "gemma4-experts",
        "gemma4_text",
        {
            **_NONE,
            "head_dim": 32,
            "global_head_dim": 48,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "sliding_window": 8,
            "layer_types": _KINDS,
            "enable_moe_block": True,
            "num_experts": 5,
            "top_k_experts": 2,
            "moe_intermediate_size": 40,
        },
        cut=1,
        wide={"moe_intermediate_size": 128},
    ),
    Case(
        "gemma4-wide",
        "gemma4_text",
        {
            **_NONE,
            "head_dim": 32,
            "global_head_dim": 64,
            "sliding_window": 8,
            "layer_types": [_FULL, _SLIDING, _SLIDING, _FULL],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
                "full_attention": {
                    "rope_type": "proportional",
                    "rope_theta": 1000.0,
                    "partial_rotary_factor": 0.55,
                    "factor": 2.0,
                },
            },
        },
    ),
)
