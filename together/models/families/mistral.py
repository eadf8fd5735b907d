"""Mistral, and the text model of Mistral 3."""

from __future__ import annotations

from typing import Any

from together.models.family import WINDOW, Config, Family, GgufNames
from together.models.values import Values


def _more(values: Values, config: Config) -> dict[str, Any]:
    given = values.found.get("sliding_window", WINDOW)
    return {"sliding_window": None if given is None else values.count("sliding_window", WINDOW)}


FAMILIES = (
    Family(
        name="mistral",
        title="Mistral",
        torch=("mistral", "Mistral"),
        mlx="llama",
        counts={
            "vocab_size": 32000,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": None,
            "max_position_embeddings": 131072,
        },
        more=_more,
        written=True,
        gguf=GgufNames(interleaved=True),
        wrappers=("mistral3",),
    ),
)
