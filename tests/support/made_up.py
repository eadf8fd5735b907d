"""Made-up models of any size: real headers, and weights that take no room on the disk. Knows no test."""

from __future__ import annotations

import json
import random
import struct
from math import prod
from pathlib import Path

from together.desktop.bench.shapes import ModelShape


def shape_of_seed(seed: int) -> ModelShape:
    """From 0.03 to 9 GB in 16 bits, with all of few and of many layers, wide and narrow ones."""
    draw = random.Random(seed)
    heads, head_dim = draw.choice((4, 8, 16, 32)), draw.choice((64, 128))
    hidden = heads * head_dim
    return ModelShape(
        layers=draw.choice((4, 12, 24, 40)),
        hidden=hidden,
        intermediate=hidden * draw.choice((2, 4)),
        heads=heads,
        kv_heads=draw.choice((1, 2, 4)),
        head_dim=head_dim,
        vocab=draw.choice((4096, 32000, 128256)),
        tied=draw.random() < 0.5,
    )


def write_made_up(folder: Path, shape: ModelShape) -> Path:
    """A folder whose file of weights is as long as it should be, and empty."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.config("bf16")))
    header, position = {}, 0
    for name, dims in shape.tensors().items():
        stop = position + 2 * prod(dims)
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + position)
    return folder
