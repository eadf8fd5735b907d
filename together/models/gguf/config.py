"""config.json of a GGUF file, from its metadata. Keys are those of llama.cpp's `gguf-py/gguf/constants.py`. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isclose, isfinite, pi
from typing import Any

from together.errors import BrokenModel, UnsupportedModel
from together.models.family import Family
from together.models.gguf.families import FAMILIES, family_of
from together.models.gguf.metadata import MetadataReader
from together.models.gguf.settings import more_settings
from together.wording import quoted

ROPE_FACTORS = "rope_freqs.weight"  # the tensor with which Llama 3 stretches its rope, in the place of settings
_LLAMA3 = ((1.0, 4.0), (1.0, 1.0))  # its low_freq_factor and high_freq_factor: of Llama 3, and of Llama 4 Scout
_LLAMA3_LENGTH = 8192
_CLOSE = 1e-4  # of factors that were computed in fp32
_UNTYPED = {"gptoss": "yarn"}  # what an architecture means where its files do not say it
_ROPE_KINDS = ("none", "linear", "yarn")
_ROPE_KNOWN = {"type", "factor", "original_context_length", "finetuned", "yarn_beta_fast", "yarn_beta_slow"}
_BETAS = ("beta_fast", "beta_slow")
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def config_of(
    name: str, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], factors: Sequence[float]
) -> dict[str, Any]:
    """A published config.json; `tensors` are shapes by canonical names, `factors` what ROPE_FACTORS holds.

    Raises UnsupportedModel for an architecture or a setting that does not run here, or BrokenModel.
    """
    architecture = architecture_of(name, metadata)
    reader, family = MetadataReader(name, metadata, architecture, tensors, factors), family_of(architecture, metadata)
    heads = reader.count("attention.head_count")
    size, some = _head_dim(reader, heads), family.gguf.varied
    turned, narrow = _turned(reader, family, size), reader.none_or("expert_feed_forward_length")
    config: dict[str, Any] = {
        "model_type": family.name,
        "architectures": [family.class_name],
        "torch_dtype": "bfloat16",
        "num_hidden_layers": reader.count("block_count"),
        "hidden_size": reader.count("embedding_length"),
        "intermediate_size": reader.count("feed_forward_length", narrow, some=some),
        "num_attention_heads": heads,
        "num_key_value_heads": reader.count("attention.head_count_kv", heads, some=some),
        "head_dim": size,
        "max_position_embeddings": reader.count("context_length"),
        "rms_norm_eps": _epsilon(reader, family),
        "vocab_size": _vocabulary(name, tensors),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "eos_token_id": ends_of(metadata, _vocabulary(name, tensors)),
        # Of layers whose configuration has a word for them; Qwen 2 has them always.
        "attention_bias": reader.stores("self_attn.o_proj.bias"),
        "mlp_bias": reader.stores("mlp.down_proj.bias"),
        **_rope(reader, family, factors, turned),
    }
    if family.rotaries:
        config["partial_rotary_factor"] = turned / size
    return config | more_settings(family.name, reader, config)


def ends_of(metadata: Mapping[str, Any], vocabulary: int) -> list[int]:
    """The tokens that end an answer; ids beyond the words are none, as some files write -1 for what they lack."""
    found = (metadata.get(f"tokenizer.ggml.{key}") for key in _ENDS)
    return list(dict.fromkeys(token for token in found if type(token) is int and 0 <= token < vocabulary))


def architecture_of(name: str, metadata: Mapping[str, Any]) -> str:
    """The file's architecture. Raises UnsupportedModel for one that does not run here."""
    found = metadata.get("general.architecture")
    if found not in FAMILIES:
        raise UnsupportedModel(
            "{model} is of the architecture {found}, which does not run here; choose one of {known}",
            model=name,
            found=quoted(found),
            known=tuple(FAMILIES),
        )
    return str(found)


