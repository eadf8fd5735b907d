"""Qwen3-Next: layers with a recurrent state beside gated attention, and many experts beside a shared one."""

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
    mlp_tensors,
    norm_tensors,
    own_shared_expert_tensors,
    some_sparse,
    start_of,
)
from together.models.hybrid import (
    DELTA_NET,
    GGUF_HYBRID,
    GGUF_STATES,
    LARGER,
    attends,
    delta_rule_tensors,
    delta_width,
    gated_attention_tensors,
    hybrid_kinds,
    hybrid_number,
    hybrid_state,
)
from together.models.values import Values


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    yield from gated_attention_tensors(config, layer) if attends(config, layer) else _delta_net(config, layer)
    yield from norm_tensors(config, layer, "input_layernorm", "post_attention_layernorm")
    if layer in config["mlp_only_layers"]:
        yield from mlp_tensors(config, layer)
    else:
        yield from expert_tensors(config, layer, stacked)
        yield from own_shared_expert_tensors(config, layer)


def _delta_net(config: Config, layer: int) -> Tensors:
    """Inputs are projected together, those of a key head side by side."""
    start, hidden = f"{start_of(layer)}linear_attn.", config["hidden_size"]
    wide = 2 * (delta_width(config, "key") + delta_width(config, "value"))
    yield f"{start}in_proj_qkvz.weight", (wide, hidden)
    yield f"{start}in_proj_ba.weight", (2 * config["linear_num_value_heads"], hidden)
    yield from delta_rule_tensors(config, layer)


def _parted(config: Config, layer: int) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
    """GGUF files have what the convolution mixes, and the gates, by themselves: not a key head beside another."""
    if attends(config, layer):
        return {}
    start, hidden, values = f"{start_of(layer)}{DELTA_NET}.", config["hidden_size"], delta_width(config, "value")
    parts = {"in_proj_qkv": (2 * delta_width(config, "key") + values, hidden), "in_proj_z": (values, hidden)}
    return {f"{start}in_proj_qkvz.weight": {f"{start}{name}.weight": shape for name, shape in parts.items()}}


def _more(values: Values, config: Config) -> dict[str, Any]:
    return hybrid_kinds(values, config) | some_sparse(values, config, 512)


FAMILIES = (
    Family(
        name="qwen3_next",
        title="Qwen3-Next",
        torch=("qwen3_next", "Qwen3Next"),
        mlx_settings={"full_attention_interval": 2, "mlp_only_layers": [2, 3], "partial_rotary_factor": 1.0},
        mlx_number=hybrid_number,
        counts={
            "vocab_size": 151936,
            "intermediate_size": 5632,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "max_position_embeddings": 32768,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts_per_tok": 10,
            "decoder_sparse_step": 1,
        },
        switches=("attention_bias",),
        on=("norm_topk_prob",),
        more=_more,
        tensors=_tensors,
        parted=_parted,
        regrouped=True,
        state=hybrid_state,
        rotary=0.25,
        rotaries=True,
        roped=attends,
        recurrent=DELTA_NET,
        larger_on_mlx=LARGER,
        experts="num_experts",
        scaled_on_mlx=False,
        gguf=GgufNames(
            "qwen3next",
            {
                **GGUF_HYBRID,
                **GGUF_EXPERTS,
                **GGUF_OWN_SHARED,
                "ssm_ba": f"{DELTA_NET}.in_proj_ba",
                "ssm_in": f"{DELTA_NET}.in_proj_qkvz",  # of older files
            },
            whole=GGUF_STATES,
            larger=True,
            computed=(*GGUF_COUNTS, "nextn_predict_layers"),
        ),
    ),
)
