"""What llama.cpp's converter makes of a family's tensors and configuration, and what its files stand for.

Names are gguf's own (`get_tensor_name_map`); changes of weights are those of llama.cpp's `conversion/`, written anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from tests.support.gguf_later import CONVERSIONS

Array = npt.NDArray[Any]
Config = Mapping[str, Any]

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
    "qwen3_moe": "qwen3moe",
    "gpt_oss": "gpt-oss",
    "granite": "granite",
    "smollm3": "smollm3",
    "olmo2": "olmo2",
    "olmo3": "olmo2",
    "seed_oss": "seed_oss",
    "exaone4": "exaone4",
    "glm4": "glm4",
    "phi3": "phi3",
    "ministral3": "mistral3",
    "granitemoe": "granitemoe",
    "qwen2_moe": "qwen2moe",
    "olmoe": "olmoe",
    "mixtral": "llama",
    "glm4_moe": "glm4moe",
    "minimax_m2": "minimax-m2",
    "qwen3_5_text": "qwen35",
    "qwen3_5_moe_text": "qwen35moe",
    "qwen3_vl_text": "qwen3vl",
}
_INTERLEAVED = (  # `LlamaModel` and what is derived of it
    "llama", "mistral", "granite", "granitemoe", "granitemoehybrid", "nemotron_h", "smollm3", "ministral3",
    "mixtral",
)  # fmt: skip
_NEXT = ("glm4_moe", "qwen3_5_text")  # written with a layer more, which predicts the token after the next one
_LINEAR = ".linear_attn."
_NO_HEAD_DIM = ("granite", "granitemoe", "granitemoehybrid", "phi3")
_EXPERT = re.compile(r"(?:model|backbone)\.layers\.(\d+)\.\w+\.experts\.(\d+)\.(\w+)\.weight")
_FUSED = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj(_bias|)")
_GATE_UP = ".block_sparse_moe.input_linear.weight"  # Granite's experts, gate before up
_HALVES = ".mlp.experts.gate_up_proj"  # Qwen3.5's, gate before up; gpt-oss's come in turns
_KINDS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}


def architecture_of(config: Config) -> str:
    later = CONVERSIONS.get(config["model_type"])
    return later.architecture(config) if later else ARCHITECTURES[config["model_type"]]


def stored(tensors: Mapping[str, Array], config: Config, *, stacked: bool) -> dict[str, Array]:
    """Published tensors under their names in a file, as they lie there."""
    found: dict[str, Array] = {}
    experts: dict[str, dict[int, Array]] = {}
    for name, array in tensors.items():
        if _is_halves(name, config):
            layer, half = name.split(".")[2], array.shape[1] // 2
            found[f"blk.{layer}.ffn_gate_exps.weight"] = array[:, :half]
            found[f"blk.{layer}.ffn_up_exps.weight"] = array[:, half:]
        elif fused := _is_fused(name, config):
            found |= _parted(fused, array)
        elif (later := CONVERSIONS.get(config["model_type"])) and (parts := later.parts(name, array, config)):
            found |= parts
        elif match := _EXPERT.fullmatch(name):
            layer, expert, kind = match[1], int(match[2]), _KINDS[match[3]]
            if stacked:
                experts.setdefault(f"blk.{layer}.ffn_{kind}_exps.weight", {})[expert] = array
            else:
                found[f"blk.{layer}.ffn_{kind}.{expert}.weight"] = array
        else:
            found[_name(name, config)] = _changed(name, array, config)
    found |= {name: np.stack([each[i] for i in sorted(each)]) for name, each in experts.items()}
    if config["model_type"] in CONVERSIONS:
        found |= CONVERSIONS[config["model_type"]].more(config)
    return found | (_next(found, config) if config["model_type"] in _NEXT else {})


def _next(found: Mapping[str, Array], config: Config) -> dict[str, Array]:
    """A layer that predicts the token after the next one: a usual one, and what is its own."""
    last, hidden = config["num_hidden_layers"], config["hidden_size"]
    start = f"blk.{last - 1}."
    made = {name.replace(start, f"blk.{last}."): array for name, array in found.items() if name.startswith(start)}
    own = {"eh_proj": (hidden, 2 * hidden), "enorm": (hidden,), "hnorm": (hidden,), "shared_head_norm": (hidden,)}
    return made | {f"blk.{last}.nextn.{name}.weight": np.ones(shape, np.float32) for name, shape in own.items()}


def published(found: Mapping[str, Array], tensors: Mapping[str, Array], config: Config) -> Iterator[tuple[str, Array]]:
    """What `stored` made of `tensors`, undone: arrays by their published names."""
    for name in tensors:
        if _is_halves(name, config):
            start = f"blk.{name.split('.')[2]}.ffn_"
            yield name, np.concatenate([found[f"{start}{kind}_exps.weight"] for kind in ("gate", "up")], axis=1)
        elif fused := _is_fused(name, config):
            yield name, _joined(fused, found)
        elif (later := CONVERSIONS.get(config["model_type"])) and (
            whole := later.whole(name, found, config)
        ) is not None:
            yield name, whole
        elif match := _EXPERT.fullmatch(name):
            layer, expert, kind = match[1], int(match[2]), _KINDS[match[3]]
            stack = found.get(f"blk.{layer}.ffn_{kind}_exps.weight")
            yield name, found[f"blk.{layer}.ffn_{kind}.{expert}.weight"] if stack is None else stack[expert]
        else:
            yield name, _changed_back(name, found[_name(name, config)], config)


def _is_fused(name: str, config: Config) -> re.Match[str] | None:
    return _FUSED.fullmatch(name) if config["model_type"] == "gpt_oss" else None


def _is_halves(name: str, config: Config) -> bool:
    return name.endswith(_GATE_UP) or (name.endswith(_HALVES) and config["model_type"] == "qwen3_5_moe_text")


def _name(name: str, config: Config) -> str:
    """`GptOssModel.filter_tensors` and `TextModel` write some names otherwise before they are looked up."""
    if name.endswith(".sinks"):
        name += ".weight"
    name = name.replace(".dt_bias", ".dt_proj.bias")
    if name.endswith(".mlp.experts.down_proj") and config["model_type"] == "qwen3_5_moe_text":
        name += ".weight"
    name = name.replace("e_score_correction_bias", "e_score_correction.bias")
    architecture = next(key for key, each in gguf.MODEL_ARCH_NAMES.items() if each == architecture_of(config))
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    known = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert known is not None, name
    return known


# --- changes ----------------------------------------------------------------------------------------------------------


def _changed(name: str, array: Array, config: Config) -> Array:
    heads = _heads(name, config)
    if heads:
        return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    if _LINEAR in name:
        return _tiled(name, -np.exp(array) if name.endswith("A_log") else array, config)
    return array + 1 if _is_larger(name, config) else array


def _changed_back(name: str, array: Array, config: Config) -> Array:
    heads = _heads(name, config)
    if heads:
        return array.reshape(heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    if _LINEAR in name:
        array = _tiled(name, array, config, back=True)
        return np.log(-array) if name.endswith("A_log") else array
    return array - 1 if _is_larger(name, config) else array


def _tiled(name: str, array: Array, config: Config, *, back: bool = False) -> Array:
    """`_LinearAttentionVReorderBase`: of each head of keys the first head of values, then the second ones."""
    if name.endswith("conv1d.weight"):
        array = array[:, None, :] if back else array.squeeze(1)
    keys, size = config["linear_num_key_heads"], config["linear_value_head_dim"]
    each, part = config["linear_num_value_heads"] // keys, name.partition(_LINEAR)[2]
    if part == "norm.weight" or each == 1 or config["model_type"] == "qwen3_next":
        return array
    width = 1 if part in ("in_proj_a.weight", "in_proj_b.weight", "A_log", "dt_bias") else size
    first = 2 * keys * config["linear_key_head_dim"] if part in ("in_proj_qkv.weight", "conv1d.weight") else 0
    turned = array.T if part == "out_proj.weight" else array
    shape = (each, keys, width) if back else (keys, each, width)
    heads = turned[first:].reshape(*shape, *turned.shape[1:]).swapaxes(0, 1).reshape(turned[first:].shape)
    found = np.concatenate([turned[:first], heads])
    return found.T if part == "out_proj.weight" else found


def _heads(name: str, config: Config) -> int:
    if config["model_type"] not in _INTERLEAVED:
        return 0
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    found: int = heads.get(name.split(".")[-2], 0)
    return found


def _is_larger(name: str, config: Config) -> bool:
    larger = ("gemma3_text", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next")
    return config["model_type"] in larger and name.endswith("norm.weight")


def _parted(match: re.Match[str], array: Array) -> dict[str, Array]:
    """gpt-oss: outputs before inputs, and gate and up apart, which come in turns."""
    layer, part, end = match.groups()
    array, end = (array, "bias") if end else (array.swapaxes(1, 2), "weight")
    if part == "down":
        return {f"blk.{layer}.ffn_down_exps.{end}": array}
    return {f"blk.{layer}.ffn_{kind}_exps.{end}": array[:, start::2] for start, kind in enumerate(("gate", "up"))}


def _joined(match: re.Match[str], found: Mapping[str, Array]) -> Array:
    layer, part, end = match.groups()
    kinds = ("gate", "up") if part == "gate_up" else ("down",)
    arrays = [found[f"blk.{layer}.ffn_{kind}_exps.{'bias' if end else 'weight'}"] for kind in kinds]
    array = np.stack(arrays, axis=2).reshape(arrays[0].shape[0], -1, *arrays[0].shape[2:])
    return array if end else array.swapaxes(1, 2)


# --- metadata ---------------------------------------------------------------------------------------------------------


def write_metadata(writer: gguf.GGUFWriter, config: Config) -> None:
    """As `TextModel.set_gguf_parameters` has it, and then the family's."""
    writer.add_block_count(config["num_hidden_layers"] + (config["model_type"] in _NEXT))
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    if "intermediate_size" in config:
        writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    if config.get("head_dim") is not None and config["model_type"] not in _NO_HEAD_DIM:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if "rms_norm_eps" in config:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config.get("rope_parameters"):
        _write_rope(writer, config["rope_parameters"].get("full_attention", config["rope_parameters"]))
    experts = config.get("num_local_experts") or config.get("num_experts")
    if experts:
        writer.add_expert_count(experts)
    if config.get("num_experts_per_tok"):
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if config["model_type"] in _NEXT:
        writer.add_nextn_predict_layers(1)
    later = CONVERSIONS.get(config["model_type"])
    more = later.settings if later else _MORE.get(config["model_type"])
    if more is not None:
        more(writer, config)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 2)


