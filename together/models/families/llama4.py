"""Llama 4: attention in chunks, layers without rope whose queries grow, and experts of which each token asks a few."""

from __future__ import annotations

from typing import Any

from together.models.family import (
    FULL,
    GGUF_COUNTS,
    GGUF_EXPERTS,
    GGUF_USUAL,
    PROJECTIONS,
    Config,
    Family,
    GgufNames,
    Tensors,
    attention_tensors,
    experts_of,
    layer_kinds,
    mlp_tensors,
    norm_tensors,
    start_of,
    usual_range,
)
from together.models.state import KeysValues, LayerState
from together.models.values import Values, bad_value
from together.types import LayerRange

_CHUNKED = "chunked_attention"
_CHUNK = 8192
_STEP = 3  # of layers with experts, to mlx-lm
_DENSE, _SPARSE = {True: 0, False: 3}, {True: 2, False: 11}  # by rope: numbers that its class makes so


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    yield from attention_tensors(config, layer)
    yield from norm_tensors(config, layer, "input_layernorm", "post_attention_layernorm")
    if layer not in config["moe_layers"]:
        yield from mlp_tensors(config, layer, config["intermediate_size_mlp"], "feed_forward.")
        return
    start, hidden, inner = f"{start_of(layer)}feed_forward.", config["hidden_size"], config["intermediate_size"]
    experts = config["num_local_experts"]
    yield f"{start}router.weight", (experts, hidden)
    yield from mlp_tensors(config, layer, inner, "feed_forward.shared_expert.")
    if stacked:
        for name, shape in zip(PROJECTIONS, ((inner, hidden), (inner, hidden), (hidden, inner)), strict=True):
            yield f"{start}switch_mlp.{name}.weight", (experts, *shape)
        return
    yield f"{start}experts.gate_up_proj", (experts, hidden, 2 * inner)
    yield f"{start}experts.down_proj", (experts, inner, hidden)


def _state(config: Config, layer: int) -> LayerState:
    dim, chunk = config["head_dim"], config["attention_chunk_size"]
    chunked = config["layer_types"][layer] == _CHUNKED
    return KeysValues(config["num_key_value_heads"], dim, dim, chunk if chunked else None, chunked)


def _more(values: Values, config: Config) -> dict[str, Any]:
    """Raises BrokenModel and UnsupportedModel."""
    layers, null = config["num_hidden_layers"], values.found.get("attention_chunk_size", _CHUNK) is None
    chunk = None if null else values.count("attention_chunk_size", _CHUNK)
    roped = _listed(values, "no_rope_layers", layers)
    interval = values.count("no_rope_layer_interval", 4)
    roped = roped or [int((layer + 1) % interval != 0) for layer in range(layers)]  # what it is in spite of its name
    usual = [_CHUNKED if each and chunk is not None else FULL for each in roped]
    kinds = layer_kinds(values, layers, usual, (FULL, _CHUNKED))
    if chunk is None and _CHUNKED in kinds:
        raise bad_value(values.name, "attention_chunk_size", None)
    sparse = values.numbers("moe_layers")
    if values.found.get("moe_layers") is None:
        step = config["interleave_moe_layer_step"]
        sparse = list(range(step - 1, layers, step))
    if any(not 0 <= layer < layers for layer in sparse):
        raise bad_value(values.name, "moe_layers", sparse)
    tuned = values.found.get("attn_temperature_tuning")
    if tuned is not None and (type(tuned) not in (bool, int) or tuned < 0):
        raise bad_value(values.name, "attn_temperature_tuning", tuned)
    return {
        "attention_chunk_size": chunk,
        "attn_temperature_tuning": tuned is None or bool(tuned),  # hubs have a number that nobody reads
        "attn_scale": values.number("attn_scale", 0.1),
        "no_rope_layers": roped,
        "no_rope_layer_interval": interval,
        "layer_types": kinds,
        "moe_layers": sparse,
        "num_local_experts": experts_of(values, config, ("num_local_experts",), 16),
    }


def _listed(values: Values, key: str, layers: int) -> list[int]:
    """An entry for each layer at least; none where there is no list, or an empty one."""
    found = values.numbers(key)
    if found and len(found) < layers:
        raise bad_value(values.name, key, found)
    return [int(bool(each)) for each in found[:layers]]


def _ranged(config: Config, layers: LayerRange) -> dict[str, Any]:
    held = range(layers.start, layers.stop)
    return usual_range(config, layers) | {
        "no_rope_layers": list(config["no_rope_layers"][layers.start : layers.stop]),
        "moe_layers": [layer - layers.start for layer in config["moe_layers"] if layer in held],
    }


def _roped(config: Config, layer: int) -> bool:
    return bool(config["no_rope_layers"][layer])


def _number(config: Config, layer: int) -> int:
    """To mlx-lm, every fourth layer has no rope, and every so many have experts."""
    return (_SPARSE if layer in config["moe_layers"] else _DENSE)[_roped(config, layer)]


_GGUF = {
    **GGUF_USUAL,
    **GGUF_EXPERTS,
    "ffn_gate_inp": "mlp.router",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}

FAMILIES = (
    Family(
        name="llama4_text",
        title="Llama 4",
        torch=("llama4", "Llama4"),
        mlx="llama4",
        mlx_settings={"interleave_moe_layer_step": _STEP, "attention_chunk_size": _CHUNK},
        mlx_fixed={"num_experts_per_tok": 1},
        mlx_number=_number,
        mlx_experts="experts",
        counts={
            "vocab_size": 202048,
            "intermediate_size": 8192,
            "intermediate_size_mlp": 16384,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 1,
            "floor_scale": 8192,
        },
        switches=("attention_bias",),
        on=("use_qk_norm",),
        more=_more,
        tensors=_tensors,
        state=_state,
        ranged=_ranged,
        roped=_roped,
        epsilon=1e-5,
        theta=500_000.0,
        rope_kinds=("default", "llama3"),
        interleaved=True,
        experts="num_local_experts",
        scored=True,
        wrappers=("llama4",),
        gguf=GgufNames(
            "llama4",
            {stored: name.replace("mlp.", "feed_forward.", 1) for stored, name in _GGUF.items()},
            computed=GGUF_COUNTS,
        ),
    ),
)
