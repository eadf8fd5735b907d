"""Heads of values that lie otherwise than they were published, and decays: plain, and in blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from together.errors import BrokenModel, UnsupportedModel
from together.models.gguf.rows import read_groups, tiled_order
from together.models.headers import HeadTiles, TensorInfo
from together.models.reading import read_into, read_stored

Floats = npt.NDArray[np.float32]
GROUPS, EACH, SIZE = 2, 3, 32


def stored(folder: Path, array: npt.NDArray[Any], shape: tuple[int, ...] = (), **more: Any) -> TensorInfo:
    """A tensor with the bytes of `array`, which may be blocks."""
    file = folder / "m.bin"
    file.write_bytes(array.tobytes())
    return TensorInfo("x.weight", file, more.pop("dtype", "F32"), shape or array.shape, 0, array.nbytes, **more)


def read(tensor: TensorInfo) -> Floats:
    found = np.empty(tensor.shape, np.float32)
    read_into(tensor, found.data.cast("B"))
    return found


def test_the_order_of_heads() -> None:
    assert tiled_order(8, HeadTiles(2, 1, first=2)).tolist() == [0, 1, 2, 4, 6, 3, 5, 7]
    assert tiled_order(8, HeadTiles(2, 2)).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
def test_plain_and_packed_ones_come_back(tmp_path: Path, columns: bool) -> None:
    heads = np.random.default_rng(0).normal(size=(GROUPS, EACH, SIZE, 64)).astype(np.float32)
    published, tiled = (each.reshape(-1, 64) for each in (heads, heads.swapaxes(0, 1)))
    if columns:
        published, tiled = np.ascontiguousarray(published.T), np.ascontiguousarray(tiled.T)
    tiles = HeadTiles(GROUPS, SIZE, columns=columns)
    assert np.array_equal(read(stored(tmp_path, tiled, tiles=tiles, gguf=True)), published)
    blocks = gguf.quants.quantize(tiled, gguf.GGMLQuantizationType.Q8_0)
    wanted = gguf.quants.dequantize(
        gguf.quants.quantize(published, gguf.GGMLQuantizationType.Q8_0), gguf.GGMLQuantizationType.Q8_0
    )
    packed = stored(tmp_path, blocks, dtype="Q8_0", shape=tiled.shape, tiles=tiles, gguf=True)
    for start, stop in ((0, len(published)), (5, 50), (33, 34)):
        found = read_groups(packed, start, stop, read_stored)
        assert found.biases is not None
        weights = found.codes * np.repeat(found.scales, 32, axis=1) + np.repeat(found.biases, 32, axis=1)
        assert np.allclose(weights, wanted[start:stop], atol=1e-6)


def test_heads_of_half_a_group_are_refused(tmp_path: Path) -> None:
    blocks = gguf.quants.quantize(np.ones((4, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    tensor = stored(tmp_path, blocks, dtype="Q8_0", shape=(4, 64), tiles=HeadTiles(2, 16, columns=True), gguf=True)
    with pytest.raises(UnsupportedModel, match="heads of 16 values in groups of 32"):
        read_groups(tensor, 0, 4, read_stored)


def test_decays(tmp_path: Path) -> None:
    published = np.array([-2.0, 0.5, 1.75], np.float32)
    assert np.allclose(read(stored(tmp_path, -np.exp(published), decay=True, gguf=True)), published, rtol=1e-6)
    with pytest.raises(BrokenModel, match="decays that are none"):
        read(stored(tmp_path, np.zeros(3, np.float32), decay=True, gguf=True))
