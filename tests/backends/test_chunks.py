"""Attention in chunks: what layers keep and see where sequences are longer than many chunks, on every backend."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.layer_caches import REWIND
from tests.support.chain import Chain, assert_close, load_shard, new_sequence, row
from tests.support.families import LAYERS, make_checkpoint, prompt_ids, reference_logits
from together.models.spec import read_spec
from together.models.state import KeysValues
from together.types import Fork, LayerRange, Orders

BACKENDS = ("torch", "mlx") if find_spec("mlx") else ("torch",)
CHUNK, LONG = 50, 460  # so long that what is left behind is given back
IDS, OTHER = prompt_ids(LONG), prompt_ids(30, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("chunks"), "llama4", attention_chunk_size=CHUNK)


def test_what_layers_keep(folder: Path) -> None:
    """A token counts like any other, and a layer without rope sees everything."""
    spec = read_spec(folder)
    chunked, full = KeysValues(2, 20, 20, CHUNK, chunked=True), KeysValues(2, 20, 20)
    assert spec.states == (chunked, chunked, full, chunked)
    assert {state.per_token for state in spec.states} == {80}
    assert (chunked.slides, chunked.chunk, full.chunk) == (None, CHUNK, None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_long_sequences(folder: Path, backend: str) -> None:
    """In parts that begin and end within chunks; then back as far as is allowed, a fork, and token by token."""
    ring: Any = Chain([load_shard(folder, backend, LayerRange(0, LAYERS))])
    sequence, twin, found, at = new_sequence(), new_sequence(), [], 0
    for size in (49, 1, 1, 120, 200, LONG - 371):
        found.append(ring.logits(row(sequence, at, IDS[at : at + size])))
        at += size
    whole = reference_logits(folder, IDS)
    assert_close(np.concatenate(found), whole)
    back = LONG - REWIND
    order = Orders(forks=(Fork(sequence, twin, back + 60),))
    again = ring.logits(row(sequence, back, IDS[back : back + 60]), row(twin, back + 60, OTHER), orders=order)
    other = reference_logits(folder, (*IDS[: back + 60], *OTHER))[back + 60 :]
    assert_close(again, np.concatenate((whole[back : back + 60], other)))
    for place in range(back + 60, back + 63):
        assert_close(ring.logits(row(sequence, place, IDS[place : place + 1])), whole[place : place + 1])
