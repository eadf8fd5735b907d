"""How large the files of a model's folder may be: several times the largest that is published. Knows no content."""

from __future__ import annotations

from together.models.names import MANIFEST

INDEX = "model.safetensors.index.json"
MAX_TEMPLATE = 2**20  # bytes of any other small file: a chat template; the longest published have 0.1 MB

_MIB = 2**20
_MOST = {
    "config.json": 2 * _MIB,  # usually 1 kB; lists of layers that are not quantized make it 0.3 MB
    "generation_config.json": _MIB,
    "tokenizer.json": 64 * _MIB,  # Gemma's 262,000 tokens: 33 MB
    "tokenizer_config.json": 16 * _MIB,  # Gemma's 6,000 unused tokens: 1.2 MB
    "special_tokens_map.json": 4 * _MIB,
    "added_tokens.json": 4 * _MIB,
    "vocab.json": 32 * _MIB,
    "merges.txt": 32 * _MIB,
    INDEX: 32 * _MIB,  # 37,000 tensors: 4 MB; Kimi K2's 210,000: 23 MB
    MANIFEST: 48 * _MIB,  # below what one message carries
}


def most_bytes(name: str) -> int:
    """The most that a file of this name may have."""
    return _MOST.get(name, MAX_TEMPLATE)
