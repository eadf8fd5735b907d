"""A step on MLX, which is put together before it is computed: when its parts begin, what a failure leaves behind."""

# ruff: noqa: E402  (the backend can be imported only where MLX exists)

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

mx = pytest.importorskip("mlx.core")

from backends.base import LoadRequest
from backends.on_mlx import backend
from backends.on_mlx.shard import MlxShard
from tests.support.chain import assert_close, row
from tests.support.families import LAYERS, make_checkpoint, prompt_ids, reference_greedy, reference_logits
from together.models.spec import read_spec
from together.types import BLOCK, Batch, LayerRange, Orders

DEVICE = backend.probe()[0].name
DEEP = 9  # layers of a stage that computes in several parts
PROMPT = prompt_ids(20)


def load(folder: Path, layers: int) -> MlxShard:
    return backend.load(LoadRequest(folder, LayerRange(0, layers), DEVICE, "fp32", 128 * 2**20, folder.parent))


def test_first_layers_are_computed_while_others_are_put_together(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama", num_hidden_layers=DEEP)
    shard = load(folder, DEEP)
    spec, held = read_spec(folder), []
    sixth = shard._parts.layers[5]

    def noted(x: Any, *given: Any, cache: Any) -> Any:
        held.append(mx.get_active_memory())
        return sixth(x, *given, cache=cache)

    shard._parts = replace(shard._parts, layers=(*shard._parts.layers[:5], noted, *shard._parts.layers[6:]))
    before = mx.get_active_memory()
    first = shard.step(Batch((row(1, 0, PROMPT, "last"),)), None).results[0].sampled[0].token_id
    assert held[0] - before >= BLOCK * spec.kv_bytes_per_token(LayerRange(0, 4), "fp32")
    (second,) = shard.step(Batch((row(1, len(PROMPT), [first], "last"),)), None).results
    assert [first, second.sampled[0].token_id] == list(reference_greedy(folder, PROMPT, 2))


@pytest.mark.skipif(DEVICE != "cpu", reason="an error on a GPU's queue may end the process, which its node sees")
@pytest.mark.parametrize("layers", [LAYERS, DEEP])  # of more than four some are begun before all are put together
def test_an_evaluation_that_fails_leaves_nothing_behind(tmp_path: Path, layers: int) -> None:
    """A weight that cannot be read when it is needed; the caches it touched are not trusted any more."""
    folder = make_checkpoint(tmp_path / "model", "llama", num_hidden_layers=layers)
    shard = load(folder, layers)
    for begun in (row(1, 0, PROMPT[:10], "none"), row(3, 0, PROMPT[:8], "none")):
        shard.step(Batch((begun,)), None)
    norm = cast(Any, shard._parts.layers[2]).input_layernorm
    weight, norm.weight = norm.weight, unreadable(tmp_path / "weight.safetensors", norm.weight)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            shard.step(Batch((row(1, 10, PROMPT[10:]), row(2, 0, PROMPT))), None)
        norm.weight = unreadable(tmp_path / "weight.safetensors", weight)
    norm.weight = weight
    assert set(shard._caches.sequences) == {3}
    (result,) = shard.step(Batch((row(1, 10, PROMPT[10:]),)), None).results
    assert result.refusal is not None
    assert_close(shard.logits(Batch((row(1, 0, PROMPT),)), None), reference_logits(folder, PROMPT))
    assert_close(shard.logits(Batch((row(3, 8, PROMPT[8:]),)), None), reference_logits(folder, PROMPT)[8:])


def unreadable(file: Path, weight: Any) -> Any:
    """An array that is still to be read, of a file that has lost its end."""
    mx.save_safetensors(str(file), {"weight": weight})
    array = mx.load(str(file))["weight"]
    os.truncate(file, file.stat().st_size - 16)
    return array


def test_a_sequence_goes_on_after_memory_was_given_back(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama")
    shard, ids = load(folder, LAYERS), prompt_ids(200)
    shard.step(Batch((row(1, 0, ids[:150], "none"), row(2, 0, ids, "none"))), None)
    shard.step(Batch((), Orders(drops=(2,), trim=True)), None)
    assert mx.get_cache_memory() == 0
    found = shard.logits(Batch((row(1, 150, ids[150:]),)), None)
    assert_close(found, reference_logits(folder, ids)[150:])
