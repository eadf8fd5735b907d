"""Gemma 4: layers that see everything have heads of another size, and may have no values of their own.

Of 26B-A4B each layer has experts beside its MLP. In the small ones (E2B, E4B) the later layers read the keys and values
of earlier ones, and each layer has an input of its own, which the first stage makes of token ids and embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from together.errors import UnsupportedModel
from together.models.family import (
    FULL,
    GGUF_COUNTS,
    GGUF_HEAD_NORMS,
    GGUF_USUAL,
    SLIDING,
    Config,
    Family,
    GgufNames,
    Tensors,
    attention_tensors,
    experts_of,
    head_norm_tensors,
    layer_kinds,
    mlp_tensors,
    norm_tensors,
    start_of,
    usual_range,
    usual_state,
)
from together.models.names import LAYER_EMBED
from together.models.state import Borrowed, KeysValues, LayerState
from together.models.values import Values, bad_value
from together.sentences import Sentence, template
from together.types import LayerRange

_WINDOW, _WIDE = 512, 512
_SHARED, _INPUTS = "num_kv_shared_layers", "hidden_size_per_layer_input"
_AMONG = ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2")
_AROUND = ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


def _of_layer(config: Config, layer: int) -> dict[str, Any]:
    """With the heads that a layer has."""
    return {**config, **(_wide(config) if config["layer_types"][layer] == FULL else {})}


def _wide(config: Config) -> dict[str, int]:
    keys = config["num_global_key_value_heads"] or config["num_key_value_heads"]
    return {"head_dim": config["global_head_dim"], "num_key_value_heads": keys}


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    own, valued = _of_layer(config, layer), config["layer_types"][layer] == SLIDING or not config["attention_k_eq_v"]
    reads = layer >= _first_reader(config)
    absent = (".k_proj.", ".v_proj.", ".k_norm.") if reads else () if valued else (".v_proj.",)
    attention = (*attention_tensors(own, layer), *head_norm_tensors(own, layer))
    yield from (each for each in attention if not any(part in each[0] for part in absent))
    yield from norm_tensors(config, layer, "input_layernorm", *_AROUND)
    yield from mlp_tensors(config, layer, config["double_intermediate_size"] if reads else 0)
    yield f"{start_of(layer)}layer_scalar", (1,)
    if config[_INPUTS]:
        yield f"{start_of(layer)}per_layer_input_gate.weight", (config[_INPUTS], config["hidden_size"])
        yield f"{start_of(layer)}per_layer_projection.weight", (config["hidden_size"], config[_INPUTS])
        yield from norm_tensors(config, layer, "post_per_layer_input_norm")
    if config["enable_moe_block"]:
        yield from _expert_tensors(config, layer, stacked)


def _expert_tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    """A router and experts beside the MLP, and norms around both; each expert's gate is stored before its up."""
    start, experts = start_of(layer), config["num_experts"]
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    yield from norm_tensors(config, layer, *_AMONG)
    yield f"{start}router.proj.weight", (experts, hidden)
    yield f"{start}router.scale", (hidden,)
    yield f"{start}router.per_expert_scale", (experts,)
    if stacked:
        for name in ("gate_proj", "up_proj"):
            yield f"{start}switch_mlp.{name}.weight", (experts, inner, hidden)
        yield f"{start}switch_mlp.down_proj.weight", (experts, hidden, inner)
        return
    yield f"{start}experts.gate_up_proj", (experts, 2 * inner, hidden)
    yield f"{start}experts.down_proj", (experts, hidden, inner)


def _opening(config: Config) -> Tensors:
    if config[_INPUTS]:
        every = config["num_hidden_layers"] * config[_INPUTS]
        yield LAYER_EMBED, (config["vocab_size_per_layer_input"], every)
        yield "model.per_layer_model_projection.weight", (every, config["hidden_size"])
        yield "model.per_layer_projection_norm.weight", (config[_INPUTS],)


def _state(config: Config, layer: int) -> LayerState:
    own = usual_state(_of_layer(config, layer), layer)
    assert isinstance(own, KeysValues)
    return Borrowed(own, layer - _source(config, layer)) if layer >= _first_reader(config) else own


