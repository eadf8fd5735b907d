"""config.json of a GGUF file, from its metadata. Keys are those of llama.cpp's `gguf-py/gguf/constants.py`. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose, isfinite, pi
from typing import Any

from together.errors import BrokenModel, UnsupportedModel
from together.models.gguf.families import FAMILIES
from together.wording import quoted

ROPE_FACTORS = "rope_freqs.weight"  # the tensor with which Llama 3 stretches its rope, in the place of settings
_LLAMA3 = (1.0, 4.0)  # its low_freq_factor and high_freq_factor, in every published model
_LLAMA3_LENGTH = 8192
_CLOSE = 1e-4  # of factors that were computed in fp32
_GEMMA_27B = 62  # layers: the one Gemma 3 whose queries are scaled by the width of a head's share of the states
_ROPE_KINDS = ("none", "linear", "yarn")
_ROPE_KNOWN = {"type", "factor", "original_context_length", "finetuned"}
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def config_of(
    name: str, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], factors: Sequence[float]
) -> dict[str, Any]:
    """A published config.json; `tensors` are shapes by canonical names, `factors` what ROPE_FACTORS holds.

    Raises UnsupportedModel for an architecture or a setting that does not run here, or BrokenModel.
    """
    reader = _Reader(name, metadata, architecture_of(name, metadata))
    family = FAMILIES[reader.architecture]
    heads = reader.count("attention.head_count")
    config: dict[str, Any] = {
        "model_type": family.name,
        "architectures": [family.class_name],
        "torch_dtype": "bfloat16",
        "num_hidden_layers": reader.count("block_count"),
        "hidden_size": reader.count("embedding_length"),
        "intermediate_size": reader.count("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": reader.count("attention.head_count_kv", heads),
        "head_dim": _head_dim(reader, heads),
        "max_position_embeddings": reader.count("context_length"),
        "rms_norm_eps": reader.number("attention.layer_norm_rms_epsilon"),
        "vocab_size": _vocabulary(name, tensors),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "eos_token_id": ends_of(metadata, _vocabulary(name, tensors)),
        **_biases(tensors),
        **_rope(reader, factors, _head_dim(reader, heads)),
    }
    match reader.architecture:
        case "gemma3":
            config |= _gemma(reader, config)
        case "qwen3moe":
            config |= _experts(reader)
        case "llama" if reader.has("attention.sliding_window"):
            config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
            config["sliding_window"] = reader.count("attention.sliding_window")
    return config


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


@dataclass(frozen=True, slots=True)
class _Reader:
    """Values of one file, checked, by their names after the architecture's."""

    name: str
    metadata: Mapping[str, Any]
    architecture: str

    def has(self, key: str) -> bool:
        return self._key(key) in self.metadata

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number above 0. Some files have one for each layer: they must be the same."""
        value = self.metadata.get(self._key(key), default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if type(value) is not int or value <= 0:
            raise self._bad(key, value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.metadata.get(self._key(key), default)
        if type(value) not in (int, float) or not (value > 0 and isfinite(value)):
            raise self._bad(key, value)
        return float(value)

    def neutral(self, key: str) -> bool:
        """Whether a factor is absent, or changes nothing; 0 stands for none."""
        return self.metadata.get(self._key(key), 0) in (0, 1)

    def scaling(self) -> dict[str, Any]:
        """What is said of rope's scaling, by the last part of each key."""
        start = self._key("rope.scaling.")
        return {key[len(start) :]: value for key, value in self.metadata.items() if key.startswith(start)}

    def refuse(self, what: str, value: object) -> UnsupportedModel:
        return UnsupportedModel(
            "{model} has {what} {value}, which does not run here; choose another model",
            model=self.name,
            what=what,
            value=quoted(value),
        )

    def _bad(self, key: str, value: object) -> BrokenModel | UnsupportedModel:
        if isinstance(value, list) and value:
            return self.refuse(self._key(key), value[:3])
        return BrokenModel(
            "{model} has {key} = {value} in its metadata; get this file again, or another one",
            model=self.name,
            key=self._key(key),
            value=quoted(value),
        )

    def _key(self, key: str) -> str:
        return f"{self.architecture}.{key}"


