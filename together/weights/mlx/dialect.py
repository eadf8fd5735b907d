"""config.json as mlx-lm reads it, from a model's effective configuration.

mlx-lm has defaults of its own and passes over what it does not know; what it would compute otherwise is refused. Only
what is known here is written, so that no key of the source means something there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.on_mlx.config import refuse_ignored, yarn
from together.errors import UnsupportedModel
from together.models.config import TOY, require_family
from together.models.families import BY_NAME
from together.models.spec import ModelSpec
from together.sentences import NOTHING, Sentence, template

_KEPT = ("bos_token_id", "pad_token_id", "dtype", "torch_dtype")  # of the published file, as other programs want them
_WINDOWED = ("gemma3_text", "olmo3", "smollm3")  # families whose windows mlx-lm computes
_BIASED = ("llama", "smollm3", "olmo2", "olmo3")  # in which mlx-lm has biases of attention where they are asked for
_FULL, _SLIDING = "full_attention", "sliding_attention"


def mlx_config(
    published: Mapping[str, Any], config: Mapping[str, Any], spec: ModelSpec, quantization: Mapping[str, Any]
) -> dict[str, Any]:
    """The folder's config.json; `config` is the effective one of `published`, which is not to be refused."""
    given = {key: value for key, value in config.items() if key not in (*_KEPT, "rope_parameters")}  # null counts, too
    kept = {key: published[key] for key in _KEPT if published.get(key) is not None}
    rope = _gemma_rope(config, spec) if spec.family == "gemma3_text" else _rope(spec, _ropes(config)[_FULL])
    made = kept | given | rope
    made |= {"architectures": [BY_NAME[spec.family].class_name], "tie_word_embeddings": spec.tied}
    if quantization:
        made |= {"quantization": dict(quantization), "quantization_config": dict(quantization)}
    return made


def windows_note(spec: ModelSpec) -> Sentence:
    """What mlx-lm computes otherwise in texts longer than a sliding window; empty where that is nothing."""
    window = next((window for window in spec.windows if window is not None), None)
    if spec.family in _WINDOWED or window is None or window >= spec.context:
        return NOTHING
    said = "mlx-lm does not use the sliding window of {window} tokens, so there longer texts get other answers"
    return template(said, window=window)


def refuse_unknown(config: Mapping[str, Any], spec: ModelSpec) -> None:
    """Raises UnsupportedModel for what mlx-lm's classes would compute otherwise, or have no place for."""
    if spec.family == TOY:
        raise UnsupportedModel("{model} is a toy for tests, which mlx-lm does not know", model=spec.name)
    require_family(spec.name, spec.family)
    if not BY_NAME[spec.family].written:
        raise UnsupportedModel(
            "{model} is of the family {family}, which convert does not write yet; it runs here as it is",
            model=spec.name,
            family=spec.family,
        )
    refuse_ignored(dict(config), spec)
    kinds = {kind: parts["rope_type"] for kind, parts in _ropes(config).items()}
    if any(parts.get("truncate") is False for parts in _ropes(config).values()):
        raise _unknown(spec, template("YaRN without rounding (truncate)"))
    if not BY_NAME[spec.family].scaled_on_mlx and kinds[_FULL] != "default":
        raise _unknown(spec, template("rope that is scaled by {kind}", kind=kinds[_FULL]))
    if kinds.get(_SLIDING, "default") != "default":
        raise _unknown(spec, template("scaled rope in layers with a window"))
    if spec.family == "olmo3" and len({parts["rope_theta"] for parts in _ropes(config).values()}) > 1:
        raise _unknown(spec, template("another rope_theta in layers with a window"))
    if config.get("attention_bias") and spec.family not in _BIASED:
        raise _unknown(spec, template("biases of attention (attention_bias)"))


def _unknown(spec: ModelSpec, what: Sentence) -> UnsupportedModel:
    return UnsupportedModel(
        "{model} has {what}, which mlx-lm does not compute in the family {family}; choose another model",
        model=spec.name,
        what=what,
        family=spec.family,
    )


def _ropes(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By kind of layer."""
    found = config["rope_parameters"]
    return dict(found) if _FULL in found else {_FULL: found}


def _rope(spec: ModelSpec, parameters: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(parameters)
    theta = values.pop("rope_theta")
    return {"rope_theta": theta, "rope_scaling": None if values["rope_type"] == "default" else yarn(values)}


def _gemma_rope(config: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """With one theta for each kind of layer, and which layers see everything as a pattern."""
    ropes = _ropes(config)
    kinds = [_SLIDING if window is not None else _FULL for window in spec.windows]
    pattern = kinds.index(_FULL) + 1 if _FULL in kinds else 0
    expected = [_FULL if pattern and (layer + 1) % pattern == 0 else _SLIDING for layer in range(spec.layers)]
    if not pattern or kinds != expected:
        raise _unknown(spec, template("layers with and without a window in an order of its own"))
    return {
        **_rope(spec, ropes[_FULL]),
        "rope_local_base_freq": ropes[_SLIDING]["rope_theta"],
        "sliding_window_pattern": pattern,
    }
