"""What llama.cpp's converter makes of families with layers by Mamba-2's rule: `GraniteHybridModel` and its like."""

from __future__ import annotations

import gguf
import numpy as np

from tests.support.gguf_conversion import Array, Config, Conversion, Found, mamba_part, mamba_whole

_SHARED = ".shared_mlp."


def _start(name: str) -> str:
    return f"blk.{name.split('.')[2]}."


# --- Granite 4 --------------------------------------------------------------------------------------------------------


def _end(config: Config) -> str:
    """Of the shared MLP's names, which is the only one where there are no experts."""
    return "_shexp" if config["num_local_experts"] else ""


def _granite_parts(name: str, array: Array, config: Config) -> dict[str, Array] | None:
    start, end = _start(name), _end(config)
    if name.endswith(f"{_SHARED}input_linear.weight"):
        gate, up = np.split(array, 2)
        return {f"{start}ffn_gate{end}.weight": gate, f"{start}ffn_up{end}.weight": up}
    if name.endswith(f"{_SHARED}output_linear.weight"):
        return {f"{start}ffn_down{end}.weight": array}
    part = mamba_part(name, array, config["mamba_n_groups"]) if ".mamba." in name else None
    return part and {f"{start}{part[0]}": part[1]}


def _granite_whole(name: str, found: Found, config: Config) -> Array | None:
    start, end = _start(name), _end(config)
    if name.endswith(f"{_SHARED}input_linear.weight"):
        return np.concatenate([found[f"{start}ffn_{kind}{end}.weight"] for kind in ("gate", "up")])
    if name.endswith(f"{_SHARED}output_linear.weight"):
        return found[f"{start}ffn_down{end}.weight"]
    return mamba_whole(name, found, start) if ".mamba." in name else None


def _granite(writer: gguf.GGUFWriter, config: Config) -> None:
    """A layer without heads for keys is recurrent; whether there is a rope stands where nobody would look for it."""
    keys, kinds = config["num_key_value_heads"], config["layer_types"]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_attention_scale(config["attention_multiplier"])
    writer.add_embedding_scale(config["embedding_multiplier"])
    writer.add_residual_scale(config["residual_multiplier"])
    writer.add_logit_scale(config["logits_scaling"])
    writer.add_expert_shared_feed_forward_length(config["shared_intermediate_size"])
    if not config["num_local_experts"]:
        writer.add_expert_count(0)
        writer.add_expert_used_count(0)
        writer.add_feed_forward_length(config["shared_intermediate_size"])
    writer.add_ssm_conv_kernel(config["mamba_d_conv"])
    writer.add_ssm_state_size(config["mamba_d_state"])
    writer.add_ssm_group_count(config["mamba_n_groups"])
    writer.add_ssm_inner_size(config["mamba_expand"] * config["hidden_size"])
    writer.add_ssm_time_step_rank(config["mamba_n_heads"])
    writer.add_head_count_kv([keys if kind in ("full_attention", "attention") else 0 for kind in kinds])
    writer.add_rope_scaling_finetuned(config["position_embedding_type"] == "rope")
    writer.add_context_length(2**20)


# --- Nemotron-H -------------------------------------------------------------------------------------------------------


def _has_experts(config: Config) -> bool:
    return "moe" in config["layers_block_type"]


def _nemotron_parts(name: str, array: Array, config: Config) -> dict[str, Array] | None:
    part = mamba_part(name, array, config["n_groups"]) if ".mixer." in name else None
    return part and {f"{_start(name)}{part[0]}": part[1]}


def _nemotron_whole(name: str, found: Found, config: Config) -> Array | None:
    return mamba_whole(name, found, _start(name)) if ".mixer." in name else None


