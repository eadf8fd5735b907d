"""Well-known models by name, as their published config.json has them, to plan without a download. Pure.

The source of each is the config.json of the repository that stands beside it.
"""

from __future__ import annotations

from typing import Any


def _config(
    family: str,
    layers: int,
    hidden: int,
    inner: int,
    heads: int,
    kv_heads: int,
    vocabulary: int,
    *,
    head_dim: int = 128,
    tied: bool = False,
) -> dict[str, Any]:
    return {
        "model_type": family,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    }


def _experts(layers: int, hidden: int, inner: int, heads: int, each: int) -> dict[str, Any]:
    dense = _config("qwen3_moe", layers, hidden, inner, heads, 4, 151936)
    return {**dense, "moe_intermediate_size": each, "num_experts": 128, "num_experts_per_tok": 8}


SHAPES: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": _config("llama", 16, 2048, 8192, 32, 8, 128256, head_dim=64, tied=True),  # meta-llama
    "Llama-3.2-3B": _config("llama", 28, 3072, 8192, 24, 8, 128256, tied=True),
    "Llama-3.1-8B": _config("llama", 32, 4096, 14336, 32, 8, 128256),
    "Llama-3.3-70B": _config("llama", 80, 8192, 28672, 64, 8, 128256),
    "Llama-3.1-405B": _config("llama", 126, 16384, 53248, 128, 8, 128256),
    "Qwen2.5-7B": _config("qwen2", 28, 3584, 18944, 28, 4, 152064),  # Qwen
    "Qwen2.5-14B": _config("qwen2", 48, 5120, 13824, 40, 8, 152064),
    "Qwen2.5-32B": _config("qwen2", 64, 5120, 27648, 40, 8, 152064),
    "Qwen2.5-72B": _config("qwen2", 80, 8192, 29568, 64, 8, 152064),
    "Qwen3-8B": _config("qwen3", 36, 4096, 12288, 32, 8, 151936),
    "Qwen3-14B": _config("qwen3", 40, 5120, 17408, 40, 8, 151936),
    "Qwen3-32B": _config("qwen3", 64, 5120, 25600, 64, 8, 151936),
    "Qwen3-30B-A3B": _experts(48, 2048, 6144, 32, 768),
    "Qwen3-235B-A22B": _experts(94, 4096, 12288, 64, 1536),
    "Mistral-7B-v0.3": _config("mistral", 32, 4096, 14336, 32, 8, 32768),  # mistralai
    "Mistral-Small-24B-2501": _config("mistral", 40, 5120, 32768, 32, 8, 131072),
    "Gemma-3-27B": _config("gemma3_text", 62, 5376, 21504, 32, 16, 262208, tied=True),  # google, the text part
}


def shape_named(name: str) -> str | None:
    """The name in the table that `name` means, whatever its case and with `-Instruct` or `-it`; None where none."""
    folded = name.casefold().removesuffix("-instruct").removesuffix("-it")
    return next((known for known in SHAPES if known.casefold() == folded), None)
