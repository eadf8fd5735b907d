"""Scores on every backend, alone and mixed: the log-softmax of the unsplit transformers model."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch

from backends import ledger
from tests.backends.conftest import Chains, Checkpoints
from tests.backends.test_conformance import BACKENDS, EXAMPLE, each_backend, each_pair
from tests.support.chain import GREEDY, Chain, Logits, load_shard, new_sequence
from tests.support.families import VOCAB, prompt_ids, reference_logits
from tests.support.smollm2 import smollm2_folder
from together.types import Batch, Continuation, LayerRange, Row, SampleRequest


@each_pair
def test_scores_are_the_log_probabilities_of_transformers(
    chain: Chains, checkpoint: Checkpoints, pair: tuple[str, str]
) -> None:
    """In one row and in chunks of a row; one at an offset that is sampled as well, and several ids at one offset."""
    ring, text = chain("llama", pair, (2,)), prompt_ids(70)
    wanted = log_probabilities(reference_logits(checkpoint("llama"), text))
    next_ones = np.array([wanted[place, token] for place, token in enumerate(text[1:])])
    whole = ring.scored(text)
    for chunk in (1, 33):
        assert np.abs(np.array(ring.scored(text, chunk)) - whole).max() < 2e-5
    assert np.abs(np.array(whole) - next_ones).max() < 1e-4
    ask = SampleRequest((3,), GREEDY, 4, score=tuple(Continuation(3, token) for token in (7, 0, 7)))
    found = ring.results(Batch((Row(new_sequence(), 0, text[:4], ask),)))[0]
    assert found.sampled[0].token_id == wanted[3].argmax()
    assert np.abs(np.array(found.scores) - wanted[3, [7, 0, 7]]).max() < 1e-4


@each_backend
def test_few_logits_exist_at_once_and_scores_do_not_depend_on_how_many(
    chain: Chains, checkpoint: Checkpoints, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, text = "qwen3" if backend != EXAMPLE else "llama", prompt_ids(70)
    ring, found = chain(name, (backend,)), []
    shard, counts = cast(Any, ring.shards[0]), list[int]()
    head = shard._logits

    def counted(states: object, places: list[int]) -> object:
        counts.append(len(places))
        return head(states, places)

    monkeypatch.setattr(shard, "_logits", counted)
    for logits in (ledger.SCORED, 32 * VOCAB, 8 * VOCAB - 1, 1):
        monkeypatch.setattr(ledger, "SCORED", logits)
        found.append(ring.scored(text))
    assert counts == [69, 32, 32, 5, *[7] * 9, 6, *[1] * 69]
    assert np.allclose(found, found[0], rtol=1e-6, atol=0)
    wanted = log_probabilities(reference_logits(checkpoint(name), text))
    assert np.abs(np.array(found[0]) - wanted[np.arange(69), list(text[1:])]).max() < 1e-4


def log_probabilities(logits: Logits) -> Logits:
    return np.asarray(torch.tensor(logits).log_softmax(dim=-1).numpy())


@pytest.mark.full
@pytest.mark.parametrize("pair", [("torch", "mlx"), ("mlx", "torch")], ids="-".join)
def test_a_real_models_scores_are_those_of_transformers(pair: tuple[str, str]) -> None:
    """A vocabulary of 49,152, whose small logits count."""
    folder, text = smollm2_folder(), tuple(range(500, 620))
    parts = zip(pair, (LayerRange(0, 15), LayerRange(15, 30)), strict=True)
    ring = Chain([load_shard(folder, backend, part, memory=2**30) for backend, part in parts])
    found = np.array(ring.scored(text))
    for shard in ring.shards:
        shard.close()
    wanted = log_probabilities(reference_logits(folder, text))
    assert np.abs(found - wanted[np.arange(119), list(text[1:])]).max() < 1e-4


@pytest.mark.skipif("mlx" not in BACKENDS, reason="MLX is not installed here")
def test_mlx_loses_no_small_logit_beside_a_large_one() -> None:
    """Each of them alone is too small to change the sum: of a real model's vocabulary they are 1e-4 together."""
    import mlx.core as mx

    from backends.on_mlx.shard import log_sums

    for width in (49_152, 49_001, 3):
        logits = np.full((2, width), -17.2, np.float32)
        logits[0, 7 % width] = 0
        wanted = np.log(np.exp(logits.astype(np.float64)).sum(axis=-1))
        assert np.abs(np.array(log_sums(mx.array(logits))) - wanted).max() < 2e-5
