"""Qwen3-VL: sections of a rope that differ, and a small tower that gives something to the first two layers."""

from typing import Any

from tests.support.case import Case

IMAGE, VIDEO = 150, 151
TOWER: dict[str, Any] = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_heads": 4,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 48,
    "num_position_embeddings": 25,
    "deepstack_visual_indexes": [1, 2],
}
SECTIONS = {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [5, 4, 3], "mrope_interleaved": True}

CASES = (
    Case(
        "qwen3_vl",
        "qwen3_vl_text",
        {
            "head_dim": 24,
            "rope_parameters": SECTIONS,
            "tie_word_embeddings": True,
            "vision_config": TOWER,
            "image_token_id": IMAGE,
            "video_token_id": VIDEO,
        },
        wide={"vision_config": TOWER | {"out_hidden_size": 128}},
    ),
)
