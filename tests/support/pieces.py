"""Whole models with random bytes, and carrying their units by hand, as a transfer does. Knows no test."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.support.folders import SHAPES, Shapes, write_model
from together.models.manifest import Manifest, describe, small_files
from together.models.names import TEMPLATES
from together.models.reading import read_unit
from together.models.units import Unit
from together.types import LayerRange
from together.weights.store import Store, export, local_name


def random_model(folder: Path, shapes: Shapes = SHAPES, seed: int = 0, **config: Any) -> Path:
    """As `write_model`, with weights that differ in every byte, and a tokenizer's files."""
    write_model(folder, shapes, **config)
    file = folder / "model.safetensors"
    whole = bytearray(file.read_bytes())
    data = 8 + int.from_bytes(whole[:8], "little")
    whole[data:] = random.Random(seed).randbytes(len(whole) - data)
    file.write_bytes(whole)
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "seed": seed}))
    (folder / "modeling_evil.py").write_text("raise SystemExit('never run')")
    return folder


def with_template(folder: Path, name: str = "tool_use.jinja") -> Path:
    """The model, with a further chat template, and beside it what is none."""
    templates = folder / TEMPLATES
    templates.mkdir(exist_ok=True)
    (templates / name).write_text("T{{ tools | length }}")
    (templates / "evil.py").write_text("raise SystemExit('never run')")
    return folder


def unit_bytes(folder: Path, unit: Unit, offset: int = 0) -> bytes:
    return b"".join(read_unit(folder, unit, offset))


def exported(folder: Path, layers: LayerRange, target: Path) -> Manifest:
    return export(folder, describe(folder), layers, target)


def carry(store: Store, folder: Path, *names: str) -> Manifest:
    """Begin the model of `folder` in `store` and bring these units, or all."""
    manifest = describe(folder, local_name(folder, store.home))
    store.begin(manifest, small_files(folder))
    for name in names or manifest.units:
        with store.part(manifest.fingerprint, name) as part:
            for chunk in read_unit(folder, part.unit, part.size):
                part.write(chunk)
            part.finish()
    return manifest


def flip(file: Path, position: int = -1) -> None:
    """Change one bit of a file, at its end or at a position."""
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)
