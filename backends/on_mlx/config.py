"""A model's effective configuration in mlx-lm's dialect, for one layer range.

What depends on a layer's number is settled here, because a slice counts its layers from 0. What mlx-lm would ignore or
compute otherwise is refused: the head asks too, before it unloads anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from together.errors import UnsupportedModel
from together.models.families import BY_NAME
from together.models.rope import BETA
from together.models.spec import ModelSpec
from together.models.state import Borrowed, KeysValues
from together.types import Dtype, LayerRange, Packing
from together.wording import quoted

GROUPS = (32, 64, 128)  # of affine packings, that MLX has products for


def runs_packed(packing: Packing) -> bool:
    """Whether MLX multiplies with it; weights that are packed otherwise are held plain."""
    return packing.mode != "affine" or packing.group in GROUPS


@dataclass(frozen=True, slots=True)
class Rope:
    """One layer's rotary embedding; `settings` as mlx-lm's `initialize_rope` takes them."""

    theta: float
    kind: str
    width: int  # values of a head that it turns, the first ones
    pairs: int  # of them that have a period; the others stay as they are
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Growth:
    """How queries grow with their position: as Llama 4's, by `beta`, each time that it passes `length`."""

    beta: float
    length: int


def growth(config: Mapping[str, Any]) -> Growth | None:
    given = config["rope_parameters"]
    return Growth(given[BETA], given["original_max_position_embeddings"]) if BETA in given else None


def dialect(config: dict[str, Any], spec: ModelSpec, layers: LayerRange) -> dict[str, Any]:
    """The config of a model that consists of `layers` only. Raises UnsupportedModel for what mlx-lm would ignore."""
    refuse_ignored(config, spec)
    family = BY_NAME[spec.family]
    ranged = {"mlp_only_layers": []} | config | family.ranged(config, layers)
    return {
        **{key: value for key, value in ranged.items() if value is not None or key in family.mlx_nulls},
        "num_hidden_layers": len(layers),
        "tie_word_embeddings": spec.tied,
        # Every layer gets its RoPE and its window from us, by its global number: mlx-lm would count from 0.
        "rope_theta": 10_000.0,
        "rope_scaling": None,
        "rope_parameters": None,
        "layer_types": _kinds(ranged, family.mlx_kinds),
        "sliding_window": None,
        **family.mlx_settings,
    }


def _kinds(config: Mapping[str, Any], words: Mapping[str, str] | None) -> list[str] | None:
    return None if words is None else [words.get(kind, kind) for kind in config["layer_types"]]


def ropes(config: dict[str, Any], spec: ModelSpec, layers: LayerRange) -> tuple[Rope | None, ...]:
    """Each layer's rotary embedding, where it has one."""
    roped, held = BY_NAME[spec.family].roped, range(layers.start, layers.stop)
    return tuple(_rope(config, spec, layer) if roped(config, layer) else None for layer in held)


def _rope(config: dict[str, Any], spec: ModelSpec, layer: int) -> Rope:
    values, state = dict(config["rope_parameters"]), spec.states[layer]
    state = state.kept if isinstance(state, Borrowed) else state
    dim = state.key_dim if isinstance(state, KeysValues) else spec.head_dim
    if BY_NAME[spec.family].ropes:
        values = dict(values["full_attention" if state.window is None else "sliding_attention"])
    theta, kind = values.pop("rope_theta"), values["rope_type"]
    part = values.pop("partial_rotary_factor", 1.0)
    width = dim if kind == "proportional" else int(dim * part)
    return Rope(
        theta,
        kind,
        width,
        int(part * dim // 2),
        yarn(values) if kind == "yarn" else {} if kind == "default" else values,
    )


def yarn(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of YaRN by transformers' rules for what may be left out, where mlx-lm has others."""
    known = dict(values)
    if not (known.get("mscale") and known.get("mscale_all_dim")):
        known.pop("mscale", None)
        known.pop("mscale_all_dim", None)
    return known


def refuse_dtype(config: Mapping[str, Any], spec: ModelSpec, dtype: Dtype, device: str) -> None:
    """Raises UnsupportedModel for what MLX cannot compute on `device`, `cpu` or `gpu`."""
    experts = BY_NAME[spec.family].experts
    if experts and config[experts] and dtype != "fp32" and device == "cpu":
        raise UnsupportedModel(
            "{model}: MLX runs experts on a CPU only in fp32; load it in fp32 or on another device", model=spec.name
        )


def refuse_ignored(config: dict[str, Any], spec: ModelSpec) -> None:
    """Raises UnsupportedModel for a configuration that mlx-lm would compute otherwise than transformers."""
    family = BY_NAME[spec.family]
    for parts in (config["rope_parameters"], *config["rope_parameters"].values()):
        if isinstance(parts, dict) and "attention_factor" in parts and parts["rope_type"] == "yarn":
            raise UnsupportedModel("{model} sets YaRN's attention_factor, which MLX does not run here", model=spec.name)
    ignored = ["attn_logit_softcapping"] if config.get("attn_logit_softcapping") else []
    ignored += [f"{key} {quoted(config[key])}" for key, fixed in family.mlx_fixed.items() if config[key] != fixed]
    key, usual = family.activation
    known = ("silu", "swish") if usual == "silu" else (usual,)
    if config[key] not in known:
        ignored.append(f"{key} {quoted(config[key])}")
    ignored += family.ignored_by_mlx(config)
    if spec.quantization is not None:
        ignored.append(f"{spec.quantization} weights")
    if ignored:
        raise UnsupportedModel(
            "{model} has {ignored}: MLX does not run that here; choose a plain version",
            model=spec.name,
            ignored=tuple(ignored),
        )
