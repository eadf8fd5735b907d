"""What families share some of whose layers have a recurrent state, and the others attend. Pure."""

from __future__ import annotations

from typing import Any

from together.models.family import (
    FULL,
    GGUF_HEAD_NORMS,
    GGUF_USUAL,
    LINEAR,
    Config,
    Tensors,
    attention_tensors,
    head_norm_tensors,
    layer_kinds,
    start_of,
    usual_state,
)
from together.models.state import LayerState, Recurrent
from together.models.values import Values, bad_value

DELTA_NET = "linear_attn"  # what layers with a state by the gated delta rule call that part
GGUF_HYBRID = {
    **GGUF_USUAL,
    **GGUF_HEAD_NORMS,
    "post_attention_norm": "post_attention_layernorm",
    "attn_qkv": f"{DELTA_NET}.in_proj_qkv",
    "attn_gate": f"{DELTA_NET}.in_proj_z",
    "ssm_conv1d": f"{DELTA_NET}.conv1d",
    "ssm_norm": f"{DELTA_NET}.norm",
    "ssm_out": f"{DELTA_NET}.out_proj",
}
GGUF_STATES = {"ssm_a": f"{DELTA_NET}.A_log", "ssm_dt.bias": f"{DELTA_NET}.dt_bias"}
LARGER = tuple(  # norms that are published less 1, and in mlx-lm's files as they are multiplied
    f"{name}.weight"
    for name in ("input_layernorm", "post_attention_layernorm", "model.norm", "self_attn.q_norm", "self_attn.k_norm")
)


def gated_attention_tensors(config: Config, layer: int) -> Tensors:
    """Attention whose queries come with a gate for each value, and norms of each head's queries and keys."""
    dim = config["head_dim"]
    for name, shape in attention_tensors(config, layer):
        wide = ".q_proj." in name
        yield name, (2 * config["num_attention_heads"] * dim, *shape[1:]) if wide else shape
    yield from head_norm_tensors(config, layer)


def delta_net_tensors(config: Config, layer: int) -> Tensors:
    """A layer with a recurrent state by the gated delta rule, its inputs projected each by itself."""
    start, hidden = f"{start_of(layer)}linear_attn.", config["hidden_size"]
    heads, values = config["linear_num_value_heads"], delta_width(config, "value")
    channels = 2 * delta_width(config, "key") + values
    yield f"{start}in_proj_qkv.weight", (channels, hidden)
    yield f"{start}in_proj_z.weight", (values, hidden)
    yield f"{start}in_proj_b.weight", (heads, hidden)
    yield f"{start}in_proj_a.weight", (heads, hidden)
    yield from delta_rule_tensors(config, layer)


def delta_rule_tensors(config: Config, layer: int) -> Tensors:
    """The convolution, the decay and the output of such a layer."""
    start, heads = f"{start_of(layer)}linear_attn.", config["linear_num_value_heads"]
    values = delta_width(config, "value")
    yield f"{start}conv1d.weight", (2 * delta_width(config, "key") + values, 1, config["linear_conv_kernel_dim"])
    yield f"{start}dt_bias", (heads,)
    yield f"{start}A_log", (heads,)
    yield f"{start}norm.weight", (config["linear_value_head_dim"],)
    yield f"{start}out_proj.weight", (config["hidden_size"], values)


def delta_width(config: Config, what: str) -> int:
    """Of all heads' keys or values together."""
    return int(config[f"linear_num_{what}_heads"] * config[f"linear_{what}_head_dim"])


def hybrid_state(config: Config, layer: int) -> LayerState:
    """Keys and values, or the state of the gated delta rule."""
    if attends(config, layer):
        return usual_state(config, layer)
    return Recurrent(
        heads=config["linear_num_value_heads"],
        key_dim=config["linear_key_head_dim"],
        value_dim=config["linear_value_head_dim"],
        channels=2 * delta_width(config, "key") + delta_width(config, "value"),
        tail=config["linear_conv_kernel_dim"] - 1,
    )


def attends(config: Config, layer: int) -> bool:
    """Whether a layer of a hybrid keeps keys and values."""
    return bool(config["layer_types"][layer] != LINEAR)


def hybrid_number(config: Config, layer: int) -> int:
    """To mlx-lm, with the families' `mlx_settings`, odd layers attend, and those from 2 on have no experts."""
    return attends(config, layer) + 2 * (layer in config.get("mlp_only_layers", ()))


def hybrid_kinds(values: Values, config: Config) -> dict[str, Any]:
    """Layers with a recurrent state, and one of every so many that attends. Raises BrokenModel, UnsupportedModel."""
    layers = config["num_hidden_layers"]
    step = values.count("full_attention_interval", 4)
    if config["linear_num_value_heads"] % config["linear_num_key_heads"]:
        raise bad_value(values.name, "linear_num_key_heads", config["linear_num_key_heads"])
    if config["linear_conv_kernel_dim"] < 2:
        raise bad_value(values.name, "linear_conv_kernel_dim", config["linear_conv_kernel_dim"])
    usual = [LINEAR if (layer + 1) % step else FULL for layer in range(layers)]
    return {"layer_types": layer_kinds(values, layers, usual, (FULL, LINEAR))}
