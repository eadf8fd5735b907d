"""What the metadata of one family's GGUF files says that others' does not, as keys of its config.json. Pure.

Keys are those of llama.cpp's `gguf-py/gguf/constants.py`. What an architecture computes whatever its file says is
written out here: each line of that kind is how llama.cpp's graph of it, or the published model, has it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isclose, log
from typing import Any

from together.models.family import FULL, INPUTS, SLIDING
from together.models.gguf import hybrid_settings
from together.models.gguf.metadata import MetadataReader
from together.models.gguf.settings_pieces import Config, alike, experts_of, granite_factors, grouped_settings
from together.models.names import LAYER_EMBED

_GEMMA_27B = 62  # layers: the one Gemma 3 whose queries are scaled by the width of a head's share of the states
_NO_TURN = 1e20  # a period that is stretched by so much does not turn
_DEEPSEEK_EXPERTS = 256  # of DeepSeek V3, whose files are silent of groups where they are older than llama.cpp's groups
_CHUNK = 8192  # of Llama 4: tokens of a chunk, and of a step by which queries grow
_NO_ROPE = 4  # every so many of its layers have no rope, and see everything
_MAVERICK = 128  # experts of the Llama 4 that has no norms of queries and keys
_DEEPSEEK_GROUPS = {"n_group": 8, "topk_group": 4}


def more_settings(family: str, reader: MetadataReader, config: Config) -> dict[str, Any]:
    """Keys that replace those of `config`, which all families have. Raises UnsupportedModel or BrokenModel."""
    found = _OF.get(family)
    return found(reader, config) if found is not None else {}


def _gemma3(reader: MetadataReader, config: Config) -> dict[str, Any]:
    large = config["num_hidden_layers"] == _GEMMA_27B
    scaled = config["hidden_size"] // config["num_attention_heads"] if large else config["head_dim"]
    return {
        "sliding_window": reader.count("attention.sliding_window"),
        "sliding_window_pattern": reader.count("attention.sliding_window_pattern", 6),
        "query_pre_attn_scalar": scaled,
        "rope_local_base_freq": reader.number("rope.freq_base_swa", 10_000.0),
    }


def _gemma4(reader: MetadataReader, config: Config) -> dict[str, Any]:
    """Layers that see everything have heads of another width, of which `rope_freqs` says which part is turned.

    Where such a layer has no values, its keys are the values.
    """
    layers, wide = config["num_hidden_layers"], config["head_dim"]
    sliding = reader.sliding(layers, 6)
    if all(sliding) or reader.count("rope.dimension_count_swa") != reader.count("attention.key_length_swa"):
        raise reader.refuse("rope.dimension_count_swa", reader.count("rope.dimension_count_swa"))
    if not reader.factors or 2 * len(reader.factors) != wide:
        raise reader.refuse("rope_freqs.weight of length", len(reader.factors))
    turned = sum(factor == 1 for factor in reader.factors)
    if not turned or any(factor < _NO_TURN for factor in reader.factors[turned:]):
        raise reader.refuse("rope_freqs.weight", list(reader.factors[-3:]))
    keys, inner = (reader.of_layers(key, layers) for key in ("attention.head_count_kv", "feed_forward_length"))
    shared = reader.none_or("attention.shared_kv_layers") or 0
    local, full = (alike(reader, "attention.head_count_kv", keys, sliding, kind) for kind in (True, False))
    doubled = shared > 0 and inner[-1] != inner[0]
    if inner != [inner[0]] * (layers - shared) + [inner[0] * (1 + doubled)] * shared:
        raise reader.refuse("feed_forward_length", inner[-3:])
    first = sliding.index(False)
    theta = config["rope_theta"]
    part = {"rope_type": "proportional", "partial_rotary_factor": turned / len(reader.factors)}
    inputs = reader.none_or("embedding_length_per_layer_input")
    return _gemma4_experts(reader) | {
        "head_dim": reader.count("attention.key_length_swa"),
        "global_head_dim": wide,
        "num_key_value_heads": local or full,
        "num_global_key_value_heads": full,
        "attention_k_eq_v": f"model.layers.{first}.self_attn.v_proj.weight" not in reader.tensors,
        "num_kv_shared_layers": shared,
        "use_double_wide_mlp": doubled,
        "hidden_size_per_layer_input": inputs or 0,
        "vocab_size_per_layer_input": reader.tensors.get(LAYER_EMBED, (config["vocab_size"],))[0],
        "sliding_window": reader.count("attention.sliding_window"),
        "layer_types": [SLIDING if each else FULL for each in sliding],
        "final_logit_softcapping": reader.factor("final_logit_softcapping", 0.0) or None,
        "partial_rotary_factor": None,
        "rope_scaling": None,
        "rope_parameters": {
            FULL: {**part, "rope_theta": theta},
            SLIDING: {"rope_type": "default", "rope_theta": reader.number("rope.freq_base_swa", theta)},
        },
    }


def _gemma4_experts(reader: MetadataReader) -> dict[str, Any]:
    if reader.none_or("expert_count") is None:
        return {}
    found = experts_of(reader)
    return {
        **found,
        "enable_moe_block": True,
        "top_k_experts": found["num_experts_per_tok"],
        "moe_intermediate_size": reader.count("expert_feed_forward_length"),
    }


def _qwen3_moe(reader: MetadataReader, config: Config) -> dict[str, Any]:
    inner = reader.count("expert_feed_forward_length")
    return {**experts_of(reader), "moe_intermediate_size": inner, "norm_topk_prob": True}


def _qwen2_moe(reader: MetadataReader, config: Config) -> dict[str, Any]:
    return {
        **experts_of(reader),
        "moe_intermediate_size": reader.count("expert_feed_forward_length"),
        "shared_expert_intermediate_size": reader.count("expert_shared_feed_forward_length"),
        "norm_topk_prob": reader.flag("expert_weights_norm", False),
        "qkv_bias": reader.stores("self_attn.q_proj.bias"),
    }


def _olmoe(reader: MetadataReader, config: Config) -> dict[str, Any]:
    return {**experts_of(reader), "norm_topk_prob": reader.flag("expert_weights_norm", False)}


def _mixtral(reader: MetadataReader, config: Config) -> dict[str, Any]:
    return {**experts_of(reader, "num_local_experts"), **_mistral(reader, config)}


def _glm4_moe(reader: MetadataReader, config: Config) -> dict[str, Any]:
    reader.sigmoid()
    more = {"use_qk_norm": reader.stores("self_attn.q_norm.weight")}
    return {**_inputs_biased(reader, config), **grouped_settings(reader, config), **more}


def _deepseek(reader: MetadataReader, config: Config) -> dict[str, Any]:
    """DeepSeek V3 and what is made like it. Older files have keys and values as attention sees them, without `_mla`."""
    own = config["model_type"] == "deepseek_v3"
    reader.sigmoid(silent=not own)  # DeepSeek's file that says nothing means the router of DeepSeek V2
    latent, turned = reader.count("attention.kv_lora_rank"), reader.count("rope.dimension_count")
    end = "_mla" if reader.has("attention.key_length_mla") else ""
    found = {
        **grouped_settings(reader, config),
        "q_lora_rank": reader.none_or("attention.q_lora_rank"),
        "kv_lora_rank": latent,
        "qk_rope_head_dim": turned,
        "qk_nope_head_dim": reader.count(f"attention.key_length{end}") - turned,
        "v_head_dim": reader.count(f"attention.value_length{end}"),
        "num_key_value_heads": config["num_attention_heads"],
        "rope_interleave": True,
    }
    if own and found["n_routed_experts"] == _DEEPSEEK_EXPERTS and not reader.has("expert_group_count"):
        found |= _DEEPSEEK_GROUPS
    if config["rope_scaling"]:  # `mscale` is the same, as llama.cpp has it
        if not reader.has("rope.scaling.yarn_log_multiplier"):
            raise reader.refuse("rope.scaling.yarn_log_multiplier", "left out")
        scale = round(10 * reader.number("rope.scaling.yarn_log_multiplier"), 6)
        found["rope_scaling"] = {**config["rope_scaling"], "mscale": scale, "mscale_all_dim": scale}
    return found


def _minimax_m2(reader: MetadataReader, config: Config) -> dict[str, Any]:
    reader.sigmoid()
    return {**experts_of(reader, "num_local_experts"), "intermediate_size": reader.count("expert_feed_forward_length")}


def _gpt_oss(reader: MetadataReader, config: Config) -> dict[str, Any]:
    """Windows in every other layer, and YaRN whose bounds are not rounded: no file says so."""
    scaling = config["rope_scaling"]
    return {
        **experts_of(reader, "num_local_experts"),
        "intermediate_size": reader.count("expert_feed_forward_length", config["intermediate_size"]),
        "sliding_window": reader.count("attention.sliding_window"),
        "rope_scaling": scaling and {**scaling, "truncate": False},
    }


def _llama4(reader: MetadataReader, config: Config) -> dict[str, Any]:
    """Of chunks, layers without rope and growing queries no file says anything, of norms only how many experts are."""
    layers, step = config["num_hidden_layers"], reader.count("interleave_moe_layer_step")
    if reader.has("attention.sliding_window") and reader.none_or("attention.sliding_window") != _CHUNK:
        raise reader.refuse("attention.sliding_window", reader.none_or("attention.sliding_window") or 0)
    if reader.number("rope.freq_base_swa", config["rope_theta"]) != config["rope_theta"]:
        raise reader.refuse("rope.freq_base_swa", reader.number("rope.freq_base_swa"))
    chunked = reader.sliding(layers, _NO_ROPE)
    experts = experts_of(reader, "num_local_experts")
    return {
        **experts,
        "intermediate_size": reader.count("expert_feed_forward_length"),
        "intermediate_size_mlp": config["intermediate_size"],
        "interleave_moe_layer_step": step,
        "no_rope_layers": [int((layer + 1) % _NO_ROPE != 0) for layer in range(layers)],
        "layer_types": ["chunked_attention" if each else FULL for each in chunked],
        "attention_chunk_size": _CHUNK,
        "floor_scale": _CHUNK,
        "attn_scale": 0.1,
        "use_qk_norm": experts["num_local_experts"] != _MAVERICK,
    }


def _qwen3_vl(reader: MetadataReader, config: Config) -> dict[str, Any]:
    """Of the text model: positions of texts are the same on all axes."""
    *sections, more = reader.of_layers("rope.dimension_sections", 4)
    if more:
        raise reader.refuse("rope.dimension_sections", [*sections, more])
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"], "mrope_section": sections}
    return {"rope_scaling": None, "rope_parameters": rope}


def _mistral(reader: MetadataReader, config: Config) -> dict[str, Any]:
    return {"sliding_window": reader.none_or("attention.sliding_window")}


def _granite(reader: MetadataReader, config: Config) -> dict[str, Any]:
    if not reader.flag("rope.scaling.finetuned", True):  # so files of Granite 4 say that a model has no rope
        raise reader.refuse("rope.scaling.finetuned", False)
    return granite_factors(reader, config)


def _granitemoe(reader: MetadataReader, config: Config) -> dict[str, Any]:
    return {**_granite(reader, config), **experts_of(reader, "num_local_experts")}


def _olmo3(reader: MetadataReader, config: Config) -> dict[str, Any]:
    """Only the rope of layers without a window is scaled."""
    theta, scaling = config["rope_theta"], config["rope_scaling"]
    full = {**(scaling or {"rope_type": "default"}), "rope_theta": theta}
    for key in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"):
        if scaling and reader.has(key) and not _follows(reader.number(key), scaling["factor"]):
            full["attention_factor"] = reader.number(key)
    local = {"rope_type": "default", "rope_theta": reader.number("rope.freq_base_swa", theta)}
    return {**_windows(reader, config), "rope_scaling": None, "rope_parameters": {FULL: full, SLIDING: local}}


def _follows(attention: float, factor: float) -> bool:
    """Whether it is the attention factor that YaRN has by itself; it lies in fp32."""
    return isclose(attention, 0.1 * log(max(factor, 1.0)) + 1.0, rel_tol=1e-6)


def _windows(reader: MetadataReader, config: Config) -> dict[str, Any]:
    """In three of four layers, where a file says no more."""
    window = reader.none_or("attention.sliding_window")
    if window is None:
        return {"sliding_window": None}
    sliding = reader.sliding(config["num_hidden_layers"], 4)
    return {"sliding_window": window, "layer_types": [SLIDING if each else FULL for each in sliding]}


def _seed_oss(reader: MetadataReader, config: Config) -> dict[str, Any]:
    return {**_inputs_biased(reader, config), "attention_out_bias": reader.stores("self_attn.o_proj.bias")}


def _inputs_biased(reader: MetadataReader, config: Config) -> dict[str, Any]:
    return {"attention_bias": reader.stores(f"self_attn.{INPUTS[0]}.bias")}


def _ministral3(reader: MetadataReader, config: Config) -> dict[str, Any]:
    """The factor of attention is that of `mscale` 1, which no file has, by `mscale_all_dim`."""
    scaling = {
        "mscale": 1.0,
        "mscale_all_dim": reader.number("rope.scaling.yarn_log_multiplier"),
        "llama_4_scaling_beta": reader.number("attention.temperature_scale"),
    }
    return {"rope_scaling": {**(config["rope_scaling"] or {}), **scaling}}


_OF: dict[str, Callable[[MetadataReader, Config], dict[str, Any]]] = {
    "deepseek_v3": _deepseek,
    "gemma3_text": _gemma3,
    "exaone4": _windows,
    "gemma4_text": _gemma4,
    "glm4": _inputs_biased,
    "glm4_moe": _glm4_moe,
    "glm4_moe_lite": _deepseek,
    "gpt_oss": _gpt_oss,
    "granite": _granite,
    "granitemoe": _granitemoe,
    "granitemoehybrid": hybrid_settings.granite_hybrid,
    "llama4_text": _llama4,
    "minimax_m2": _minimax_m2,
    "ministral3": _ministral3,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "nemotron_h": hybrid_settings.nemotron_h,
    "olmo3": _olmo3,
    "olmoe": _olmoe,
    "phi3": _mistral,
    "qwen2_moe": _qwen2_moe,
    "qwen3_5_moe_text": hybrid_settings.qwen3_5_moe,
    "qwen3_5_text": hybrid_settings.qwen3_5,
    "qwen3_moe": _qwen3_moe,
    "qwen3_next": hybrid_settings.qwen3_next,
    "qwen3_vl_text": _qwen3_vl,
    "seed_oss": _seed_oss,
}
