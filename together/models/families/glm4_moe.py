"""GLM-4.5 to 4.7: dense layers first, then experts beside a shared one; rope turns half of each head.

Checkpoints end with a layer that predicts more tokens at once; nobody asks for it.
"""

from __future__ import annotations

from typing import Any

from together.models.family import (
    GGUF_COUNTS,
    GGUF_EXPERTS,
    GGUF_GROUPED,
    GGUF_HEAD_NORMS,
    GGUF_OF_ALL,
    GGUF_USUAL,
    INPUTS,
    Config,
    Family,
    GgufNames,
    Tensors,
    attention_tensors,
    head_norm_tensors,
    mlp_tensors,
    norm_tensors,
    usual_range,
)
from together.models.grouped import grouped_experts, shared_expert_tensors
from together.models.values import Values
from together.types import LayerRange


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    yield from attention_tensors(config, layer, INPUTS if config["attention_bias"] else ())
    if config["use_qk_norm"]:
        yield from head_norm_tensors(config, layer)
    yield from norm_tensors(config, layer, "input_layernorm", "post_attention_layernorm")
    if layer < config["first_k_dense_replace"]:
        yield from mlp_tensors(config, layer)
    else:
        yield from shared_expert_tensors(config, layer, stacked)


def _more(values: Values, config: Config) -> dict[str, Any]:
    return {
        "n_routed_experts": grouped_experts(values, config, 128),
        "first_k_dense_replace": values.count_or_none("first_k_dense_replace", 1),
        "routed_scaling_factor": values.number("routed_scaling_factor", 1.0),
    }


def _ranged(config: Config, layers: LayerRange) -> dict[str, Any]:
    dense = max(0, config["first_k_dense_replace"] - layers.start)
    return usual_range(config, layers) | {"first_k_dense_replace": dense}


FAMILIES = (
    Family(
        name="glm4_moe",
        title="GLM-4.5 to 4.7",
        torch=("glm4_moe", "Glm4Moe"),
        mlx_settings={"partial_rotary_factor": 0.5},  # asked for; each layer gets its rope from us
        counts={
            "vocab_size": 151552,
            "intermediate_size": 10944,
            "num_attention_heads": 96,
            "num_key_value_heads": 8,
            "head_dim": None,
            "max_position_embeddings": 131072,
            "moe_intermediate_size": 1408,
            "num_experts_per_tok": 8,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
        },
        switches=("attention_bias", "use_qk_norm"),
        on=("norm_topk_prob",),
        more=_more,
        tensors=_tensors,
        ranged=_ranged,
        epsilon=1e-5,
        rotary=0.5,
        rotaries=True,
        experts="n_routed_experts",
        gguf=GgufNames(
            "glm4moe",
            {
                **GGUF_USUAL,
                **GGUF_HEAD_NORMS,
                **GGUF_EXPERTS,
                "post_attention_norm": "post_attention_layernorm",
                **GGUF_OF_ALL,
            },
            whole={"exp_probs_b.bias": "mlp.gate.e_score_correction_bias"},
            computed=(*GGUF_COUNTS, *GGUF_GROUPED),
        ),
    ),
)
