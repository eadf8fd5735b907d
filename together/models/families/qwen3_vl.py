"""Qwen3-VL: Qwen3 with a vision tower, and positions on three axes.

The tower gives something to the first layers too (deepstack), which stay together for that: nothing of it travels.
"""

from __future__ import annotations

from typing import Any

from together.errors import UnsupportedModel
from together.models.family import (
    ACTIVATIONS,
    GGUF_HEAD_NORMS,
    GGUF_USUAL,
    Config,
    Family,
    GgufNames,
    Tensors,
    attention_tensors,
    head_norm_tensors,
    mlp_tensors,
    norm_tensors,
)
from together.models.values import Values, bad_value

_SECTIONS = [24, 20, 20]  # pairs of a head that are turned by time, height and width


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    yield from attention_tensors(config, layer)
    yield from head_norm_tensors(config, layer)
    yield from norm_tensors(config, layer, "input_layernorm", "post_attention_layernorm")
    yield from mlp_tensors(config, layer)


def _more(values: Values, config: Config) -> dict[str, Any]:
    """The sections of its rope, which take turns. Raises BrokenModel and UnsupportedModel."""
    given = values.found.get("rope_parameters") or values.found.get("rope_scaling") or {}
    sections = given.get("mrope_section") or _SECTIONS
    whole = isinstance(sections, list) and len(sections) == 3 and all(type(each) is int for each in sections)
    pairs = config["head_dim"] // 2
    if not whole or min(sections) < 0 or any(3 * each > pairs + 2 for each in sections[1:]):
        raise bad_value(values.name, "mrope_section", sections)
    if given.get("mrope_interleaved", True) is not True:
        raise UnsupportedModel(
            "{model} has a rope whose sections do not take turns, which does not run here in this family",
            model=values.name,
        )
    return {"rope_parameters": {**config["rope_parameters"], "mrope_section": list(sections)}}


def _vision(values: Values, config: Config) -> dict[str, Any]:
    """Of the wrapper's values those of its tower, where it has one. Raises BrokenModel and UnsupportedModel."""
    given = values.found.get("vision_config")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise bad_value(values.name, "vision_config", given)
    inner = Values(values.name, given)
    counts = {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 3584,
        "num_position_embeddings": 2304,
    }
    found: dict[str, Any] = {key: inner.count(key, usual, 10**5) for key, usual in counts.items()}
    found["in_channels"] = inner.count("in_channels", 3)
    found["hidden_act"] = inner.choice("hidden_act", "gelu_pytorch_tanh", ACTIVATIONS)
    deep = inner.numbers("deepstack_visual_indexes") if "deepstack_visual_indexes" in given else [8, 16, 24]
    sides = int(found["num_position_embeddings"] ** 0.5)
    wrong = {
        "deepstack_visual_indexes": (deep, deep != sorted({each for each in deep if 0 <= each < found["depth"]})),
        "num_heads": (found["num_heads"], found["hidden_size"] % (4 * found["num_heads"]) != 0),
        "out_hidden_size": (found["out_hidden_size"], found["out_hidden_size"] != config["hidden_size"]),
        "num_position_embeddings": (found["num_position_embeddings"], sides**2 != found["num_position_embeddings"]),
        "in_channels": (found["in_channels"], found["in_channels"] != 3),
    }
    for key, (value, is_wrong) in wrong.items():
        if is_wrong:
            raise bad_value(values.name, key, value)
    token = values.count("image_token_id", 151655)
    if token >= config["vocab_size"]:
        raise bad_value(values.name, "image_token_id", token)
    return {"vision_config": {**found, "deepstack_visual_indexes": deep}, "image_token_id": token}


def _joined(config: Config) -> tuple[int, ...]:
    """Layers that the tower gives something to are the first one's."""
    deep = len(config["vision_config"]["deepstack_visual_indexes"]) if "vision_config" in config else 0
    return tuple(range(1, min(deep, config["num_hidden_layers"])))


def _tower(config: Config) -> Tensors:
    if "vision_config" not in config:
        return
    vision = config["vision_config"]
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    kernel = (vision["in_channels"], vision["temporal_patch_size"], patch, patch)
    yield from _both("patch_embed.proj", (width, *kernel))
    yield "model.visual.pos_embed.weight", (vision["num_position_embeddings"], width)
    for block in range(vision["depth"]):
        start = f"blocks.{block}."
        for name, shape in {
            "norm1": (width,),
            "norm2": (width,),
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.linear_fc1": (inner, width),
            "mlp.linear_fc2": (width, inner),
        }.items():
            yield from _both(f"{start}{name}", shape)
    merged = width * vision["spatial_merge_size"] ** 2
    mergers = {f"deepstack_merger_list.{number}": merged for number in range(len(vision["deepstack_visual_indexes"]))}
    for name, normed in {"merger": width, **mergers}.items():
        yield from _both(f"{name}.norm", (normed,))
        yield from _both(f"{name}.linear_fc1", (merged, merged))
        yield from _both(f"{name}.linear_fc2", (vision["out_hidden_size"], merged))


def _both(name: str, shape: tuple[int, ...]) -> Tensors:
    yield f"model.visual.{name}.weight", shape
    yield f"model.visual.{name}.bias", shape[:1]


FAMILIES = (
    Family(
        name="qwen3_vl_text",
        title="Qwen3-VL",
        torch=("qwen3_vl", "Qwen3VL"),
        mlx="qwen3",
        counts={
            "vocab_size": 151936,
            "intermediate_size": 22016,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "max_position_embeddings": 128000,
        },
        switches=("attention_bias",),
        more=_more,
        vision=_vision,
        tensors=_tensors,
        joined=_joined,
        tower=_tower,
        theta=500_000.0,
        rope_kinds=("default",),
        wrappers=("qwen3_vl",),
        gguf=GgufNames("qwen3vl", {**GGUF_USUAL, **GGUF_HEAD_NORMS}, computed=("rope.dimension_sections",)),
    ),
)
