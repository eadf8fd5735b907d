"""OLMoE: OLMo's norms of all heads together, and experts in every layer."""

from __future__ import annotations

from typing import Any

from together.models.family import (
    GGUF_COUNTS,
    GGUF_EXPERTS,
    GGUF_HEAD_NORMS,
    GGUF_USUAL,
    Config,
    Family,
    GgufNames,
    Tensors,
    attention_tensors,
    expert_tensors,
    experts_of,
    norm_tensors,
    wide_norm_tensors,
)
from together.models.values import Values


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    yield from attention_tensors(config, layer)
    yield from wide_norm_tensors(config, layer)
    yield from norm_tensors(config, layer, "input_layernorm", "post_attention_layernorm")
    yield from expert_tensors(config, layer, stacked, inner="intermediate_size")


def _more(values: Values, config: Config) -> dict[str, Any]:
    experts = experts_of(values, config, ("num_experts", "num_local_experts"), 64)
    return {"num_experts": experts, "clip_qkv": values.number("clip_qkv", None)}


FAMILIES = (
    Family(
        name="olmoe",
        title="OLMoE",
        torch=("olmoe", "Olmoe"),
        counts={
            "vocab_size": 50304,
            "intermediate_size": 2048,
            "num_attention_heads": 16,
            "num_key_value_heads": None,
            "head_dim": None,
            "max_position_embeddings": 4096,
            "num_experts_per_tok": 8,
        },
        switches=("attention_bias", "norm_topk_prob"),
        more=_more,
        tensors=_tensors,
        epsilon=1e-5,
        experts="num_experts",
        gguf=GgufNames(
            "olmoe",
            {**GGUF_USUAL, **GGUF_HEAD_NORMS, **GGUF_EXPERTS},
            computed=(*GGUF_COUNTS, "expert_weights_norm"),
        ),
        ignored_by_mlx=lambda config: () if config["clip_qkv"] is None else (f"clip_qkv {config['clip_qkv']}",),
    ),
)
