"""Granite 3, dense and with experts: Llama with four fixed factors."""

from __future__ import annotations

from typing import Any

from together.models.family import (
    GGUF_COUNTS,
    GGUF_SPARSE,
    GGUF_USUAL,
    PROJECTIONS,
    Config,
    Family,
    GgufNames,
    Tensors,
    attention_tensors,
    experts_of,
    norm_tensors,
    odd_heads,
    start_of,
    usual_range,
)
from together.models.values import Values
from together.types import LayerRange

FACTORS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
SCALES = ("attention.scale", "embedding_scale", "logit_scale", "residual_scale")  # the same in GGUF files
_COUNTS = {
    "vocab_size": 32000,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,
}


def _more(values: Values, config: Config) -> dict[str, Any]:
    return {key: values.number(key, 1.0) for key in FACTORS}


def _with_experts(values: Values, config: Config) -> dict[str, Any]:
    return _more(values, config) | {"num_local_experts": experts_of(values, config, ("num_local_experts",), 8)}


def _expert_tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    """Experts are two tensors in its files, gate before up in the first."""
    yield from attention_tensors(config, layer)
    yield from norm_tensors(config, layer, "input_layernorm", "post_attention_layernorm")
    start, experts = f"{start_of(layer)}block_sparse_moe.", config["num_local_experts"]
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    yield f"{start}router.layer.weight", (experts, hidden)
    if stacked:
        for name, shape in zip(PROJECTIONS, ((inner, hidden), (inner, hidden), (hidden, inner)), strict=True):
            yield f"{start}switch_mlp.{name}.weight", (experts, *shape)
        return
    yield f"{start}input_linear.weight", (experts, 2 * inner, hidden)
    yield f"{start}output_linear.weight", (experts, hidden, inner)


def ranged(config: Config, layers: LayerRange) -> dict[str, Any]:
    """transformers multiplies whatever a model begins with."""
    return usual_range(config, layers) | ({"embedding_multiplier": 1.0} if layers.start else {})


def _family(**more: Any) -> Family:
    return Family(
        ranged=ranged,
        ignored_by_mlx=odd_heads,
        embedding_scale=lambda config: float(config["embedding_multiplier"]),
        logits_scale=lambda config: 1 / float(config["logits_scaling"]),
        **more,
    )


FAMILIES = (
    _family(
        name="granite",
        title="Granite",
        torch=("granite", "Granite"),
        counts=_COUNTS,
        switches=("attention_bias", "mlp_bias"),
        more=_more,
        gguf=GgufNames("granite", interleaved=True, computed=SCALES),
    ),
    _family(
        name="granitemoe",
        title="Granite-MoE",
        torch=("granitemoe", "GraniteMoe"),
        counts={**_COUNTS, "num_experts_per_tok": 2},
        switches=("attention_bias",),
        more=_with_experts,
        tensors=_expert_tensors,
        experts="num_local_experts",
        scaled_on_mlx=False,
        gguf=GgufNames(
            "granitemoe",
            {**GGUF_USUAL, **GGUF_SPARSE, "ffn_gate_inp": "block_sparse_moe.router.layer"},
            interleaved=True,
            computed=(*GGUF_COUNTS, *SCALES),
        ),
    ),
)
