"""Granite 4: most layers have a recurrent state by Mamba-2's rule, the others attend, mostly without positions.

A shared MLP is in each layer, beside experts where there are some.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from together.models.families.granite import FACTORS, SCALES, ranged
from together.models.family import (
    FULL,
    GGUF_COUNTS,
    GGUF_SPARSE,
    GGUF_USUAL,
    LINEAR,
    Config,
    Family,
    GgufNames,
    Tensors,
    attention_tensors,
    expert_tensors,
    experts_of,
    layer_kinds,
    norm_tensors,
    odd_heads,
    start_of,
    usual_state,
)
from together.models.mamba import GGUF_NUMBERS, KINDS, Mamba, gguf_mamba, step_limits
from together.models.state import LayerState
from together.models.values import Values, bad_value

_PART = "mamba"
_MLX = {kind: word for word, kind in KINDS.items()}
_ROPE, _NOPE = "rope", "nope"


def _mamba(config: Config) -> Mamba:
    return Mamba(
        heads=config["mamba_n_heads"],
        head_dim=config["mamba_d_head"],
        width=config["mamba_d_state"],
        groups=config["mamba_n_groups"],
        convolution=config["mamba_d_conv"],
        biased=config["mamba_conv_bias"],
        projections_biased=config["mamba_proj_bias"],
    )


def _attends(config: Config, layer: int) -> bool:
    return bool(config["layer_types"][layer] == FULL)


def _roped(config: Config, layer: int) -> bool:
    return _attends(config, layer) and config["position_embedding_type"] == _ROPE


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    start, hidden = start_of(layer), config["hidden_size"]
    if _attends(config, layer):
        yield from attention_tensors(config, layer)
    else:
        yield from _mamba(config).tensors(layer, _PART, hidden)
    yield from norm_tensors(config, layer, "input_layernorm", "post_attention_layernorm")
    inner = config["shared_intermediate_size"]
    yield f"{start}shared_mlp.input_linear.weight", (2 * inner, hidden)
    yield f"{start}shared_mlp.output_linear.weight", (hidden, inner)
    if not config["num_local_experts"]:
        return
    shared = {"path": "block_sparse_moe.", "count": "num_local_experts", "inner": "intermediate_size"}
    for name, shape in expert_tensors(config, layer, stacked, **shared):
        yield name.replace("moe.gate.", "moe.router.layer."), shape


def _parted(config: Config, layer: int) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
    """mlx-lm has a usual MLP where there are no experts; GGUF files have gate and up apart, always."""
    start, hidden, inner = start_of(layer), config["hidden_size"], config["shared_intermediate_size"]
    path = f"{start}shared_mlp." if config["num_local_experts"] else f"{start}mlp."
    first = {f"{path}{name}.weight": (inner, hidden) for name in ("gate_proj", "up_proj")}
    found = {f"{start}shared_mlp.input_linear.weight": first}
    if not config["num_local_experts"]:
        found[f"{start}shared_mlp.output_linear.weight"] = {f"{path}down_proj.weight": (hidden, inner)}
    return found


def _state(config: Config, layer: int) -> LayerState:
    return usual_state(config, layer) if _attends(config, layer) else _mamba(config).state


def _more(values: Values, config: Config) -> dict[str, Any]:
    layers, whole = config["num_hidden_layers"], config["mamba_expand"] * config["hidden_size"]
    found: dict[str, Any] = {key: values.number(key, 1.0) for key in FACTORS}
    given = values.found.get("mamba_d_head")
    dim = whole // config["mamba_n_heads"] if given in (None, "auto") else values.count("mamba_d_head", None)
    if dim * config["mamba_n_heads"] != whole:
        raise bad_value(values.name, "mamba_d_head", given)
    experts = experts_of(values, config, ("num_local_experts",), 8, least=0)
    keys = ("layer_types", "layers_block_type")
    found |= {
        "mamba_d_head": dim,
        "num_local_experts": experts,
        "layer_types": layer_kinds(values, layers, [LINEAR] * layers, (FULL, LINEAR), keys=keys, said=KINDS),
        "position_embedding_type": values.choice("position_embedding_type", _NOPE, (_NOPE, _ROPE)),
        "time_step_limit": step_limits(values),
    }
    if not experts:  # mlx-lm's key of the only MLP
        found["intermediate_size"] = config["shared_intermediate_size"]
    _mamba({**config, **found}).check(values, "mamba_n_groups", "mamba_d_conv")
    return found


FAMILIES = (
    Family(
        name="granitemoehybrid",
        title="Granite 4",
        torch=("granitemoehybrid", "GraniteMoeHybrid"),
        counts={
            "vocab_size": 32000,
            "intermediate_size": 11008,
            "num_attention_heads": 32,
            "num_key_value_heads": None,
            "head_dim": None,
            "max_position_embeddings": 2048,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 1024,
            "mamba_n_heads": 128,
            "mamba_n_groups": 1,
            "mamba_d_state": 256,
            "mamba_d_conv": 4,
            "mamba_expand": 2,
            "mamba_chunk_size": 256,
        },
        switches=("attention_bias", "mamba_proj_bias"),
        on=("mamba_conv_bias",),
        more=_more,
        tensors=_tensors,
        parted=_parted,
        state=_state,
        ranged=ranged,
        roped=_roped,
        recurrent=_PART,
        mlx_kinds=_MLX,
        experts="num_local_experts",
        halves=True,
        scaled_on_mlx=False,
        ignored_by_mlx=odd_heads,
        embedding_scale=lambda config: float(config["embedding_multiplier"]),
        logits_scale=lambda config: 1 / float(config["logits_scaling"]),
        gguf=GgufNames(
            "granitehybrid",
            {
                **GGUF_USUAL,
                **gguf_mamba(_PART),
                **GGUF_SPARSE,
                "ffn_gate_inp": "block_sparse_moe.router.layer",
                "ffn_gate_shexp": "shared_mlp.gate_proj",
                "ffn_up_shexp": "shared_mlp.up_proj",
                "ffn_down_shexp": "shared_mlp.output_linear",
            },
            whole={stored: f"{_PART}.{name}" for stored, name in GGUF_NUMBERS.items()},
            computed=(*GGUF_COUNTS, *SCALES),
            interleaved=True,
            varied=True,
        ),
    ),
)
