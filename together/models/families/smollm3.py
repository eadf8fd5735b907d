"""SmolLM3: Llama with layers that have no rope."""

from __future__ import annotations

from typing import Any

from together.errors import BrokenModel
from together.models.family import FULL, SLIDING, Config, Family, GgufNames, layer_kinds, usual_range
from together.models.values import Values
from together.types import LayerRange


def _more(values: Values, config: Config) -> dict[str, Any]:
    layers, used = config["num_hidden_layers"], values.switch("use_sliding_window")
    roped = _roped(values, layers)
    window = values.count("sliding_window", None) if used and values.found.get("sliding_window") is not None else None
    usual = [FULL if window is None or rope else SLIDING for rope in roped]
    kinds = layer_kinds(values, layers, usual) if window is not None else [FULL] * layers
    return {"no_rope_layers": roped, "use_sliding_window": used, "sliding_window": window, "layer_types": kinds}


def _roped(values: Values, layers: int) -> list[int]:
    """1 for each layer with rope, which `no_rope_layers` is in spite of its name. Raises BrokenModel."""
    if values.found.get("no_rope_layers") is None:
        interval = values.count("no_rope_layer_interval", 4)
        return [int((layer + 1) % interval != 0) for layer in range(layers)]
    listed = values.numbers("no_rope_layers")
    if len(listed) != layers:
        raise BrokenModel(
            "config.json of {model} lists no_rope_layers for other layers than its {layers}; take config.json from "
            "where the model was published",
            model=values.name,
            layers=layers,
        )
    return listed


def _ranged(config: Config, layers: LayerRange) -> dict[str, Any]:
    roped = config["no_rope_layers"][layers.start : layers.stop]
    return usual_range(config, layers) | {"no_rope_layers": list(roped)}


FAMILIES = (
    Family(
        name="smollm3",
        title="SmolLM3",
        torch=("smollm3", "SmolLM3"),
        counts={
            "vocab_size": 128256,
            "intermediate_size": 11008,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": None,
            "max_position_embeddings": 32768,
        },
        switches=("attention_bias", "mlp_bias"),
        more=_more,
        ranged=_ranged,
        roped=lambda config, layer: bool(config["no_rope_layers"][layer]),
        tied=True,
        theta=2_000_000.0,
        written=True,
        gguf=GgufNames("smollm3", interleaved=True),
    ),
)
