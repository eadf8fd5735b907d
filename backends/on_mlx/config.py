"""A model's effective configuration in mlx-lm's dialect, for one layer range.

What depends on a layer's number is settled here, because a slice counts its layers from 0. What mlx-lm would ignore or
compute otherwise is refused: the head asks too, before it unloads anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from together.errors import UnsupportedModel
from together.models.spec import ModelSpec
from together.types import Dtype, LayerRange
from together.wording import quoted


@dataclass(frozen=True, slots=True)
class Rope:
    """One layer's rotary embedding; `settings` as mlx-lm's `initialize_rope` takes them."""

    theta: float
    kind: str
    settings: dict[str, Any]


def dialect(config: dict[str, Any], spec: ModelSpec, layers: LayerRange) -> dict[str, Any]:
    """The config of a model that consists of `layers` only. Raises UnsupportedModel for what mlx-lm would ignore."""
    refuse_ignored(config, spec)
    held = range(layers.start, layers.stop)
    given = {key: value for key, value in config.items() if value is not None}
    return {
        **given,
        "num_hidden_layers": len(layers),
        "tie_word_embeddings": spec.tied,
        "mlp_only_layers": [i - layers.start for i in config.get("mlp_only_layers", ()) if i in held],
        # Every layer gets its RoPE and its window from us, by its global number: mlx-lm would count from 0.
        "rope_theta": 10_000.0,
        "rope_scaling": None,
        "rope_parameters": None,
        "layer_types": None,
        "sliding_window": None,
        "sliding_window_pattern": 1,
    }


def ropes(config: dict[str, Any], spec: ModelSpec, layers: LayerRange) -> tuple[Rope, ...]:
    """Each layer's rotary embedding."""
    return tuple(_rope(config, spec, sliding=window is not None) for window in spec.windows[layers.start : layers.stop])


def _rope(config: dict[str, Any], spec: ModelSpec, *, sliding: bool) -> Rope:
    values = dict(config["rope_parameters"])
    if spec.family == "gemma3_text":
        values = dict(values["sliding_attention" if sliding else "full_attention"])
    theta, kind = values.pop("rope_theta"), values["rope_type"]
    return Rope(theta, kind, _yarn(values) if kind == "yarn" else {} if kind == "default" else values)


def _yarn(values: dict[str, Any]) -> dict[str, Any]:
    """transformers' rules for what may be left out, where mlx-lm has others."""
    known = dict(values)
    if not (known.get("mscale") and known.get("mscale_all_dim")):
        known.pop("mscale", None)
        known.pop("mscale_all_dim", None)
    return known


def refuse_dtype(spec: ModelSpec, dtype: Dtype, device: str) -> None:
    """Raises UnsupportedModel for what MLX cannot compute on `device`, `cpu` or `gpu`."""
    if spec.family == "qwen3_moe" and dtype != "fp32" and device == "cpu":
        raise UnsupportedModel(
            "{model}: MLX runs experts on a CPU only in fp32; load it in fp32 or on another device", model=spec.name
        )


def refuse_ignored(config: dict[str, Any], spec: ModelSpec) -> None:
    """Raises UnsupportedModel for a configuration that mlx-lm would compute otherwise than transformers."""
    for parts in (config["rope_parameters"], *config["rope_parameters"].values()):
        if isinstance(parts, dict) and ("attention_factor" in parts or parts.get("truncate") is False):
            raise UnsupportedModel(
                "{model} sets YaRN's attention_factor or truncate, which MLX does not run here", model=spec.name
            )
    ignored = [key for key in ("attn_logit_softcapping", "final_logit_softcapping") if config.get(key)]
    gemma = spec.family == "gemma3_text"
    key, known = ("hidden_activation", ["gelu_pytorch_tanh"]) if gemma else ("hidden_act", ["silu", "swish"])
    if (config.get(key) or known[0]) not in known:
        ignored.append(f"{key} {quoted(config[key])}")
    if spec.quantization is not None:
        ignored.append(f"{spec.quantization} weights")
    if ignored:
        raise UnsupportedModel(
            "{model} has {ignored}: MLX does not run that here; choose a plain version",
            model=spec.name,
            ignored=tuple(ignored),
        )