def _write_rope(writer: gguf.GGUFWriter, rope: Mapping[str, Any]) -> None:
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if rope.get("attention_factor") is not None:
            writer.add_rope_scaling_yarn_attn_factor(rope["attention_factor"])
        if rope.get("beta_fast") is not None:
            writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        if rope.get("beta_slow") is not None:
            writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])


def _llama(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(_head_dim(config))


def _head_dim(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _granite(writer: gguf.GGUFWriter, config: Config) -> None:
    _llama(writer, config)
    writer.add_attention_scale(config["attention_multiplier"])
    writer.add_embedding_scale(config["embedding_multiplier"])
    writer.add_residual_scale(config["residual_multiplier"])
    writer.add_logit_scale(config["logits_scaling"])


def _windows(writer: gguf.GGUFWriter, config: Config) -> None:
    """Of OLMo 3 and EXAONE 4."""
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])


def _turned(writer: gguf.GGUFWriter, config: Config) -> None:
    part = config["rope_parameters"].get("partial_rotary_factor", 0.5)
    writer.add_rope_dimension_count(int(_head_dim(config) * part))


def _phi3(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_rope_scaling_orig_ctx_len(config["max_position_embeddings"])
    part = config["rope_parameters"].get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(part * config["hidden_size"]) // config["num_attention_heads"])
    writer.add_sliding_window(config["sliding_window"] or 0)


def _ministral3(writer: gguf.GGUFWriter, config: Config) -> None:
    _llama(writer, config)
    writer.add_rope_scaling_yarn_log_mul(config["rope_parameters"]["mscale_all_dim"])
    writer.add_attn_temperature_scale(config["rope_parameters"]["llama_4_scaling_beta"])


def _mistral(writer: gguf.GGUFWriter, config: Config) -> None:
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])


