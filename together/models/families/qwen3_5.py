"""Qwen3.5 and 3.6, dense and with experts: three of four layers have a recurrent state, the others gated attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from together.models.family import (
    GGUF_COUNTS,
    GGUF_EXPERTS,
    GGUF_OWN_SHARED,
    Config,
    Family,
    GgufNames,
    Tensors,
    expert_tensors,
    experts_of,
    mlp_tensors,
    norm_tensors,
    own_shared_expert_tensors,
)
from together.models.hybrid import (
    DELTA_NET,
    GGUF_HYBRID,
    GGUF_STATES,
    LARGER,
    attends,
    delta_net_tensors,
    gated_attention_tensors,
    hybrid_kinds,
    hybrid_number,
    hybrid_state,
)
from together.models.values import Values

_COUNTS = {
    "vocab_size": 248320,
    "num_attention_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    yield from gated_attention_tensors(config, layer) if attends(config, layer) else delta_net_tensors(config, layer)
    yield from norm_tensors(config, layer, "input_layernorm", "post_attention_layernorm")
    if "num_experts" not in config:
        yield from mlp_tensors(config, layer)
    else:
        yield from expert_tensors(config, layer, stacked)
        yield from own_shared_expert_tensors(config, layer)


def _experts(values: Values, config: Config) -> dict[str, Any]:
    return hybrid_kinds(values, config) | {"num_experts": experts_of(values, config, ("num_experts",), 256)}


_NAMES = {**GGUF_HYBRID, "ssm_alpha": f"{DELTA_NET}.in_proj_a", "ssm_beta": f"{DELTA_NET}.in_proj_b"}
_EXPERTS = {**GGUF_EXPERTS, **GGUF_OWN_SHARED}


def _gguf(architecture: str, names: Mapping[str, str], *computed: str) -> GgufNames:
    known = ("nextn_predict_layers", "rope.dimension_sections", *computed)
    return GgufNames(architecture, {**_NAMES, **names}, whole=GGUF_STATES, tiled=True, larger=True, computed=known)


def _family(**more: Any) -> Family:
    return Family(
        mlx_settings={"full_attention_interval": 2, "mlp_only_layers": [2, 3]},
        mlx_number=hybrid_number,
        switches=("attention_bias",),
        tensors=_tensors,
        state=hybrid_state,
        rotary=0.25,
        rotaries=True,
        roped=attends,
        recurrent=DELTA_NET,
        larger_on_mlx=LARGER,
        **more,
    )


FAMILIES = (
    _family(
        name="qwen3_5_text",
        title="Qwen3.5",
        torch=("qwen3_5", "Qwen3_5"),
        mlx="qwen3_5",
        counts={**_COUNTS, "intermediate_size": 12288, "num_key_value_heads": 4},
        more=hybrid_kinds,
        gguf=_gguf("qwen35", {}),
        wrappers=("qwen3_5",),
    ),
    _family(
        name="qwen3_5_moe_text",
        title="Qwen3.5-MoE",
        torch=("qwen3_5_moe", "Qwen3_5Moe"),
        mlx="qwen3_5_moe",
        counts={
            **_COUNTS,
            "num_key_value_heads": 2,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts_per_tok": 8,
        },
        more=_experts,
        gguf=_gguf("qwen35moe", _EXPERTS, *GGUF_COUNTS),
        experts="num_experts",
        halves=True,
        wrappers=("qwen3_5_moe",),
    ),
)
