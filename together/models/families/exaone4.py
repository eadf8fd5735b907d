"""EXAONE 4: norms of heads, and after attention and MLP; with windows, layers that see everything have no rope."""

from __future__ import annotations

from typing import Any

from together.models.family import (
    FULL,
    GGUF_AFTER,
    GGUF_HEAD_NORMS,
    GGUF_USUAL,
    SLIDING,
    WINDOW,
    Config,
    Family,
    GgufNames,
    Tensors,
    attention_tensors,
    head_norm_tensors,
    layer_kinds,
    mlp_tensors,
    norm_tensors,
    usual_range,
)
from together.models.values import Values, bad_value
from together.types import LayerRange


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    yield from attention_tensors(config, layer)
    yield from head_norm_tensors(config, layer)
    yield from norm_tensors(config, layer, "post_attention_layernorm", "post_feedforward_layernorm")
    yield from mlp_tensors(config, layer)


def _more(values: Values, config: Config) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    if values.found.get("sliding_window", WINDOW) is None:
        return {"sliding_window": None, "sliding_window_pattern": "", "layer_types": [FULL] * layers}
    window = values.count("sliding_window", WINDOW)
    kinds = layer_kinds(values, layers, _usual(values, layers))
    return {"sliding_window": window, "sliding_window_pattern": _letters(kinds), "layer_types": kinds}


def _usual(values: Values, layers: int) -> list[str]:
    """By a number, every so many see everything; by letters, as they say. The last layer always does then."""
    pattern = values.found.get("sliding_window_pattern", 4)
    if values.found.get("layer_types") is not None:
        return []
    if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        letters = [pattern[layer % len(pattern)] for layer in range(layers - 1)] + ["G"]
        return [SLIDING if letter == "L" else FULL for letter in letters]
    if type(pattern) is not int or pattern < 1:
        raise bad_value(values.name, "sliding_window_pattern", pattern)
    return [SLIDING if (layer + 1) % pattern else FULL for layer in range(layers)]


def _letters(kinds: list[str]) -> str:
    """A pattern that mlx-lm reads: one letter for each layer."""
    return "".join("L" if kind == SLIDING else "G" for kind in kinds)


def _ranged(config: Config, layers: LayerRange) -> dict[str, Any]:
    """mlx-lm wants to find both letters; what stands behind a model's layers changes nothing."""
    found = usual_range(config, layers)
    windows = config["sliding_window"] is not None
    return found | {"sliding_window_pattern": _letters(found["layer_types"]) + "LG" if windows else ""}


FAMILIES = (
    Family(
        name="exaone4",
        title="EXAONE 4",
        torch=("exaone4", "Exaone4"),
        counts={
            "vocab_size": 102400,
            "intermediate_size": 16384,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "head_dim": None,
            "max_position_embeddings": 2048,
        },
        more=_more,
        tensors=_tensors,
        ranged=_ranged,
        gguf=GgufNames("exaone4", {**GGUF_USUAL, **GGUF_HEAD_NORMS, **GGUF_AFTER}),
        epsilon=1e-5,
        roped=lambda config, layer: config["sliding_window"] is None or config["layer_types"][layer] == SLIDING,
    ),
)