def _first_reader(config: Config) -> int:
    """The first layer without keys and values of its own, as have all behind it."""
    return int(config["num_hidden_layers"] - config[_SHARED])


def _source(config: Config, layer: int) -> int:
    """The layer whose keys and values a later one reads: of its kind the last that has some."""
    kinds = config["layer_types"]
    return max(place for place in range(_first_reader(config)) if kinds[place] == kinds[layer])


def _joined(config: Config) -> tuple[int, ...]:
    readers = range(_first_reader(config), config["num_hidden_layers"])
    return tuple(sorted({cut for layer in readers for cut in range(_source(config, layer) + 1, layer + 1)}))


def _ranged(config: Config, layers: LayerRange) -> dict[str, Any]:
    found = usual_range(config, layers) | {_SHARED: max(0, layers.stop - max(layers.start, _first_reader(config)))}
    wide = {place: _wide(config) for place, kind in enumerate(found["layer_types"]) if kind == FULL}
    return found | {"per_layer_config": wide}


# --- config.json ------------------------------------------------------------------------------------------------------


def _more(values: Values, config: Config) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    found: dict[str, Any] = {_SHARED: values.count_or_none(_SHARED, 0), _INPUTS: values.count_or_none(_INPUTS, 256)}
    found["vocab_size_per_layer_input"] = values.count("vocab_size_per_layer_input", 262144)
    if found[_INPUTS] and found["vocab_size_per_layer_input"] < config["vocab_size"]:
        raise bad_value(values.name, "vocab_size_per_layer_input", found["vocab_size_per_layer_input"])
    if values.found.get("sliding_window", _WINDOW) is None:
        raise bad_value(values.name, "sliding_window", None)
    usual = [SLIDING if (layer + 1) % 6 else FULL for layer in range(layers - 1)] + [FULL]
    found |= {
        "sliding_window": values.count("sliding_window", _WINDOW),
        "layer_types": layer_kinds(values, layers, usual),
        "attention_k_eq_v": values.switch("attention_k_eq_v"),
        "final_logit_softcapping": values.number("final_logit_softcapping", None),
    }
    shared, inner = found[_SHARED], config["intermediate_size"]
    readers, own = found["layer_types"][layers - shared :], found["layer_types"][: max(0, layers - shared)]
    if not set(readers) <= set(own):
        raise bad_value(values.name, _SHARED, shared)
    found["double_intermediate_size"] = 2 * inner if shared and config["use_double_wide_mlp"] else inner
    if found["layer_types"][-1] == SLIDING:
        raise _refusal(values, template("a window in its last layer, which transformers passes over"))
    if any("partial_rotary_factor" in each for each in config["rope_parameters"].values() if _is_usual(each)):
        raise _refusal(values, template("a rope of the kind default that turns a part of each head"))
    return found | _heads(values, config, found) | _experts(values, config)


def _experts(values: Values, config: Config) -> dict[str, Any]:
    """Also by the names that other families have for them. Raises BrokenModel."""
    if not values.switch("enable_moe_block"):
        return {"enable_moe_block": False, "num_experts": None}
    chosen = {key: values.count("top_k_experts", None) for key in ("top_k_experts", "num_experts_per_tok")}
    return {
        "enable_moe_block": True,
        "num_experts": experts_of(values, {**config, **chosen}, ("num_experts",), 0),
        "moe_intermediate_size": values.count("moe_intermediate_size", None),
        **chosen,
    }


def _heads(values: Values, config: Config, found: Config) -> dict[str, Any]:
    """Of layers that see everything, by either spelling. Raises UnsupportedModel and BrokenModel."""
    given, heads = values.found, config["num_attention_heads"]
    if given.get("per_layer_config") is not None:
        given = _spelled_by_layer(values, config, found)
    wide = Values(values.name, given)
    width = wide.count("global_head_dim", _WIDE)
    keys = wide.count("num_global_key_value_heads", config["num_key_value_heads"])
    if not found["attention_k_eq_v"]:
        keys = config["num_key_value_heads"]  # as both libraries have it
    if width % 2 or heads % keys:
        raise bad_value(
            values.name, *(("global_head_dim", width) if width % 2 else ("num_global_key_value_heads", keys))
        )
    return {"global_head_dim": width, "num_global_key_value_heads": keys}


