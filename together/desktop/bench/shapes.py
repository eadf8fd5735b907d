"""Random checkpoints in the shapes of well-known models, made once in the user's cache."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from together.errors import BadSetting
from together.models.config import effective
from together.models.layout import needs
from together.models.matrices import Shape
from together.types import DTYPE_BYTES, Dtype

SPREAD = 0.02  # standard deviation of the weights, as models are initialised
_WORDS: dict[Dtype, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
TILE = 2**22  # random numbers made once and repeated: speed does not depend on their variety


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A Llama-architecture model by its numbers; `hidden`, `intermediate` and `head_dim` in elements."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool

    def config(self, dtype: Dtype) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "torch_dtype": _WORDS[dtype],
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes as checkpoints have them."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (wide, self.hidden),
            "self_attn.k_proj": (narrow, self.hidden),
            "self_attn.v_proj": (narrow, self.hidden),
            "self_attn.o_proj": (self.hidden, wide),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
            "input_layernorm": (self.hidden,),
            "post_attention_layernorm": (self.hidden,),
        }
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for index in range(self.layers):
            found |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
        found["model.norm.weight"] = (self.hidden,)
        return found if self.tied else found | {"lm_head.weight": (self.vocab, self.hidden)}


def _config(family: str, layers: int, hidden: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": family,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "bos_token_id": 0,
        "eos_token_id": 1,
        **more,
    }


SHAPES = {
    "llama-3.2-1b": ModelShape(16, 2048, 8192, 32, 8, 64, 128256, tied=True),
    "llama-3.2-3b": ModelShape(28, 3072, 8192, 24, 8, 128, 128256, tied=True),
    "llama-3.1-8b": ModelShape(32, 4096, 14336, 32, 8, 128, 128256, tied=False),
    "qwen2.5-0.5b": ModelShape(24, 896, 4864, 14, 2, 64, 151936, tied=True),
    "smollm2-135m": ModelShape(30, 576, 1536, 9, 3, 64, 49152, tied=True),
    "bundled": ModelShape(8, 128, 384, 4, 2, 32, 4096, tied=True),  # of examples/demo_model
    "tiny": ModelShape(4, 64, 128, 4, 2, 16, 512, tied=True),
}


_HYBRID = {
    "tie_word_embeddings": True,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 16,
    "rope_parameters": {"rope_theta": 1e7},
}
_GRANITE = {
    "layer_types": ["mamba"] * 3 + ["attention"] + ["mamba"] * 2,
    "position_embedding_type": "nope",
    "tie_word_embeddings": True,
    "vocab_size": 100352,
    "intermediate_size": 512,
    "num_local_experts": 64,
    "num_experts_per_tok": 6,
    "mamba_n_heads": 48,
    "mamba_d_state": 128,
}
_NEMOTRON = {
    "hybrid_override_pattern": "M-*M",
    "intermediate_size": 15680,
    "mamba_head_dim": 80,
}
_WINDOWED = {"sliding_window": 1024, "attention_k_eq_v": True, "hidden_size_per_layer_input": 0}
_SMALL_GEMMA = {  # each layer has an input of its own; the last ones read keys and values of those before
    "num_kv_shared_layers": 5,
    "sliding_window": 512,
    "tie_word_embeddings": True,
    "final_logit_softcapping": 30.0,
}
CONFIGS: dict[str, dict[str, Any]] = {  # of other families, in the widths of a model that is published, with few layers
    "qwen3.5-0.8b": _config("qwen3_5_text", 24, 1024, 8, 2, intermediate_size=3584, **_HYBRID),
    "gpt-oss-20b-4": _config("gpt_oss", 4, 2880, 64, 8, num_local_experts=32),
    "gemma-4-31b-6": _config(
        "gemma4_text", 6, 5376, 32, 16, intermediate_size=21504, num_global_key_value_heads=4, **_WINDOWED
    ),
    "gemma-4-e2b-15": _config(
        "gemma4_text",
        15,
        1536,
        8,
        1,
        intermediate_size=6144,
        use_double_wide_mlp=True,
        layer_types=[*["sliding_attention"] * 4, "full_attention"] * 3,
        **_SMALL_GEMMA,
    ),
    "gemma-4-e4b-12": _config("gemma4_text", 12, 2560, 8, 2, intermediate_size=10240, **_SMALL_GEMMA),
    "granite-4-h-tiny-6": _config("granitemoehybrid", 6, 1536, 12, 4, **_GRANITE),
    "nemotron-nano-9b-4": _config("nemotron_h", 4, 4480, 40, 8, **_NEMOTRON),
    "glm-4.7-flash-4": _config("glm4_moe_lite", 4, 2048, 20, 20, num_nextn_predict_layers=0),
}


def require_shape(name: str) -> None:
    """Raises BadSetting for one that is not known."""
    known = (*SHAPES, *CONFIGS)
    if name not in known:
        raise BadSetting("there is no shape {name!r}; choose one of {shapes}", name=name, shapes=known)


def _described(name: str, dtype: Dtype) -> tuple[dict[str, Any], Mapping[str, Shape]]:
    """A shape's config.json, and its tensors."""
    if name in SHAPES:
        return SHAPES[name].config(dtype), SHAPES[name].tensors()
    config = CONFIGS[name] | {"torch_dtype": _WORDS[dtype]}
    known = effective(name, config)
    return config, needs(known, head=not known["tie_word_embeddings"])


def noise_tile() -> npt.NDArray[np.float32]:
    """Random weights, to be repeated."""
    return np.random.default_rng(0).normal(0.0, SPREAD, TILE).astype(np.float32)


def random_checkpoint(name: str, dtype: Dtype, home: Path) -> Path:
    """The folder with random weights of that shape; written on first use. Raises BadSetting for an unknown shape."""
    require_shape(name)
    folder = home / "bench" / f"{name}-{dtype}"
    if not (folder / "model.safetensors").is_file():
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        config, tensors = _described(name, dtype)
        (part / "config.json").write_text(json.dumps(config, indent=1))
        _write_weights(part / "model.safetensors", tensors, dtype)
        part.rename(folder)
    return folder


def _write_weights(file: Path, tensors: Mapping[str, Shape], dtype: Dtype) -> None:
    """One safetensors file: 8 bytes of header length, the JSON header, the data."""
    sizes = [prod(shape) * DTYPE_BYTES[dtype] for shape in tensors.values()]
    ends = accumulate(sizes)
    kind = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}[dtype]
    header = {
        name: {"dtype": kind, "shape": shape, "data_offsets": [end - size, end]}
        for (name, shape), size, end in zip(tensors.items(), sizes, ends, strict=True)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    noise = encode(noise_tile(), dtype)
    ones = encode(np.ones(TILE, np.float32), dtype)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for shape, size in zip(tensors.values(), sizes, strict=True):
            tile = ones if len(shape) == 1 else noise
            out.writelines([tile] * (size // len(tile)))
            out.write(tile[: size % len(tile)])


def encode(values: npt.NDArray[np.float32], dtype: Dtype) -> bytes:
    """float32 numbers as bytes of `dtype`; bf16 is the upper half of a float32 (rounded down)."""
    if dtype == "bf16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype("<f4" if dtype == "fp32" else "<f2").tobytes()
