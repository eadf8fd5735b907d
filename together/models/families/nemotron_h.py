"""Nemotron-H, Nemotron Nano 2 and Nemotron 3: each layer is one thing alone, mostly Mamba-2, an MLP or experts.

Few layers attend, without positions. MLPs and experts have no gate.
"""

from __future__ import annotations

from math import inf
from typing import Any

from together.errors import UnsupportedModel
from together.models.family import (
    FULL,
    GGUF_COUNTS,
    GGUF_GROUPED,
    LINEAR,
    PROJECTIONS,
    Config,
    Family,
    GgufNames,
    Tensors,
    attention_tensors,
    layer_kinds,
    start_of,
)
from together.models.grouped import grouped_experts
from together.models.mamba import GGUF_NUMBERS, KINDS, Mamba, gguf_mamba
from together.models.state import KeysValues, LayerState, Nothing
from together.models.values import Values

_PART = "mixer"
_MLP, _EXPERTS = "mlp", "moe"
_SAID = {**KINDS, "M": LINEAR, "*": FULL, "-": _MLP, "E": _EXPERTS}
_UP, _DOWN = PROJECTIONS[1:]


def _mamba(config: Config) -> Mamba:
    return Mamba(
        heads=config["mamba_num_heads"],
        head_dim=config["mamba_head_dim"],
        width=config["ssm_state_size"],
        groups=config["n_groups"],
        convolution=config["conv_kernel"],
        biased=config["use_conv_bias"],
        projections_biased=config["use_bias"],
    )


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    start, hidden = f"{start_of(layer)}{_PART}.", config["hidden_size"]
    yield f"{start_of(layer)}norm.weight", (hidden,)
    match config["layer_types"][layer]:
        case "linear_attention":
            yield from _mamba(config).tensors(layer, _PART, hidden)
        case "full_attention":
            for name, shape in attention_tensors(config, layer):
                yield name.replace(".self_attn.", f".{_PART}."), shape
        case "mlp":
            yield from _mlp(config, start, config["intermediate_size"])
        case _:
            yield from _expert_tensors(config, start, stacked)


def _mlp(config: Config, start: str, inner: int) -> Tensors:
    hidden = config["hidden_size"]
    for name, shape in ((_UP, (inner, hidden)), (_DOWN, (hidden, inner))):
        yield f"{start}{name}.weight", shape
        if config["mlp_bias"]:
            yield f"{start}{name}.bias", shape[:1]


def _expert_tensors(config: Config, start: str, stacked: bool) -> Tensors:
    """Experts may work in a latent space, narrower than the hidden states, which a shared one does not."""
    hidden, experts, inner = config["hidden_size"], config["n_routed_experts"], config["moe_intermediate_size"]
    latent = config["moe_latent_size"]
    yield f"{start}gate.weight", (experts, hidden)
    yield f"{start}gate.e_score_correction_bias", (experts,)
    yield from _mlp(config, f"{start}shared_experts.", config["moe_shared_expert_intermediate_size"])
    if latent is not None:
        for name, shape in (("fc1", (latent, hidden)), ("fc2", (hidden, latent))):
            yield f"{start}{name}_latent_proj.weight", shape
            if config["mlp_bias"]:
                yield f"{start}{name}_latent_proj.bias", shape[:1]
    width = hidden if latent is None else latent
    for name, shape in ((_UP, (inner, width)), (_DOWN, (width, inner))):
        if stacked:
            yield f"{start}switch_mlp.{name}.weight", (experts, *shape)
        else:
            yield from ((f"{start}experts.{expert}.{name}.weight", shape) for expert in range(experts))


def _state(config: Config, layer: int) -> LayerState:
    match config["layer_types"][layer]:
        case "linear_attention":
            return _mamba(config).state
        case "full_attention":
            return KeysValues(config["num_key_value_heads"], config["head_dim"], config["head_dim"])
        case _:
            return Nothing()