def _spelled_by_layer(values: Values, config: Config, found: Config) -> Mapping[str, Any]:
    """As transformers 5 saves it: what differs from the other layers, by the numbers of layers."""
    given = values.found["per_layer_config"]
    layers = found["layer_types"]
    if not isinstance(given, dict) or not all(str(key).isdecimal() and isinstance(given[key], dict) for key in given):
        raise bad_value(values.name, "per_layer_config", given)
    by_layer = {int(key): each for key, each in given.items() if each}
    kinds = [by_layer.get(layer, {}) for layer, kind in enumerate(layers) if kind == FULL]
    sliding = {layer for layer, kind in enumerate(layers) if kind == SLIDING}
    known = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}
    other = any(each != kinds[0] for each in kinds) or sliding & by_layer.keys() or kinds[0].keys() - known.keys()
    if other or ("num_key_value_heads" in kinds[0] and not found["attention_k_eq_v"]):
        raise _refusal(values, template("settings of single layers (per_layer_config) that others of Gemma 4 lack"))
    return {key: kinds[0].get(name, config[name]) for name, key in known.items()}


def _is_usual(rope: Mapping[str, Any]) -> bool:
    return bool(rope["rope_type"] == "default")


def _refusal(values: Values, part: Sentence) -> UnsupportedModel:
    return UnsupportedModel(
        "{model} has {part}, which does not run here; choose Gemma 4 as Google published it",
        model=values.name,
        part=part,
    )


FAMILIES = (
    Family(
        name="gemma4_text",
        title="Gemma 4",
        torch=("gemma4", "Gemma4"),
        counts={
            "vocab_size": 262144,
            "intermediate_size": 9216,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131072,
        },
        mlx_fixed={"attention_bias": False},
        mlx_kinds={},
        mlx_experts="experts.switch_glu",
        experts="num_experts",
        switches=("attention_bias", "use_double_wide_mlp"),
        more=_more,
        tensors=_tensors,
        state=_state,
        joined=_joined,
        opening=_opening,
        layer_inputs=lambda config: int(config[_INPUTS]),
        ranged=_ranged,
        embedding_scale=lambda config: float(config["hidden_size"] ** 0.5),
        activation=("hidden_activation", "gelu_pytorch_tanh"),
        tied=True,
        ropes={SLIDING: ("", 10_000.0), FULL: ("", 1_000_000.0)},
        rope={
            SLIDING: {"rope_type": "default"},
            FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25},
        },
        rotaries=True,
        rope_kinds=("default", "proportional"),
        wrappers=("gemma4",),
        causal_words=("vision",),
        gguf=GgufNames(
            "gemma4",
            {
                **GGUF_USUAL,
                **GGUF_HEAD_NORMS,
                "post_attention_norm": "post_attention_layernorm",
                "ffn_norm": "pre_feedforward_layernorm",
                "post_ffw_norm": "post_feedforward_layernorm",
                "inp_gate": "per_layer_input_gate",
                "proj": "per_layer_projection",
                "post_norm": "post_per_layer_input_norm",
                "post_ffw_norm_1": _AMONG[0],
                "post_ffw_norm_2": _AMONG[1],
                "pre_ffw_norm_2": _AMONG[2],
                "ffn_gate_inp": "router.proj",
            },
            whole={
                "layer_output_scale.weight": "layer_scalar",
                "ffn_gate_inp.scale": "router.scale",
                "ffn_down_exps.scale": "router.per_expert_scale",
                "ffn_gate_up_exps.weight": "experts.gate_up_proj",
                "ffn_down_exps.weight": "experts.down_proj",
            },
            computed=("attention.shared_kv_layers", "final_logit_softcapping", *GGUF_COUNTS),
            varied=True,
        ),
    ),
)
