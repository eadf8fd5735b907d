"""What the metadata of GGUF files with recurrent layers say that others' do not, as keys of config.json. Pure.

As in `settings.py`, each line of what no file says is how llama.cpp's graph, or the published model, has it.
"""

from __future__ import annotations

from typing import Any

from together.models.family import FULL, LINEAR
from together.models.gguf.metadata import MetadataReader
from together.models.gguf.settings_pieces import Config, alike, experts_of, granite_factors, grouped_settings

_NO_LEAST = 1e-12  # of a step's length: llama.cpp has no bound, as the publisher's own code, where transformers has one


def qwen3_5(reader: MetadataReader, config: Config) -> dict[str, Any]:
    """Positions are of texts alone, so that rope's sections for pictures turn as one.

    Newer files say of each layer whether it has a state, also of those that predict more tokens at once.
    """
    heads, inner = reader.count("ssm.time_step_rank"), reader.count("ssm.inner_size")
    layers = config["num_hidden_layers"] - (reader.none_or("nextn_predict_layers") or 0)
    kinds: dict[str, Any] = {}
    if reader.has("attention.recurrent_layers"):
        flags = reader.flags("attention.recurrent_layers", config["num_hidden_layers"])
        kinds["layer_types"] = [LINEAR if each else FULL for each in flags[:layers]]
    return {
        **kinds,
        "num_hidden_layers": layers,
        "full_attention_interval": reader.count("full_attention_interval", 4),
        "linear_conv_kernel_dim": reader.count("ssm.conv_kernel"),
        "linear_key_head_dim": reader.count("ssm.state_size"),
        "linear_num_key_heads": reader.count("ssm.group_count"),
        "linear_num_value_heads": heads,
        "linear_value_head_dim": inner // heads,
    }


def qwen3_5_moe(reader: MetadataReader, config: Config) -> dict[str, Any]:
    return {
        **qwen3_5(reader, config),
        **experts_of(reader),
        "moe_intermediate_size": reader.count("expert_feed_forward_length"),
        "shared_expert_intermediate_size": reader.count("expert_shared_feed_forward_length"),
    }


def qwen3_next(reader: MetadataReader, config: Config) -> dict[str, Any]:
    return {**qwen3_5_moe(reader, config), "norm_topk_prob": True}


def granite_hybrid(reader: MetadataReader, config: Config) -> dict[str, Any]:
    """A layer without heads for keys is recurrent; that rope is finetuned says that there is one."""
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    keys, experts = reader.of_layers("attention.head_count_kv", layers), reader.none_or("expert_count") or 0
    attends = [count > 0 for count in keys]
    alike(reader, "attention.head_count_kv", keys, attends, True)
    heads, inner = reader.count("ssm.time_step_rank"), reader.count("ssm.inner_size")
    if inner % heads or inner % hidden:
        raise reader.refuse("ssm.inner_size", inner)
    first, other = attends.index(True), attends.index(False) if False in attends else 0
    found = {
        **granite_factors(reader, config),
        "attention_bias": reader.stores("self_attn.o_proj.bias", first),
        "layer_types": [FULL if each else LINEAR for each in attends],
        "position_embedding_type": "rope" if reader.flag("rope.scaling.finetuned", True) else "nope",
        "num_local_experts": experts,
        "shared_intermediate_size": reader.count("expert_shared_feed_forward_length", config["intermediate_size"]),
        "mamba_d_conv": reader.count("ssm.conv_kernel"),
        "mamba_d_state": reader.count("ssm.state_size"),
        "mamba_n_groups": reader.count("ssm.group_count"),
        "mamba_n_heads": heads,
        "mamba_d_head": inner // heads,
        "mamba_expand": inner // hidden,
        "mamba_conv_bias": reader.stores("mamba.conv1d.bias", other),
    }
    return found | (experts_of(reader, "num_local_experts") if experts else {})


def nemotron_h(reader: MetadataReader, config: Config) -> dict[str, Any]:
    """A layer with heads for keys attends, one with a width is an MLP or experts, and others are recurrent."""
    layers = config["num_hidden_layers"] - (reader.none_or("nextn_predict_layers") or 0)
    keys, inner = (reader.of_layers(key, layers) for key in ("attention.head_count_kv", "feed_forward_length"))
    sparse = reader.none_or("expert_count") is not None
    alike(reader, "attention.head_count_kv", keys, [count > 0 for count in keys], True)
    alike(reader, "feed_forward_length", inner, [count > 0 for count in inner], True)
    if any(count and width for count, width in zip(keys, inner, strict=True)):
        raise reader.refuse("feed_forward_length", inner[:3])
    wide = "moe" if sparse else "mlp"
    kinds = [FULL if count else wide if width else LINEAR for count, width in zip(keys, inner, strict=True)]
    heads, whole = reader.count("ssm.time_step_rank"), reader.count("ssm.inner_size")
    if whole % heads:
        raise reader.refuse("ssm.inner_size", whole)
    first = {kind: kinds.index(kind) for kind in kinds}
    return {
        **(_nemotron_experts(reader, config) if sparse else {}),
        "num_hidden_layers": layers,
        "layer_types": kinds,
        "layer_norm_epsilon": config["rms_norm_eps"],
        "time_step_min": _NO_LEAST,
        "conv_kernel": reader.count("ssm.conv_kernel"),
        "ssm_state_size": reader.count("ssm.state_size"),
        "n_groups": reader.count("ssm.group_count"),
        "mamba_num_heads": heads,
        "mamba_head_dim": whole // heads,
        "use_conv_bias": LINEAR not in first or reader.stores("mixer.conv1d.bias", first[LINEAR]),
        "mlp_bias": "mlp" in first and reader.stores("mixer.up_proj.bias", first["mlp"]),
    }


def _nemotron_experts(reader: MetadataReader, config: Config) -> dict[str, Any]:
    reader.sigmoid()
    return {
        **grouped_settings(reader, config),
        "moe_shared_expert_intermediate_size": reader.count("expert_shared_feed_forward_length"),
        "moe_latent_size": reader.none_or("moe_latent_size"),
    }
