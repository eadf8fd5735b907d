"""Blocks of every type that runs stand for the same weights as in the package `gguf`."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from tests.support.gguf_files import random_blocks
from tests.support.widen import dequantize
from together.models.codes import pack, unpack
from together.models.gguf.blocks import read_blocks
from together.models.gguf.kinds import BLOCKS, KINDS, PACKINGS

ROWS, WEIGHTS = 7, 768


@pytest.mark.parametrize("name", PACKINGS)
@pytest.mark.parametrize("sane", [True, False])
def test_blocks_are_what_gguf_says(name: str, sane: bool) -> None:
    kind, packing = BLOCKS[name], PACKINGS[name]
    random = np.random.default_rng(3)
    raw = random_blocks(Kind[name], (ROWS, WEIGHTS), random)
    if not sane:  # any bytes but scales that are no numbers
        raw = np.where(random.random(raw.shape) < 0.1, np.uint8(0), raw)
    found = read_blocks(name, raw.reshape(ROWS, -1, kind.nbytes))
    words = pack(found.codes, packing.bits)
    assert np.array_equal(unpack(words, packing.bits), found.codes)
    weights = dequantize(words, found.scales, found.biases, packing)
    assert np.array_equal(weights, gguf.quants.dequantize(raw, Kind[name]))


def test_sizes_are_those_of_gguf() -> None:
    known = {kind.name: gguf.GGML_QUANT_SIZES[kind] for kind in Kind if kind.name not in ("Q8_1", "Q8_K")}
    assert {kind.name: (kind.weights, kind.nbytes) for kind in KINDS.values()} == known
    assert {number: kind.name for number, kind in KINDS.items()} == {
        kind.value: kind.name for kind in Kind if kind.name in known
    }
