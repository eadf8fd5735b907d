"""What llama.cpp's converter makes of families whose matrices it parts, joins or reshapes: one `Conversion` for each.

As in `gguf_converter.py`, names are gguf's own, and changes those of llama.cpp's `conversion/`, written anew.
"""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np

from tests.support.gguf_conversion import Array, Config, Conversion, Found
from tests.support.gguf_hybrids import HYBRIDS

# --- DeepSeek V3, GLM-4.7-Flash ---------------------------------------------------------------------------------------


def _latent_parts(name: str, array: Array, config: Config) -> dict[str, Array] | None:
    """`DeepseekV2Model.modify_tensors`: rows for keys, of each head with axes swapped, and those for values."""
    if not name.endswith(".kv_b_proj.weight"):
        return None
    start, key = f"blk.{name.split('.')[2]}.attn_", config["qk_nope_head_dim"]
    heads = array.reshape(config["num_attention_heads"], key + config["v_head_dim"], -1)
    return {f"{start}k_b.weight": heads[:, :key].swapaxes(1, 2), f"{start}v_b.weight": heads[:, key:]}


def _latent_whole(name: str, found: Found, config: Config) -> Array | None:
    if not name.endswith(".kv_b_proj.weight"):
        return None
    start = f"blk.{name.split('.')[2]}.attn_"
    heads = np.concatenate([found[f"{start}k_b.weight"].swapaxes(1, 2), found[f"{start}v_b.weight"]], axis=1)
    return heads.reshape(-1, heads.shape[2])


def _unparted(name: str, array: Array, config: Config) -> None:
    """As older files have it."""


def _latent(writer: gguf.GGUFWriter, config: Config) -> None:
    _grouped(writer, config)
    latent, turned = config["kv_lora_rank"], config["qk_rope_head_dim"]
    writer.add_head_count_kv(1)
    if config["q_lora_rank"] is not None:
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(latent)
    writer.add_key_length(latent + turned)
    writer.add_value_length(latent)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + turned)
    writer.add_value_length_mla(config["v_head_dim"])
    _latent_ends(writer, config)


def _older_latent(writer: gguf.GGUFWriter, config: Config) -> None:
    """From before `attn_k_b`: heads as attention sees them."""
    _grouped(writer, config)
    if config["q_lora_rank"] is not None:
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(config["kv_lora_rank"])
    writer.add_key_length(config["qk_nope_head_dim"] + config["qk_rope_head_dim"])
    writer.add_value_length(config["v_head_dim"])
    _latent_ends(writer, config)


