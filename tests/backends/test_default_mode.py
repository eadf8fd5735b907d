"""What int8 activations change: the default mode of quantized weights beside `--exact`, on the real small model."""

# ruff: noqa: E402  (mlx-lm is only where MLX is)

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")

from tests.support.chain import Chain, Logits, load_shard, new_sequence, row
from tests.support.mlx_folders import convert
from tests.support.smollm2 import smollm2_folder
from together.models.spec import read_spec
from together.text.tokenizer import TextModel
from together.types import LayerRange

ROOT = Path(__file__).resolve().parent.parent.parent
STEP = 256  # tokens of a row
NEAR = 2e-2  # of the largest logit, in the mean of squares
SAME = 0.93  # of the most likely tokens: so small a model in 4 bit keeps 94 to 97 %, by the text and the kernel


def own_text(text: TextModel, tokens: int) -> tuple[int, ...]:
    """English sentences that this project wrote."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    ids = text.encode("\n".join(file.read_text(encoding="utf-8") for file in files))
    assert len(ids) >= tokens
    return tuple(ids[:tokens])


def logits(folder: Path, ids: tuple[int, ...], *, exact: bool) -> Iterator[Logits]:
    """Of two stages on torch, row after row."""
    layers = read_spec(folder).layers
    parts = (LayerRange(0, layers // 2), LayerRange(layers // 2, layers))
    chain = Chain([load_shard(folder, "torch", part, memory=2**30, exact=exact) for part in parts])
    sequence = new_sequence()
    try:
        for begin in range(0, len(ids), STEP):
            yield chain.logits(row(sequence, begin, ids[begin : begin + STEP]))
    finally:
        for shard in chain.shards:
            shard.close()


@dataclass(frozen=True, slots=True)
class Compared:
    """Differences relative to the largest logit of a row of tokens, and the share of positions with one top token."""

    usual: float  # root of the mean square
    worst: float
    same: float


def compared(folder: Path, tokens: int) -> Compared:
    ids = own_text(TextModel.open(folder), tokens)
    squares, worst, same = [], 0.0, 0
    pairs = zip(logits(folder, ids, exact=False), logits(folder, ids, exact=True), strict=True)
    for found, wanted in pairs:
        apart = (found - wanted) / np.abs(wanted).max()
        squares.append(float((apart.astype(np.float64) ** 2).mean()))
        worst = max(worst, float(np.abs(apart).max()))
        same += int((found.argmax(axis=1) == wanted.argmax(axis=1)).sum())
    return Compared(float(np.mean(squares)) ** 0.5, worst, same / tokens)


@pytest.mark.full
@pytest.mark.parametrize("bits", [4, 8])
def test_the_most_likely_token_is_mostly_the_same(tmp_path: Path, bits: int) -> None:
    folder = convert(smollm2_folder(), tmp_path / "smollm2", q_bits=bits)
    found = compared(folder, 2048)
    print(f"{bits} bit, 2,048 positions: {found}")
    assert found.usual <= NEAR
    assert found.same >= SAME
