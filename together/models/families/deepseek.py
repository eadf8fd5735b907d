"""DeepSeek V3, Kimi K2 and GLM-4.7-Flash: keys and values made from one latent, and experts chosen by groups.

mlx-lm's files have the matrix that makes keys and values as two, by heads: `embed_q` and `unembed_out`.

Checkpoints end with layers that predict more tokens at once; nobody asks for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from together.errors import BrokenModel, UnsupportedModel
from together.models.family import (
    GGUF_COUNTS,
    GGUF_EXPERTS,
    GGUF_GROUPED,
    GGUF_OF_ALL,
    GGUF_USUAL,
    Config,
    Family,
    GgufNames,
    Tensors,
    mlp_tensors,
    norm_tensors,
    start_of,
    usual_range,
)
from together.models.grouped import grouped_experts, shared_expert_tensors
from together.models.state import Latent, LayerState
from together.models.values import Values, bad_value
from together.types import LayerRange

_DENSE, _SPARSE = "dense", "sparse"
_MLX = {"first_k_dense_replace": 1, "moe_layer_freq": 1}


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    yield from _attention(config, layer)
    yield from norm_tensors(config, layer, "input_layernorm", "post_attention_layernorm")
    if config["mlp_layer_types"][layer] == _DENSE:
        yield from mlp_tensors(config, layer)
    else:
        yield from shared_expert_tensors(config, layer, stacked)


def _attention(config: Config, layer: int) -> Tensors:
    start, hidden, heads = f"{start_of(layer)}self_attn.", config["hidden_size"], config["num_attention_heads"]
    latent, turned, asked = config["kv_lora_rank"], config["qk_rope_head_dim"], config["q_lora_rank"]
    plain, value = config["qk_nope_head_dim"], config["v_head_dim"]
    queries, first = heads * (plain + turned), "kv_a_proj_with_mqa"
    matrices = {first: (latent + turned, hidden), "kv_b_proj": (heads * (plain + value), latent)}
    matrices["o_proj"] = hidden, heads * value
    if asked is None:
        matrices["q_proj"] = queries, hidden
    else:
        matrices |= {"q_a_proj": (asked, hidden), "q_b_proj": (queries, asked)}
        yield f"{start}q_a_layernorm.weight", (asked,)
    yield f"{start}kv_a_layernorm.weight", (latent,)
    for name, shape in matrices.items():
        yield f"{start}{name}.weight", shape
        if config["attention_bias"] and name in (first, "q_a_proj", "o_proj"):
            yield f"{start}{name}.bias", shape[:1]


def _parted(config: Config, layer: int) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
    """Of a head, mlx-lm has the rows of `kv_b_proj` for keys with outputs and inputs swapped, and those for values."""
    heads, latent = config["num_attention_heads"], config["kv_lora_rank"]
    start = f"{start_of(layer)}self_attn."
    parts = {
        f"{start}embed_q.weight": (heads, latent, config["qk_nope_head_dim"]),
        f"{start}unembed_out.weight": (heads, config["v_head_dim"], latent),
    }
    return {f"{start}kv_b_proj.weight": parts}


def _state(config: Config, layer: int) -> LayerState:
    return Latent(config["kv_lora_rank"], config["qk_rope_head_dim"])


def _deepseek(values: Values, config: Config) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    first = values.count_or_none("first_k_dense_replace", 3)
    if values.found.get("moe_layer_freq") not in (None, 1):
        raise _other(values, "moe_layer_freq")
    kinds = [_DENSE if layer < first else _SPARSE for layer in range(layers)]
    return _more(values, config, 256, 1536, 2.5) | {"mlp_layer_types": kinds, "first_k_dense_replace": first}


def _glm(values: Values, config: Config) -> dict[str, Any]:
    layers, kinds = config["num_hidden_layers"], values.found.get("mlp_layer_types")
    if kinds is None:
        first = values.count_or_none("first_k_dense_replace", 1)
        kinds = [_DENSE if layer < first else _SPARSE for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (_DENSE, _SPARSE) for kind in kinds):
        raise bad_value(values.name, "mlp_layer_types", kinds)
    first = next((layer for layer, kind in enumerate(kinds) if kind == _SPARSE), layers)
    return _more(values, config, 64, 768, 1.8) | {"mlp_layer_types": list(kinds), "first_k_dense_replace": first}


def _more(values: Values, config: Config, experts: int, rank: int, scale: float) -> dict[str, Any]:
    """Raises BrokenModel and UnsupportedModel."""
    straight = values.found.get("q_lora_rank", rank) is None  # null is a word of its own here
    return {
        "n_routed_experts": grouped_experts(values, config, experts),
        "num_key_value_heads": config["num_attention_heads"],  # each has its own, whatever is said
        "q_lora_rank": None if straight else values.count("q_lora_rank", rank),
        "routed_scaling_factor": values.number("routed_scaling_factor", scale),
        "norm_topk_prob": values.switch("norm_topk_prob", True),
        "rope_interleave": values.switch("rope_interleave", True),
        "head_dim": config["qk_rope_head_dim"],  # what rope turns
        "num_nextn_predict_layers": 0,
    }


def _other(values: Values, key: str) -> BrokenModel | UnsupportedModel:
    value = values.found.get(key)
    if type(value) is not int:
        return bad_value(values.name, key, value)
    return UnsupportedModel(
        "config.json of {model} has {key} = {value}, which does not run here; choose another model",
        model=values.name,
        key=key,
        value=value,
    )


def _ranged(config: Config, layers: LayerRange) -> dict[str, Any]:
    found = usual_range(config, layers)
    found["mlp_layer_types"] = list(config["mlp_layer_types"][layers.start : layers.stop])
    found["first_k_dense_replace"] = max(0, config["first_k_dense_replace"] - layers.start)
    return found


def _number(config: Config, layer: int) -> int:
    """To mlx-lm, the first layers are dense, and with `_MLX` it is the first one alone."""
    return int(config["mlp_layer_types"][layer] == _SPARSE)


def _gguf(architecture: str = "") -> GgufNames:
    """`attn_k_b` and `attn_v_b` are laid out as mlx-lm's two; older files have them as one, as it was published."""
    names = {
        **GGUF_USUAL,
        **GGUF_EXPERTS,
        **GGUF_OF_ALL,
        "attn_q_a": "self_attn.q_a_proj",
        "attn_q_a_norm": "self_attn.q_a_layernorm",
        "attn_q_b": "self_attn.q_b_proj",
        "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
        "attn_kv_a_norm": "self_attn.kv_a_layernorm",
        "attn_kv_b": "self_attn.kv_b_proj",
        "attn_k_b": "self_attn.embed_q",
        "attn_v_b": "self_attn.unembed_out",
    }
    correction = {"exp_probs_b.bias": "mlp.gate.e_score_correction_bias"}
    computed = (*GGUF_COUNTS, *GGUF_GROUPED, "rope.scaling.yarn_log_multiplier")
    return GgufNames(architecture, names, whole=correction, computed=computed)


