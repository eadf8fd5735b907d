"""Rope with two sets of factors: a ring turns by one of them, chosen by the longest sequence that it is loaded for."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.support.chain import Chain, assert_close, load_shard, new_sequence, row
from tests.support.families import LAYERS, make_checkpoint, prompt_ids, reference_greedy, reference_logits
from together.errors import FrameRefused
from together.head.loopback import Place, local_engine
from together.models.rope import is_stretched
from together.models.spec import read_spec
from together.requests import GenerateRequest
from together.types import LayerRange, Sampling

BACKENDS = ("torch", "mlx") if find_spec("mlx") else ("torch",)
TRAINED = 16
IDS = prompt_ids(40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("long"),
        "phi3-long",
        original_max_position_embeddings=TRAINED,
        max_position_embeddings=64,
    )


def ring(folder: Path, backend: str, *, stretched: bool) -> Chain:
    ends = (0, 2, LAYERS)
    return Chain([load_shard(folder, backend, LayerRange(*part), stretched=stretched) for part in pairwise(ends)])


def test_the_context_chooses(folder: Path) -> None:
    trained = read_spec(folder).trained
    assert [is_stretched(trained, context) for context in (1, TRAINED, TRAINED + 1)] == [False, False, True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_long_sequences(folder: Path, backend: str) -> None:
    """As transformers turns all tokens of a pass that is so long, also those that came when it was shorter."""
    chain, sequence, found, at = ring(folder, backend, stretched=True), new_sequence(), [], 0
    for size in (5, 1, 20, 1, 13):
        found.append(chain.logits(row(sequence, at, IDS[at : at + size])))
        at += size
    assert_close(np.concatenate(found), reference_logits(folder, IDS))


@pytest.mark.parametrize("backend", BACKENDS)
def test_short_sequences(folder: Path, backend: str) -> None:
    """As transformers turns them; what is longer is no token of theirs."""
    chain, sequence = ring(folder, backend, stretched=False), new_sequence()
    found = [chain.logits(row(sequence, 0, IDS[:7])), chain.logits(row(sequence, 7, IDS[7:TRAINED]))]
    assert_close(np.concatenate(found), reference_logits(folder, IDS[:TRAINED]))
    with pytest.raises(FrameRefused, match=r"tokens beyond 16, .+ load it with a longer context"):
        chain.logits(row(sequence, TRAINED, IDS[TRAINED : TRAINED + 1]))


async def test_stages_are_told(folder: Path, tmp_path: Path) -> None:
    """A ring of real ones, loaded for a longer context, turns short texts by the same factors."""
    places = tuple(Place(BACKENDS[-1], "cpu", LayerRange(*part)) for part in ((0, 2), (2, LAYERS)))
    async with local_engine(folder, tmp_path, places, "fp32", 64) as (engine, _):
        stream = engine.submit(GenerateRequest(tuple(IDS[:24]), Sampling(0.0), 8))
        made = [token async for tokens in stream for token in tokens.ids]
    assert tuple(made) == reference_greedy(folder, IDS[:24], 8)