def _head_dim(reader: MetadataReader, heads: int) -> int:
    if reader.has("attention.kv_lora_rank"):  # keys are made of a latent, and of a part that rope turns
        return reader.count("rope.dimension_count")
    size = reader.count("attention.key_length", reader.count("embedding_length") // heads)
    if reader.count("attention.value_length", size) != size:
        raise reader.refuse("attention.value_length", reader.count("attention.value_length"))
    return size


def _epsilon(reader: MetadataReader, family: Family) -> float:
    usual = reader.number(family.gguf.epsilon) if family.gguf.epsilon else None
    found = reader.number("attention.layer_norm_rms_epsilon", usual)
    if usual not in (None, found):
        raise reader.refuse(family.gguf.epsilon, usual)
    return found


def _turned(reader: MetadataReader, family: Family, size: int) -> int:
    """How many values of a head rope turns. Where a family turns a part by its own, its files say how much."""
    if family.gguf.unturned:
        return size
    usual = None if family.rotary != 1 or family.rotary_width else size
    turned = reader.count("rope.dimension_count", usual)
    if turned != size and (not family.rotaries or turned > size):
        raise reader.refuse("rope.dimension_count", turned)
    return turned


def _vocabulary(name: str, tensors: Mapping[str, tuple[int, ...]]) -> int:
    shape = tensors.get("model.embed_tokens.weight", ())
    if len(shape) != 2:
        raise BrokenModel("{model} has no token_embd.weight; get this file again, or another one", model=name)
    return shape[0]


# --- rope -------------------------------------------------------------------------------------------------------------


def _rope(reader: MetadataReader, family: Family, factors: Sequence[float], turned: int) -> dict[str, Any]:
    theta = reader.number("rope.freq_base", 1_000_000.0 if reader.architecture == "gemma3" else 10_000.0)
    scaling = _scaling(reader, family)
    if any(factor != 1 for factor in factors) and not family.ropes:
        if 2 * len(factors) != turned:
            raise reader.refuse(f"{ROPE_FACTORS} of length", len(factors))
        if not all(isfinite(factor) and factor >= 1 for factor in factors):
            raise reader.refuse(ROPE_FACTORS, factors[-3:])
        if scaling:
            raise reader.refuse("rope_freqs.weight beside rope.scaling", scaling["rope_type"])
        scaling = _llama3(reader, theta, factors)
    return {"rope_theta": theta, "rope_scaling": scaling}


def _scaling(reader: MetadataReader, family: Family) -> dict[str, Any] | None:
    """As llama.cpp reads it: linear where no type is said, and by an older key where no factor is."""
    found = reader.scaling()
    kind = found.get("type", _UNTYPED.get(reader.architecture, "linear"))
    if kind not in _ROPE_KINDS:
        raise reader.refuse("rope.scaling.type", kind)
    known = _ROPE_KNOWN | {key.removeprefix("rope.scaling.") for key in family.gguf.computed}
    unknown = {key for key in found.keys() - known if (key, found[key]) != ("attn_factor", 1)}
    if unknown:
        raise reader.refuse("rope.scaling", sorted(unknown))
    factor = "rope.scaling.factor" if "factor" in found else "rope.scale_linear"
    if kind == "none" or (kind == "linear" and reader.neutral(factor)):
        return None
    scaling = {"rope_type": kind, "factor": reader.number(factor)}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = reader.count("rope.scaling.original_context_length")
        scaling |= {key: reader.number(f"rope.scaling.yarn_{key}") for key in _BETAS if f"yarn_{key}" in found}
    return scaling


def _llama3(reader: MetadataReader, theta: float, factors: Sequence[float]) -> dict[str, Any]:
    """The settings that these factors were computed from. Raises UnsupportedModel where they are others."""
    for low, high in _LLAMA3:
        scaling = {
            "rope_type": "llama3",
            "factor": float(round(max(factors))),
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": _LLAMA3_LENGTH,
        }
        expected = [_llama3_factor(theta ** (2 * i / (2 * len(factors))), scaling) for i in range(len(factors))]
        if all(isclose(one, other, rel_tol=_CLOSE) for one, other in zip(factors, expected, strict=True)):
            return scaling
    raise reader.refuse(ROPE_FACTORS, [round(factor, 3) for factor in factors[-3:]])


def _llama3_factor(period: float, scaling: Mapping[str, Any]) -> float:
    """By how much Llama 3 stretches one frequency, of which `period` is 1 / (2π) of the wavelength."""
    turns = scaling["original_max_position_embeddings"] / (2 * pi * period)  # within the original context
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    if turns <= low:
        return float(factor)
    if turns >= high:
        return 1.0
    smooth = (turns - low) / (high - low)
    return float(1 / ((1 - smooth) / factor + smooth))
