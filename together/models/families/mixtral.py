"""Mixtral: Mistral with experts in every layer."""

from __future__ import annotations

from typing import Any

from together.models.family import (
    GGUF_COUNTS,
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
    odd_heads,
)
from together.models.values import Values


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    yield from attention_tensors(config, layer)
    yield from norm_tensors(config, layer, "input_layernorm", "post_attention_layernorm")
    yield from expert_tensors(
        config,
        layer,
        stacked,
        path="block_sparse_moe.",
        count="num_local_experts",
        inner="intermediate_size",
        names=("w1", "w3", "w2"),
    )


def _more(values: Values, config: Config) -> dict[str, Any]:
    experts = experts_of(values, config, ("num_local_experts", "num_experts"), 8)
    window = None if values.found.get("sliding_window") is None else values.count("sliding_window", None)
    return {"num_local_experts": experts, "sliding_window": window}


FAMILIES = (
    Family(
        name="mixtral",
        title="Mixtral",
        torch=("mixtral", "Mixtral"),
        counts={
            "vocab_size": 32000,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": None,
            "max_position_embeddings": 131072,
            "num_experts_per_tok": 2,
        },
        more=_more,
        tensors=_tensors,
        epsilon=1e-5,
        theta=1_000_000.0,
        experts="num_local_experts",
        block="block_sparse_moe",
        ignored_by_mlx=odd_heads,
        scaled_on_mlx=False,
        gguf=GgufNames(  # its files say llama, too
            tensors={**GGUF_USUAL, **GGUF_SPARSE},
            experts={"ffn_gate": "w1", "ffn_up": "w3", "ffn_down": "w2"},
            computed=GGUF_COUNTS,
            interleaved=True,
        ),
    ),
)
