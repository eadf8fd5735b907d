"""Model folders written byte by byte: tensors of zeros behind a header that a test may break. Knows no framework."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
ELEMENT = {"F32": 4, "BF16": 2, "F16": 2, "U32": 4, "F8_E4M3": 1}
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "vocab_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
}
SHAPES = {
    "model.embed_tokens.weight": (16, 8),
    "model.layers.0.mlp.up_proj.weight": (12, 8),
    "model.layers.1.mlp.up_proj.weight": (20, 8),
    "model.layers.1.self_attn.rotary_emb.inv_freq": (2,),
    "model.norm.weight": (8,),
    "lm_head.weight": (16, 8),
}


def write_tensors(file: Path, shapes: Shapes, dtype: str = "BF16") -> Path:
    header, position = {}, 0
    for name, shape in shapes.items():
        stop = position + prod(shape) * ELEMENT[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    return write_raw(file, json.dumps(header).encode(), bytes(position))


def write_raw(file: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    file.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return file


def write_model(
    folder: Path, shapes: Mapping[str, tuple[int, ...]] = SHAPES, dtype: str = "BF16", **config: Any
) -> Path:
    """A folder with config.json and one safetensors file; `config` overrides keys, None leaves a key out."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in (CONFIG | config).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    write_tensors(folder / "model.safetensors", shapes, dtype)
    return folder


def without(*names: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in SHAPES.items() if name not in names}
