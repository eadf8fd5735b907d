"""SmolLM3: no rope in the second layer and in the last one, which has a window."""

from tests.support.case import Case

CASES = (
    Case(
        "smollm3",
        "smollm3",
        {
            "no_rope_layers": [1, 0, 1, 0],
            "use_sliding_window": True,
            "sliding_window": 8,
            "layer_types": ["full_attention", "full_attention", "full_attention", "sliding_attention"],
            "tie_word_embeddings": True,
        },
    ),
    Case(
        "smollm3-biased",
        "smollm3",
        {"no_rope_layer_interval": 3, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    ),
)