def _nemotron(writer: gguf.GGUFWriter, config: Config) -> None:
    """A layer with heads for keys attends, one with a width is an MLP or experts, and others are recurrent."""
    kinds, heads = config["layers_block_type"], config["num_attention_heads"]
    sparse, inner = _has_experts(config), config["mamba_num_heads"] * config["mamba_head_dim"]
    wide = config["moe_intermediate_size"] if sparse else config["intermediate_size"]
    attends = [kind in ("full_attention", "attention") for kind in kinds]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)  # whatever heads have: nothing is turned
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_ssm_conv_kernel(config["conv_kernel"])
    writer.add_ssm_state_size(config["ssm_state_size"])
    writer.add_ssm_group_count(config["n_groups"])
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_time_step_rank(config["mamba_num_heads"])
    writer.add_head_count_kv([config["num_key_value_heads"] if each else 0 for each in attends])
    writer.add_feed_forward_length([wide if kind in ("mlp", "moe") else 0 for kind in kinds])
    writer.add_rope_scaling_finetuned(False)
    writer.add_context_length(2**20)
    if not sparse:
        writer.add_expert_used_count(0)
        return
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_feed_forward_length(config["moe_shared_expert_intermediate_size"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_group_count(config["n_group"])
    writer.add_expert_group_used_count(config["topk_group"])
    if config["moe_latent_size"] is not None:
        writer.add_moe_latent_size(config["moe_latent_size"])


_NEMOTRON = Conversion(
    lambda config: "nemotron_h_moe" if _has_experts(config) else "nemotron_h",
    _nemotron_parts,
    _nemotron_whole,
    _nemotron,
)


# --- Qwen3-Next -------------------------------------------------------------------------------------------------------


def _groups(config: Config) -> tuple[int, list[int]]:
    """Key heads, and where in each one's rows keys, values and gates begin."""
    keys, dim = config["linear_num_key_heads"], config["linear_key_head_dim"]
    values = config["linear_num_value_heads"] // keys * config["linear_value_head_dim"]
    return keys, [dim, 2 * dim, 2 * dim + values]


def _next_parts(name: str, array: Array, config: Config) -> dict[str, Array] | None:
    """`Qwen3NextModel.modify_tensors`: queries, keys and values of all heads, and their gates apart."""
    if not name.endswith(".in_proj_qkvz.weight"):
        return None
    keys, ends = _groups(config)
    parts = np.split(array.reshape(keys, -1, array.shape[1]), ends, axis=1)
    *mixed, gate = (part.reshape(-1, array.shape[1]) for part in parts)
    return {f"{_start(name)}attn_qkv.weight": np.concatenate(mixed), f"{_start(name)}attn_gate.weight": gate}


def _next_whole(name: str, found: Found, config: Config) -> Array | None:
    if not name.endswith(".in_proj_qkvz.weight"):
        return None
    mixed, gate = (found[f"{_start(name)}attn_{part}.weight"] for part in ("qkv", "gate"))
    keys, ends = _groups(config)
    parts = [*np.split(mixed, [keys * ends[0], keys * ends[1]]), gate]
    return np.concatenate([part.reshape(keys, -1, mixed.shape[1]) for part in parts], axis=1).reshape(
        -1, mixed.shape[1]
    )


def _older_next_parts(name: str, array: Array, config: Config) -> dict[str, Array] | None:
    """From before inputs were parted."""
    return {f"{_start(name)}ssm_in.weight": array} if name.endswith(".in_proj_qkvz.weight") else None


def _older_next_whole(name: str, found: Found, config: Config) -> Array | None:
    return found[f"{_start(name)}ssm_in.weight"] if name.endswith(".in_proj_qkvz.weight") else None


def _next(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(config["linear_key_head_dim"])
    writer.add_ssm_group_count(config["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(config["linear_num_value_heads"])
    writer.add_ssm_inner_size(config["linear_value_head_dim"] * config["linear_num_value_heads"])
    writer.add_full_attention_interval(config["layer_types"].index("full_attention") + 1)
    part = config["rope_parameters"].get("partial_rotary_factor", 0.25)
    writer.add_rope_dimension_count(int(config["head_dim"] * part))
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])


_QWEN3_NEXT = Conversion(lambda config: "qwen3next", _next_parts, _next_whole, _next)
OLDER_NEXT = Conversion(lambda config: "qwen3next", _older_next_parts, _older_next_whole, _next)
HYBRIDS: dict[str, Conversion] = {
    "granitemoehybrid": Conversion(lambda config: "granitehybrid", _granite_parts, _granite_whole, _granite),
    "nemotron_h": _NEMOTRON,
    "qwen3_next": _QWEN3_NEXT,
}
