"""What a GGUF file says that would be computed wrongly, or left out, if it were passed over. Pure.

A file has nothing but its model, so a tensor or a setting that is not known here is a reason to refuse it by name. Keys
are those of llama.cpp's `gguf-py/gguf/constants.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from together.errors import BrokenModel, UnsupportedModel
from together.models.families import BY_NAME
from together.models.family import Family
from together.models.gguf.config import ROPE_FACTORS
from together.models.headers import TensorInfo
from together.models.layout import needs
from together.models.names import HEAD
from together.wording import MOST, cut, quoted

_TYPES = {  # of `general.type`, besides `model`
    "adapter": "{model} is an adapter (LoRA) and no whole model; merge it into its base model and load that",
    "mmproj": "{model} is the part of a model that sees pictures; load the file of its language model",
    "imatrix": "{model} is what was measured to quantize a model; load the model's own file",
    "vocab": "{model} is a vocabulary without weights; load the model's own file",
}
_NEUTRAL: dict[str, tuple[object, ...]] = {  # a setting, and the values with which it changes nothing
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_weights_scale": (0, 1),
    "expert_weights_norm": (True,),
    "expert_gating_func": (0, 1),  # 1: softmax
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "use_parallel_residual": (False,),
    "swin_norm": (False,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "router_logit_softcapping": (0,),
    "attention.causal": (True,),
    "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,),
    "attention.scale": (),
    "attention.output_scale": (0, 1),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0, 1),
    "attention.shared_kv_layers": (0,),
    "rope.dimension_sections": (),
}
_LISTED = 3
_LAYER = re.compile(r"(?:model\.layers|blk)\.(\d{1,6})\.")


def check_kind(name: str, metadata: Mapping[str, Any]) -> None:
    """Raises UnsupportedModel for a file that is no language model, by what it says of itself."""
    said = _TYPES.get(str(metadata.get("general.type")))
    if said is not None:
        raise UnsupportedModel(said, model=name)
    pooling = metadata.get(f"{metadata.get('general.architecture')}.pooling_type", 0)
    if pooling != 0:
        raise UnsupportedModel("{model} is an embedding model: it writes no text; choose a causal model", model=name)


def check_settings(name: str, metadata: Mapping[str, Any], family: Family) -> None:
    """Raises UnsupportedModel for a setting that no back end here computes in this family."""
    architecture = metadata["general.architecture"]
    for key, neutral in _NEUTRAL.items():
        value = metadata.get(f"{architecture}.{key}")
        if value is None or value in neutral or key in family.gguf.computed:
            continue
        raise UnsupportedModel(
            "{model} has {key} {value}, which does not run here; choose another model",
            model=name,
            key=f"{architecture}.{key}",
            value=quoted(value),
        )


def check_words(name: str, metadata: Mapping[str, Any], rows: int) -> None:
    """Raises BrokenModel where a file has other words than rows of its embedding."""
    words = metadata.get("tokenizer.ggml.tokens")
    if isinstance(words, list) and len(words) != rows:
        raise BrokenModel(
            "{model} has {words} words and an embedding for {rows}; get this file again, or another one",
            model=name,
            words=len(words),
            rows=rows,
        )


def _is_spare(config: Mapping[str, Any], key: str) -> bool:
    """Whether it is of a layer behind the last one, which predicts more tokens at once: nobody asks for it."""
    match = _LAYER.match(key) if "nextn_predict_layers" in BY_NAME[config["model_type"]].gguf.computed else None
    return match is not None and int(match[1]) >= config["num_hidden_layers"]


def check_nothing_else(name: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    """Raises UnsupportedModel for tensors that no layer of this configuration reads. `config` is the effective one."""
    known = needs(config, head=HEAD in tensors, stored=tensors)
    others = sorted(key for key in tensors if key not in known and key != ROPE_FACTORS and not _is_spare(config, key))
    if others:
        raise UnsupportedModel(
            "{model} has tensors that are not known here ({tensors}), so its {layers} layers would be computed without "
            "them; choose another model",
            model=name,
            tensors=tuple(cut(key, MOST) for key in others[:_LISTED]),
            layers=config["num_hidden_layers"],
        )
