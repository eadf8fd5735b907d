"""Shards loaded from exported folders compute exactly what shards of the original folder do, on every backend."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.support.chain import Chain, load_shard, new_sequence, row
from tests.support.checksum import EOS, QUIET, expected_tokens, make_checksum_model
from tests.support.families import LAYERS, make_checkpoint, prompt_ids
from tests.support.pieces import carry, exported
from together.errors import BrokenModel, NotEnoughMemory, UnsupportedModel
from together.types import LayerRange, Sampling
from together.weights.store import Store

CUTS = (0, 1, LAYERS)


def cut_up(folder: Path, target: Path) -> list[tuple[Path, LayerRange]]:
    """Each range of CUTS in a folder that has nothing else."""
    parts = [(target / f"{start}-{stop}", LayerRange(start, stop)) for start, stop in pairwise(CUTS)]
    for part, layers in parts:
        exported(folder, layers, part)
    return parts


@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize("case", ["llama-tied", "qwen3_moe"])  # the last stage needs the embedding; experts are merged
def test_the_same_weights_from_pieces(tmp_path: Path, case: str, backend: str) -> None:
    if backend == "mlx":
        pytest.importorskip("mlx.core")
    folder = make_checkpoint(tmp_path / "m", case, shard_size="60KB")  # in several files
    parts = cut_up(folder, tmp_path)
    whole = Chain([load_shard(folder, backend, layers) for _, layers in parts])
    pieces = Chain([load_shard(part, backend, layers) for part, layers in parts])
    asked = row(new_sequence(), 0, prompt_ids(9))
    assert np.array_equal(pieces.logits(asked), whole.logits(asked))
    for shard in (*whole.shards, *pieces.shards):
        shard.close()


def test_the_toy_from_pieces(tmp_path: Path) -> None:
    folder = make_checksum_model(tmp_path / "toy", layers=LAYERS, quiet_ids=(*QUIET, EOS))
    pieces = Chain([load_shard(part, "checksum", layers) for part, layers in cut_up(folder, tmp_path)])
    prompt = (1, 2, 3)
    wanted = expected_tokens(folder, prompt, 8, Sampling(temperature=0.0))
    assert list(pieces.greedy(new_sequence(), prompt, 8)) == wanted


@pytest.mark.parametrize("backend", ["torch", "checksum"])
def test_layers_that_are_not_there_are_not_loaded(tmp_path: Path, backend: str) -> None:
    toy = backend == "checksum"
    folder = make_checksum_model(tmp_path / "m") if toy else make_checkpoint(tmp_path / "m", "llama")
    (first, _), _ = cut_up(folder, tmp_path)
    with pytest.raises(BrokenModel, match=r"lacks layers 1:4, norm, head of m"):
        load_shard(first, backend, LayerRange(0, LAYERS))


@pytest.mark.parametrize("backend", ["torch", "mlx", "checksum"])
def test_what_a_backend_refuses_of_a_cached_model_has_its_name(tmp_path: Path, home: Path, backend: str) -> None:
    """The folder of a cached model has the fingerprint's name, which says nothing to anybody."""
    if backend == "mlx":
        pytest.importorskip("mlx.core")
    toy, place = backend == "checksum", home / "models" / "org" / "tiny"
    original = make_checksum_model(place) if toy else make_checkpoint(place, "llama")
    folder = Store(home).folder(carry(Store(home), original).fingerprint)
    with pytest.raises(NotEnoughMemory, match="org/tiny"):
        load_shard(folder, backend, LayerRange(0, 1), memory=1)


def test_a_rope_that_torch_refuses_is_that_of_a_named_model(tmp_path: Path, home: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    original = make_checkpoint(home / "models" / "org" / "tiny", "llama", rope_parameters=rope)
    folder = Store(home).folder(carry(Store(home), original).fingerprint)
    with pytest.raises(UnsupportedModel, match=r"^org/tiny scales its rope by 'dynamic'"):
        load_shard(folder, "torch", LayerRange(0, 1))