def _more(values: Values, config: Config) -> dict[str, Any]:
    layers, keys = config["num_hidden_layers"], ("layers_block_type", "layer_types", "hybrid_override_pattern")
    known = (FULL, LINEAR, _MLP, _EXPERTS)
    if values.switch("tie_word_embeddings"):
        raise UnsupportedModel(
            "{model} ties its LM head to the embedding, which its family does not do here; choose another version",
            model=values.name,
        )
    values.choice("mamba_hidden_act", "silu", ("silu", "swish"))
    latent = values.found.get("moe_latent_size")
    least = values.number("time_step_min", 0.001)
    _mamba(config).check(values, "n_groups", "conv_kernel")
    kinds = layer_kinds(values, layers, [FULL] * layers, known, keys=keys, said=_SAID)
    return {
        "layer_types": kinds,
        "n_routed_experts": grouped_experts(values, config, 8) if _EXPERTS in kinds else 0,
        "moe_latent_size": None if latent is None else values.count("moe_latent_size", None),
        "routed_scaling_factor": values.number("routed_scaling_factor", 1.0),
        "layer_norm_epsilon": values.number("layer_norm_epsilon", 1e-5),
        "time_step_min": least,
        "time_step_limit": (least, inf),  # transformers makes it of the other, mlx-lm reads it
        "mamba_proj_bias": config["use_bias"],  # mlx-lm's word for it
        "attention_bias": False,  # whatever a file says, transformers has none
    }


_GGUF = {
    "attn_q": "q_proj",
    "attn_k": "k_proj",
    "attn_v": "v_proj",
    "attn_output": "o_proj",
    "ffn_up": _UP,
    "ffn_down": _DOWN,
    "ffn_gate_inp": "gate",
    "ffn_up_exps": f"switch_mlp.{_UP}",
    "ffn_down_exps": f"switch_mlp.{_DOWN}",
    "ffn_up_shexp": f"shared_experts.{_UP}",
    "ffn_down_shexp": f"shared_experts.{_DOWN}",
    "ffn_latent_down": "fc1_latent_proj",
    "ffn_latent_up": "fc2_latent_proj",
}

FAMILIES = (
    Family(
        name="nemotron_h",
        title="Nemotron-H",
        torch=("nemotron_h", "NemotronH"),
        counts={
            "vocab_size": 131072,
            "intermediate_size": 21504,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 4096,
            "ssm_state_size": 128,
            "mamba_num_heads": 128,
            "mamba_head_dim": 64,
            "n_groups": 8,
            "conv_kernel": 4,
            "chunk_size": 128,
            "n_shared_experts": 1,
            "moe_intermediate_size": 7688,
            "moe_shared_expert_intermediate_size": 7688,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
        },
        switches=("mlp_bias", "use_bias"),
        on=("norm_topk_prob", "use_conv_bias"),
        more=_more,
        tensors=_tensors,
        state=_state,
        roped=lambda config, layer: False,
        recurrent=_PART,
        mlx_kinds={},
        mlx_parts={f"switch_mlp.{_UP}": "switch_mlp.fc1", f"switch_mlp.{_DOWN}": "switch_mlp.fc2"},
        mlx_inner="backbone",
        ends={"embed_tokens": "embeddings", "norm": "norm_f"},
        listed=("layers_block_type", "layer_types", "hybrid_override_pattern"),
        experts="n_routed_experts",
        activation=("mlp_hidden_act", "relu2"),
        activations=("relu2",),
        gguf=GgufNames(
            "nemotron_h",
            {
                "attn_norm": "norm",
                **gguf_mamba(_PART),
                **{stored: f"{_PART}.{name}" for stored, name in _GGUF.items()},
            },
            also=("nemotron_h_moe",),
            whole={
                **{stored: f"{_PART}.{name}" for stored, name in GGUF_NUMBERS.items()},
                "exp_probs_b.bias": f"{_PART}.gate.e_score_correction_bias",
            },
            computed=(*GGUF_COUNTS, *GGUF_GROUPED),
            epsilon="attention.layer_norm_epsilon",
            interleaved=True,
            unturned=True,
            varied=True,
        ),
    ),
)