def _head_dim(reader: _Reader, heads: int) -> int:
    size = reader.count("attention.key_length", reader.count("embedding_length") // heads)
    if reader.count("attention.value_length", size) != size:
        raise reader.refuse("attention.value_length", reader.count("attention.value_length"))
    if reader.count("rope.dimension_count", size) != size:
        raise reader.refuse("rope.dimension_count", reader.count("rope.dimension_count"))
    return size


def _vocabulary(name: str, tensors: Mapping[str, tuple[int, ...]]) -> int:
    shape = tensors.get("model.embed_tokens.weight", ())
    if len(shape) != 2:
        raise BrokenModel("{model} has no token_embd.weight; get this file again, or another one", model=name)
    return shape[0]


def _biases(tensors: Mapping[str, tuple[int, ...]]) -> dict[str, bool]:
    """Of layers whose configuration has a word for them; Qwen 2 has them always."""
    attention = "model.layers.0.self_attn.o_proj.bias" in tensors
    return {"attention_bias": attention, "mlp_bias": "model.layers.0.mlp.down_proj.bias" in tensors}


def _gemma(reader: _Reader, config: Mapping[str, Any]) -> dict[str, Any]:
    large = config["num_hidden_layers"] == _GEMMA_27B
    scaled = config["hidden_size"] // config["num_attention_heads"] if large else config["head_dim"]
    return {
        "sliding_window": reader.count("attention.sliding_window"),
        "sliding_window_pattern": reader.count("attention.sliding_window_pattern", 6),
        "query_pre_attn_scalar": scaled,
        "rope_local_base_freq": reader.number("rope.freq_base_swa", 10_000.0),
    }


def _experts(reader: _Reader) -> dict[str, Any]:
    return {
        "num_experts": reader.count("expert_count"),
        "num_experts_per_tok": reader.count("expert_used_count"),
        "moe_intermediate_size": reader.count("expert_feed_forward_length"),
        "norm_topk_prob": True,  # as llama.cpp has it for this architecture
    }


# --- rope -------------------------------------------------------------------------------------------------------------


def _rope(reader: _Reader, factors: Sequence[float], head_dim: int) -> dict[str, Any]:
    theta = reader.number("rope.freq_base", 1_000_000.0 if reader.architecture == "gemma3" else 10_000.0)
    scaling = _scaling(reader)
    if any(factor != 1 for factor in factors):
        if 2 * len(factors) != head_dim:
            raise reader.refuse(f"{ROPE_FACTORS} of length", len(factors))
        if not all(isfinite(factor) and factor >= 1 for factor in factors):
            raise reader.refuse(ROPE_FACTORS, factors[-3:])
        if scaling:
            raise reader.refuse("rope_freqs.weight beside rope.scaling", scaling["rope_type"])
        scaling = _llama3(reader, theta, factors)
    return {"rope_theta": theta, "rope_scaling": scaling}


def _scaling(reader: _Reader) -> dict[str, Any] | None:
    """As llama.cpp reads it: linear where no type is said, and by an older key where no factor is."""
    found = reader.scaling()
    kind = found.get("type", "linear")
    if kind not in _ROPE_KINDS:
        raise reader.refuse("rope.scaling.type", kind)
    unknown = {key for key in found.keys() - _ROPE_KNOWN if (key, found[key]) != ("attn_factor", 1)}
    if unknown:
        raise reader.refuse("rope.scaling", sorted(unknown))
    factor = "rope.scaling.factor" if "factor" in found else "rope.scale_linear"
    if kind == "none" or (kind == "linear" and reader.neutral(factor)):
        return None
    scaling = {"rope_type": kind, "factor": reader.number(factor)}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = reader.count("rope.scaling.original_context_length")
    return scaling


def _llama3(reader: _Reader, theta: float, factors: Sequence[float]) -> dict[str, Any]:
    """The settings that these factors were computed from. Raises UnsupportedModel where they are others."""
    low, high = _LLAMA3
    scaling = {
        "rope_type": "llama3",
        "factor": float(round(max(factors))),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": _LLAMA3_LENGTH,
    }
    expected = [_llama3_factor(theta ** (2 * i / (2 * len(factors))), scaling) for i in range(len(factors))]
    if not all(isclose(one, other, rel_tol=_CLOSE) for one, other in zip(factors, expected, strict=True)):
        raise reader.refuse(ROPE_FACTORS, [round(factor, 3) for factor in factors[-3:]])
    return scaling


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
