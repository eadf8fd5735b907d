"""OLMo 2 with fewer heads of keys; OLMo 3 with both kinds of layers on both sides, and one rope scaled."""

from tests.support.case import Case

_YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 16}
_YARN["attention_factor"] = 1.2079441541679836  # as published: what follows from the factor anyway

CASES = (
    Case("olmo2", "olmo2", {"attention_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    Case(
        "olmo3",
        "olmo3",
        {
            "head_dim": 20,
            "attention_bias": True,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
                "full_attention": _YARN,
            },
        },
        wide={"head_dim": 32},
    ),
)
