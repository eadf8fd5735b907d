"""Qwen3, dense and with experts: each head's queries and keys have norms."""

from __future__ import annotations

from functools import partial
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
    head_norm_tensors,
    mlp_tensors,
    norm_tensors,
    qwen_windows,
    some_sparse,
)
from together.models.values import Values


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    yield from attention_tensors(config, layer)
    yield from head_norm_tensors(config, layer)
    yield from norm_tensors(config, layer, "input_layernorm", "post_attention_layernorm")
    if layer in config.get("mlp_only_layers", range(layer + 1)):
        yield from mlp_tensors(config, layer)
    else:
        yield from expert_tensors(config, layer, stacked)


def _experts(values: Values, config: Config) -> dict[str, Any]:
    return qwen_windows(values, config, typed=False) | some_sparse(values, config, 128)


FAMILIES = (
    Family(
        name="qwen3",
        title="Qwen3",
        torch=("qwen3", "Qwen3"),
        counts={
            "vocab_size": 151936,
            "intermediate_size": 22016,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "max_position_embeddings": 32768,
        },
        switches=("attention_bias",),
        more=partial(qwen_windows, typed=True),
        tensors=_tensors,
        written=True,
        gguf=GgufNames("qwen3", {**GGUF_USUAL, **GGUF_HEAD_NORMS}),
    ),
    Family(
        name="qwen3_moe",
        title="Qwen3-MoE",
        torch=("qwen3_moe", "Qwen3Moe"),
        counts={
            "vocab_size": 151936,
            "intermediate_size": 6144,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": None,
            "max_position_embeddings": 32768,
            "moe_intermediate_size": 768,
            "num_experts_per_tok": 8,
            "decoder_sparse_step": 1,
        },
        switches=("attention_bias", "norm_topk_prob"),
        more=_experts,
        tensors=_tensors,
        written=True,
        gguf=GgufNames("qwen3moe", {**GGUF_USUAL, **GGUF_HEAD_NORMS, **GGUF_EXPERTS}, computed=GGUF_COUNTS),
        experts="num_experts",
        scaled_on_mlx=False,
    ),
)
