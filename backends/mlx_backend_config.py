"""A model's config.json in mlx-lm's dialect, for one layer range. Knows no array: a pure translation.

transformers 5 writes `rope_parameters` and `num_local_experts` where mlx-lm reads `rope_theta`, `rope_scaling` and
`num_experts`; both dialects are read here. What depends on a layer's number is settled here too, because a slice counts
its layers from 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from together.errors import UnsupportedModel
from together.models.spec import ModelSpec
from together.quoting import quoted
from together.types import LayerRange

_ROPES = ("default", "linear", "llama3", "yarn")  # others depend on the sequence's length, or are not in these families
_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "decoder_sparse_step": 1,
    "norm_topk_prob": False,
    "max_position_embeddings": 0,
    "query_pre_attn_scalar": 256,
}


@dataclass(frozen=True, slots=True)
class Rope:
    """One layer's rotary embedding; `settings` as mlx-lm's `initialize_rope` takes them."""

    theta: float
    kind: str
    settings: dict[str, Any]


def dialect(config: dict[str, Any], spec: ModelSpec, layers: LayerRange) -> dict[str, Any]:
    """The config of a model that consists of `layers` only. Raises UnsupportedModel for what mlx-lm would ignore."""
    _refuse_ignored(config, spec)
    given = {key: value for key, value in config.items() if value is not None}
    return {
        **_DEFAULTS,
        **given,
        "num_hidden_layers": len(layers),
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "tie_word_embeddings": spec.tied,
        "num_experts": given.get("num_experts", given.get("num_local_experts")),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer - layers.start for layer in _dense(config, layers)],
        # Every layer gets its RoPE and its window from us, by its global number: mlx-lm would count from 0.
        "rope_theta": 10_000.0,
        "rope_scaling": None,
        "rope_parameters": None,
        "layer_types": None,
        "sliding_window": None,
        "sliding_window_pattern": 1,
    }


def ropes(config: dict[str, Any], spec: ModelSpec, layers: LayerRange) -> tuple[Rope, ...]:
    """Each layer's rotary embedding. Raises UnsupportedModel, naming the kind, for one that does not run here."""
    return tuple(_rope(config, spec, sliding=window is not None) for window in spec.windows[layers.start : layers.stop])


def _rope(config: dict[str, Any], spec: ModelSpec, *, sliding: bool) -> Rope:
    values = _rope_values(config, local=sliding and spec.family == "gemma3_text")
    theta = float(values.pop("rope_theta", None) or 10_000.0)
    kind = values.get("rope_type") or values.get("type") or "default"
    if kind not in _ROPES or values.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModel(f"{spec.name} has RoPE scaling {quoted(kind)}, which MLX does not run here; {_ROPES} do")
    return Rope(theta, kind, _yarn(values, spec) if kind == "yarn" else {} if kind == "default" else values)


def _rope_values(config: dict[str, Any], *, local: bool) -> dict[str, Any]:
    """The layer's `rope_parameters` as transformers 5 writes them, whichever dialect the file has."""
    new = config.get("rope_parameters")
    if new:
        kind = "sliding_attention" if local else "full_attention"
        return dict(new.get(kind, new))
    if local:
        return {"rope_theta": config.get("rope_local_base_freq", 10_000.0)}
    theta = config.get("rope_theta", 1_000_000.0 if config["model_type"] == "gemma3_text" else None)
    return {"rope_theta": theta, **(config.get("rope_scaling") or {})}


def _yarn(values: dict[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """transformers' rules for what may be left out, where mlx-lm has others."""
    if values.get("attention_factor") is not None or values.get("truncate") is False:
        raise UnsupportedModel(f"{spec.name} sets YaRN's attention_factor or truncate, which MLX does not run here")
    known = {key: value for key, value in values.items() if value is not None}
    if not (known.get("mscale") and known.get("mscale_all_dim")):
        known.pop("mscale", None)
        known.pop("mscale_all_dim", None)
    return {"original_max_position_embeddings": spec.context, **known}


def _dense(config: dict[str, Any], layers: LayerRange) -> list[int]:
    """The layers of the range, by their global number, that have a plain MLP in a model with experts."""
    listed, step = config.get("mlp_only_layers") or (), config.get("decoder_sparse_step") or 1
    return [layer for layer in range(layers.start, layers.stop) if layer in listed or (layer + 1) % step]


def _refuse_ignored(config: dict[str, Any], spec: ModelSpec) -> None:
    ignored = [key for key in ("attn_logit_softcapping", "final_logit_softcapping") if config.get(key)]
    gemma = spec.family == "gemma3_text"
    key, known = ("hidden_activation", ["gelu_pytorch_tanh"]) if gemma else ("hidden_act", ["silu", "swish"])
    if (config.get(key) or known[0]) not in known:
        ignored.append(f"{key} {quoted(config[key])}")
    if spec.quantization is not None:
        ignored.append(f"{spec.quantization} weights")
    if ignored:
        raise UnsupportedModel(
            f"{spec.name} has {', '.join(ignored)}: MLX does not run that here; choose a plain version"
        )