def _gemma3(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_sliding_window(config["sliding_window"])
    writer.add_uint32("gemma3.attention.sliding_window_pattern", config["layer_types"].index("full_attention") + 1)


def _qwen3_moe(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


def _qwen2_moe(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])


def _glm4_moe(writer: gguf.GGUFWriter, config: Config) -> None:
    _turned(writer, config)
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_group_count(config["n_group"])
    writer.add_expert_group_used_count(config["topk_group"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])


def _minimax_m2(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    _turned(writer, config)


def _qwen3_5(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(config["linear_key_head_dim"])
    writer.add_ssm_group_count(config["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(config["linear_num_value_heads"])
    writer.add_ssm_inner_size(config["linear_value_head_dim"] * config["linear_num_value_heads"])
    if config["model_type"] in _NEXT:  # as the newer converter has it, which says it of all layers
        kinds = [*config["layer_types"], "full_attention"]
        writer.add_array("qwen35.attention.recurrent_layers", [kind == "linear_attention" for kind in kinds])
        writer.add_full_attention_interval(4)
    else:
        writer.add_full_attention_interval(config["layer_types"].index("full_attention") + 1)
    writer.add_rope_dimension_sections([11, 11, 10, 0])
    _turned(writer, config)
    if "moe_intermediate_size" in config:
        _qwen2_moe(writer, config)


def _qwen3_vl(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_rope_dimension_sections([*config["rope_parameters"]["mrope_section"], 0])
    writer.add_num_deepstack_layers(2)


def _gpt_oss(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_sliding_window(config["sliding_window"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])


_MORE: dict[str, Callable[[gguf.GGUFWriter, Config], None]] = {
    "mistral": _mistral,
    "gemma3_text": _gemma3,
    "qwen3_moe": _qwen3_moe,
    "gpt_oss": _gpt_oss,
    "granite": _granite,
    "granitemoe": _granite,
    "smollm3": _llama,
    "olmo3": _windows,
    "exaone4": _windows,
    "glm4": _turned,
    "phi3": _phi3,
    "ministral3": _ministral3,
    "qwen2_moe": _qwen2_moe,
    "mixtral": _llama,
    "glm4_moe": _glm4_moe,
    "minimax_m2": _minimax_m2,
    "qwen3_5_text": _qwen3_5,
    "qwen3_5_moe_text": _qwen3_5,
    "qwen3_vl_text": _qwen3_vl,
}