FAMILIES = (
    Family(
        name="deepseek_v3",
        title="DeepSeek V3",
        aliases=("kimi_k2",),
        torch=("deepseek_v3", "DeepseekV3"),
        counts={
            "vocab_size": 129280,
            "intermediate_size": 18432,
            "moe_intermediate_size": 2048,
            "num_attention_heads": 128,
            "num_key_value_heads": None,
            "n_shared_experts": 1,
            "kv_lora_rank": 512,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
            "n_group": 8,
            "topk_group": 4,
            "num_experts_per_tok": 8,
            "max_position_embeddings": 4096,
        },
        switches=("attention_bias",),
        more=_deepseek,
        tensors=_tensors,
        state=_state,
        ranged=_ranged,
        experts="n_routed_experts",
        parted=_parted,
        interleaved=True,
        mlx_nulls=("q_lora_rank",),
        mlx_settings=_MLX,
        mlx_number=_number,
        mlx_fixed={"rope_interleave": True},
        gguf=_gguf("deepseek2"),
    ),
    Family(
        name="glm4_moe_lite",
        title="GLM-4.7-Flash",
        torch=("glm4_moe_lite", "Glm4MoeLite"),
        counts={
            "vocab_size": 154880,
            "intermediate_size": 10240,
            "moe_intermediate_size": 1536,
            "num_attention_heads": 20,
            "num_key_value_heads": None,
            "n_shared_experts": 1,
            "kv_lora_rank": 512,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 192,
            "v_head_dim": 256,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 4,
            "max_position_embeddings": 202752,
        },
        switches=("attention_bias",),
        more=_glm,
        tensors=_tensors,
        state=_state,
        ranged=_ranged,
        epsilon=1e-5,
        experts="n_routed_experts",
        parted=_parted,
        interleaved=True,
        mlx_nulls=("q_lora_rank",),
        mlx_settings=_MLX,
        mlx_number=_number,
        mlx_fixed={"rope_interleave": True},
        gguf=_gguf(),  # its files say deepseek2, too
    ),
)
