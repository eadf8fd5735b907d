"""Qwen1.5 and Qwen2 with experts: beside them a shared one, which a gate of its own weighs."""

from __future__ import annotations

from typing import Any

from together.models.family import (
    FULL,
    GGUF_COUNTS,
    GGUF_EXPERTS,
    GGUF_OWN_SHARED,
    GGUF_USUAL,
    INPUTS,
    SLIDING,
    WINDOW,
    Config,
    Family,
    GgufNames,
    Tensors,
    attention_tensors,
    expert_tensors,
    layer_kinds,
    mlp_tensors,
    norm_tensors,
    odd_heads,
    own_shared_expert_tensors,
    some_sparse,
)
from together.models.values import Values


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    yield from attention_tensors(config, layer, INPUTS if config["qkv_bias"] else ())
    yield from norm_tensors(config, layer, "input_layernorm", "post_attention_layernorm")
    if layer in config["mlp_only_layers"]:
        yield from mlp_tensors(config, layer)
        return
    yield from expert_tensors(config, layer, stacked)
    yield from own_shared_expert_tensors(config, layer)


def _more(values: Values, config: Config) -> dict[str, Any]:
    return some_sparse(values, config, 60) | _windows(values, config["num_hidden_layers"])


def _windows(values: Values, layers: int) -> dict[str, Any]:
    """With `use_sliding_window`, every other layer below `max_window_layers` has one."""
    used = values.switch("use_sliding_window")
    first = values.count_or_none("max_window_layers", 28)
    usual = [SLIDING if used and layer % 2 == 0 and layer < first else FULL for layer in range(layers)]
    kinds = layer_kinds(values, layers, usual) if used else [FULL] * layers
    window = values.count("sliding_window", WINDOW) if used else None
    return {"sliding_window": window, "use_sliding_window": used, "layer_types": kinds}


def _ignored(config: Config) -> tuple[str, ...]:
    """What mlx-lm's class has in one way only."""
    found = {
        "norm_topk_prob": config["norm_topk_prob"],
        "layers without experts": bool(config["mlp_only_layers"]),
        "qkv_bias False": not config["qkv_bias"],
    }
    return (*(what for what, is_there in found.items() if is_there), *odd_heads(config))


FAMILIES = (
    Family(
        name="qwen2_moe",
        title="Qwen2-MoE",
        torch=("qwen2_moe", "Qwen2Moe"),
        counts={
            "vocab_size": 151936,
            "intermediate_size": 5632,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "head_dim": None,
            "max_position_embeddings": 32768,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "num_experts_per_tok": 4,
            "decoder_sparse_step": 1,
        },
        switches=("norm_topk_prob",),
        on=("qkv_bias",),
        more=_more,
        tensors=_tensors,
        experts="num_experts",
        ignored_by_mlx=_ignored,
        scaled_on_mlx=False,
        gguf=GgufNames(
            "qwen2moe",
            {**GGUF_USUAL, **GGUF_EXPERTS, **GGUF_OWN_SHARED},
            computed=(*GGUF_COUNTS, "expert_weights_norm"),
        ),
    ),
)