def _latent_ends(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_rope_dimension_count(config["qk_rope_head_dim"])
    if "mscale_all_dim" in config["rope_parameters"]:
        writer.add_rope_scaling_yarn_log_mul(0.1 * config["rope_parameters"]["mscale_all_dim"])
    if config["model_type"] == "glm4_moe_lite":
        writer.add_tokenizer_pre("glm4")
    else:
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def _grouped(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_group_count(config["n_group"])
    writer.add_expert_group_used_count(config["topk_group"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    kinds = config.get("mlp_layer_types") or ["dense"] * config["first_k_dense_replace"]
    writer.add_leading_dense_block_count(kinds.count("dense"))
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    if config["norm_topk_prob"]:
        writer.add_expert_weights_norm(True)


# --- Gemma 4 ----------------------------------------------------------------------------------------------------------


_OTHERWISE = {  # `Gemma4Model.filter_tensors` and `modify_tensors` write these names before they are looked up
    "layer_scalar": "layer_output_scale.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
}


def _by_other_names(name: str, array: Array, config: Config) -> dict[str, Array] | None:
    stored = _otherwise(name)
    return {stored: array} if stored else None


def _by_own_name(name: str, found: Found, config: Config) -> Array | None:
    stored = _otherwise(name)
    return found[stored] if stored else None


def _otherwise(name: str) -> str:
    own = name.split(".", 3)[-1]
    return f"blk.{name.split('.')[2]}.{_OTHERWISE[own]}" if own in _OTHERWISE else ""


def _wide(config: Config, key: str, own: str) -> Any:
    """Of layers that see everything: transformers saves what they have otherwise by their numbers."""
    each: Config = next(iter((config.get("per_layer_config") or {}).values()), {})
    return each.get(own) or config.get(key) or config[own]


def _stretched(config: Config) -> dict[str, Array]:
    wide = _wide(config, "global_head_dim", "head_dim")
    turned = int(wide * config["rope_parameters"]["full_attention"]["partial_rotary_factor"] / 2)
    return {"rope_freqs.weight": np.array([1.0] * turned + [1e30] * (wide // 2 - turned), np.float32)}


def _gemma4(writer: gguf.GGUFWriter, config: Config) -> None:
    wide, local = _wide(config, "global_head_dim", "head_dim"), config["head_dim"]
    layers, shared = config["num_hidden_layers"], config["num_kv_shared_layers"]
    sliding = [kind == "sliding_attention" for kind in config["layer_types"]]
    writer.add_shared_kv_layers(shared)
    writer.add_embedding_length_per_layer_input(config["hidden_size_per_layer_input"] or 0)
    writer.add_sliding_window(config["sliding_window"])
    writer.add_sliding_window_pattern(sliding)
    writer.add_key_length(wide)
    writer.add_value_length(wide)
    writer.add_key_length_swa(local)
    writer.add_value_length_swa(local)
    if config["use_double_wide_mlp"]:
        inner = config["intermediate_size"]
        writer.add_feed_forward_length([inner * (1 + (layer >= layers - shared)) for layer in range(layers)])
    if config["attention_k_eq_v"]:
        keys = _wide(config, "num_global_key_value_heads", "num_key_value_heads")
        writer.add_head_count_kv([config["num_key_value_heads"] if each else keys for each in sliding])
    if config["enable_moe_block"]:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["top_k_experts"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_rope_dimension_count(wide)
    writer.add_rope_dimension_count_swa(local)
    writer.add_rope_freq_base_swa(config["rope_parameters"]["sliding_attention"]["rope_theta"])
    if config["final_logit_softcapping"]:
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


# --- Llama 4 ----------------------------------------------------------------------------------------------------------


def _turned_parts(name: str, array: Array, config: Config) -> dict[str, Array] | None:
    """`Llama4Model.modify_tensors`: outputs before inputs, and gate and up apart, which follow one another."""
    if ".feed_forward.experts." not in name:
        return None
    start, turned = f"blk.{name.split('.')[2]}.ffn_", array.swapaxes(1, 2)
    if name.endswith(".down_proj"):
        return {f"{start}down_exps.weight": turned}
    gate, up = np.split(turned, 2, axis=1)
    return {f"{start}gate_exps.weight": gate, f"{start}up_exps.weight": up}


def _turned_whole(name: str, found: Found, config: Config) -> Array | None:
    if ".feed_forward.experts." not in name:
        return None
    kinds = ("down",) if name.endswith(".down_proj") else ("gate", "up")
    arrays = [found[f"blk.{name.split('.')[2]}.ffn_{kind}_exps.weight"] for kind in kinds]
    return np.concatenate(arrays, axis=1).swapaxes(1, 2)


def _llama4(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_feed_forward_length(config["intermediate_size_mlp"])
    writer.add_interleave_moe_layer_step(config["interleave_moe_layer_step"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])


def _stretched_llama(config: Config) -> dict[str, Array]:
    """`LlamaModel.generate_extra_tensors`, of bounds that are the same."""
    rope, dim = config["rope_parameters"], config["head_dim"]
    periods = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    length = rope["original_max_position_embeddings"]
    return {"rope_freqs.weight": np.where(periods < length, 1.0, rope["factor"]).astype(np.float32)}


_LATENT = Conversion(lambda config: "deepseek2", _latent_parts, _latent_whole, _latent)
OLDER_LATENT = Conversion(lambda config: "deepseek2", _unparted, lambda *_: None, _older_latent)
CONVERSIONS: dict[str, Conversion] = {
    "deepseek_v3": _LATENT,
    "glm4_moe_lite": _LATENT,
    "gemma4_text": Conversion(lambda config: "gemma4", _by_other_names, _by_own_name, _gemma4, _stretched),
    "llama4_text": Conversion(lambda config: "llama4", _turned_parts, _turned_whole, _llama4, _stretched_llama),
    **HYBRIDS,
}
