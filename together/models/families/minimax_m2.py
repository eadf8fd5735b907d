"""MiniMax M2: 256 experts chosen by corrected scores, norms of all heads together, rope over a part of each head."""

from __future__ import annotations

from typing import Any

from together.models.family import (
    GGUF_COUNTS,
    GGUF_HEAD_NORMS,
    GGUF_SPARSE,
    GGUF_USUAL,
    Config,
    Family,
    GgufNames,
    Tensors,
    attention_tensors,
    expert_tensors,
    experts_of,
    norm_tensors,
    start_of,
    wide_norm_tensors,
)
from together.models.values import Values

_BLOCK = "block_sparse_moe"


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    yield from attention_tensors(config, layer)
    yield from wide_norm_tensors(config, layer)
    yield from norm_tensors(config, layer, "input_layernorm", "post_attention_layernorm")
    yield from expert_tensors(
        config,
        layer,
        stacked,
        path=f"{_BLOCK}.",
        count="num_local_experts",
        inner="intermediate_size",
        names=("w1", "w3", "w2"),
    )
    yield f"{start_of(layer)}{_BLOCK}.e_score_correction_bias", (config["num_local_experts"],)


def _more(values: Values, config: Config) -> dict[str, Any]:
    values.choice("scoring_func", "sigmoid", ("sigmoid",))
    experts = experts_of(values, config, ("num_local_experts", "num_experts"), 256)
    return {"num_local_experts": experts}


FAMILIES = (
    Family(
        name="minimax_m2",
        title="MiniMax M2",
        torch=("minimax_m2", "MiniMaxM2"),
        mlx="minimax",
        mlx_settings={"rotary_dim": 64, "shared_intermediate_size": 0},  # asked for; nothing of it is computed
        counts={
            "vocab_size": 200064,
            "intermediate_size": 1536,
            "num_attention_heads": 48,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 196608,
            "num_experts_per_tok": 8,
        },
        more=_more,
        tensors=_tensors,
        theta=5_000_000.0,
        rotaries=True,
        rotary_width="rotary_dim",
        experts="num_local_experts",
        block=_BLOCK,
        gguf=GgufNames(
            "minimax-m2",
            {**GGUF_USUAL, **GGUF_HEAD_NORMS, **GGUF_SPARSE},
            whole={"exp_probs_b.bias": f"{_BLOCK}.e_score_correction_bias"},
            computed=(*GGUF_COUNTS, "expert_gating_func"),
        ),
    ),
)
