"""Layers by Mamba-2's rule, and layers that keep nothing: the rule, memory, publishers' words."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backends.base import LoadRequest, cache_capacity
from backends.on_torch.mamba import scanned
from backends.on_torch.trial import trial_step
from tests.backends.conftest import Checkpoints
from tests.support.chain import Chain, assert_close, load_shard, row
from tests.support.families import LAYERS, make_checkpoint, prompt_ids, reference_logits
from together.errors import UnsupportedModel
from together.models.config import layer_count
from together.models.needed import needed_tensors
from together.models.spec import read_config, read_spec
from together.models.state import CacheSize, KeysValues, Nothing, Recurrent, cache_bytes, sequence_tokens
from together.planning.memory import stage_memory
from together.types import BLOCK, Batch, LayerRange

BACKENDS = ("torch", "mlx") if find_spec("mlx") else ("torch",)
PROMPT = prompt_ids(24)
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_family = pytest.mark.parametrize("name", ["granite4", "nemotron_h"])


@pytest.mark.parametrize("tokens", [1, 5, 64, 150])
def test_the_rule_is_transformers(tokens: int) -> None:
    """Whatever the length of a row, from a state that is not empty."""
    library = import_module("transformers.models.nemotron_h.modeling_nemotron_h")
    torch.manual_seed(tokens)
    x, steps = torch.randn(1, tokens, 6, 16), torch.rand(1, tokens, 6)
    known, asked = torch.randn(2, 1, tokens, 2, 20)
    decay, state = -torch.rand(6), torch.randn(6, 20, 16)
    wanted, after = library.mamba2_chunk_scan(
        x, steps, decay, known, asked, 32, initial_states=state.mT[None], return_final_states=True
    )
    found = scanned(x[0] * steps[0, ..., None], decay * steps[0], known[0], asked[0], state)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], after[0].mT, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_family
def test_real_widths_in_the_way_that_is_fast(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    """Loops of our own take norms of these widths, but not those with a gate."""
    kind: Any = "fp32" if dtype == torch.float32 else "bf16"
    inner: dict[str, Any] = (
        {"mamba_d_head": 32, "mamba_n_heads": 4} if name == "granite4" else {"mamba_head_dim": 32, "n_groups": 1}
    )
    folder = make_checkpoint(tmp_path / "wide", name, kind, hidden_size=64, **inner)
    ring = Chain([load_shard(folder, "torch", LayerRange(0, LAYERS), kind)])
    found = np.concatenate((ring.logits(row(1, 0, PROMPT[:-1])), ring.logits(row(1, len(PROMPT) - 1, PROMPT[-1:]))))
    assert_close(found, reference_logits(folder, PROMPT), bound=1e-5 if dtype == torch.float32 else 0.1)


# --- layers that keep nothing -----------------------------------------------------------------------------------------

STATE, CACHE, NOTHING = Recurrent(4, 16, 24, 160, 3), KeysValues(2, 32, 32), Nothing()


def test_they_take_no_memory_and_a_stage_of_them_has_an_end() -> None:
    own = sequence_tokens((STATE, NOTHING, CACHE), "bf16")
    assert own == sequence_tokens((STATE, CACHE), "bf16")
    assert CacheSize.of((NOTHING, CACHE), "bf16", own) == CacheSize.of((CACHE,), "bf16", own)
    assert CacheSize.of((NOTHING,) * 3, "bf16", own) == CacheSize(1, own)
    states = (STATE, NOTHING, CACHE, NOTHING)
    caches = cache_bytes(states, "bf16")
    for start in range(4):
        for stop in range(start + 1, 5):
            size, counted = CacheSize.of(states[start:stop], "bf16", own), caches[start:stop]
            assert size.nbytes(1024, 2) <= sum(1024 * token + 2 * sequence for token, sequence in counted)


@pytest.mark.parametrize("cuts", [(0, 1, 2, 3, 4), (0, 1, 2, 4)])
def test_whatever_the_cut_a_ring_holds_what_it_was_planned_for(
    checkpoint: Checkpoints, tmp_path: Path, cuts: tuple[int, ...]
) -> None:
    """Layer 1 is an MLP alone: a stage of it is granted little, and admits as many tokens as the others."""
    folder, users, context = checkpoint("nemotron_h"), 3, 4 * BLOCK
    spec = read_spec(folder)
    assert isinstance(spec.states[1], Nothing)
    for layers in (LayerRange(*cut) for cut in pairwise(cuts)):
        granted = stage_memory(spec, layers, "fp32", context, users, "torch")
        request = LoadRequest(folder, layers, "cpu", "fp32", granted, tmp_path)
        wanted = users * (context + 2 * sequence_tokens(spec.states, "fp32"))
        assert cache_capacity(spec, request, "torch") >= wanted
        shard = load_shard(folder, "torch", layers, memory=granted)
        assert shard.capacity >= wanted
        shard.close()


@each_backend
def test_a_stage_of_them_counts_and_refuses_as_others_do(checkpoint: Checkpoints, backend: str) -> None:
    """It can go back to wherever it is asked to, and knows how many tokens it has seen."""
    shard = load_shard(checkpoint("nemotron_h"), backend, LayerRange(1, 2))
    assert shard.rewind is None
    first = load_shard(checkpoint("nemotron_h"), backend, LayerRange(0, 1))
    states = first.step(Batch((row(1, 0, PROMPT, "none"),)), None).activation
    assert shard.step(Batch((row(1, 0, PROMPT, "none"),)), states).activation is not None
    (refused,) = shard.step(Batch((row(2, 3, PROMPT, "none"),)), states).results
    assert refused.refusal is not None


@pytest.mark.parametrize("first", range(LAYERS))
def test_a_trial_of_threads_runs_whatever_a_stage_begins_with(tmp_path: Path, first: int) -> None:
    folder = make_checkpoint(tmp_path / "model", "nemotron_h")
    spec, layers = read_spec(folder), LayerRange(first, LAYERS)
    shard: Any = load_shard(folder, "torch", layers)
    step = trial_step(spec, layers, "fp32", shard._model, last=True)
    assert step(1) is not None
    step(64)


# --- as they are published --------------------------------------------------------------------------------------------


@each_backend
def test_granite_in_its_publishers_words(checkpoint: Checkpoints, tmp_path: Path, backend: str) -> None:
    plain = checkpoint("granite4-experts")
    words = {
        "layer_types": ["mamba", "attention"] * 2,
        "position_embedding_type": "nope",
        "mamba_d_head": "auto",
        "normalization_function": "rmsnorm",
        "rope_scaling": None,
        "rope_theta": 10000,
    }
    folder = _said_otherwise(plain, tmp_path / "published", words, ("time_step_limit", "rope_parameters"))
    assert_close(_chain(folder, backend).logits(row(1, 0, PROMPT)), reference_logits(plain, PROMPT))


@each_backend
@pytest.mark.parametrize("pattern", ["ME-*", ["M", "E", "-", "*"], ["mamba", "moe", "mlp", "attention"]])
def test_nemotron_in_its_publishers_words(
    checkpoint: Checkpoints, tmp_path: Path, backend: str, pattern: str | list[str]
) -> None:
    plain = checkpoint("nemotron_h-latent")
    words = {"hybrid_override_pattern": pattern, "time_step_limit": [0.0, float("inf")], "norm_eps": 1e-5}
    folder = _said_otherwise(plain, tmp_path / "published", words, ("layers_block_type",))
    assert layer_count(json.loads((folder / "config.json").read_text())) == LAYERS
    assert_close(_chain(folder, backend).logits(row(1, 0, PROMPT)), reference_logits(plain, PROMPT))


def _chain(folder: Path, backend: str) -> Chain:
    return Chain([load_shard(folder, backend, LayerRange(*cut)) for cut in ((0, 2), (2, LAYERS))])


def _said_otherwise(plain: Path, folder: Path, words: dict[str, Any], without: tuple[str, ...]) -> Path:
    folder.mkdir()
    config = json.loads((plain / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in without}
    (folder / "config.json").write_text(json.dumps(kept | words))
    (folder / "model.safetensors").write_bytes((plain / "model.safetensors").read_bytes())
    return folder


def test_a_plan_knows_that_most_layers_keep_nothing(checkpoint: Checkpoints) -> None:
    spec = read_spec(checkpoint("nemotron_h-experts"))
    without = replace(spec, states=(spec.states[1], spec.states[2]))
    whole = spec.cache_size(LayerRange(0, LAYERS), "bf16")
    assert whole == CacheSize.of(without.states, "bf16", whole.per_sequence)


@pytest.mark.parametrize(("name", "refused"), [("nemotron_h", False), ("nemotron_h-experts", True)])
def test_mlx_refuses_half_precision_on_a_cpu_only_where_a_layer_has_experts(
    checkpoint: Checkpoints, name: str, refused: bool
) -> None:
    pytest.importorskip("mlx.core")
    from backends.on_mlx.config import refuse_dtype

    folder = checkpoint(name)
    with pytest.raises(UnsupportedModel, match="only in fp32") if refused else nullcontext():
        refuse_dtype(read_config(folder), read_spec(folder), "bf16", "cpu")


@each_backend
def test_parts_of_a_matrix_that_are_packed_otherwise(tmp_path: Path, backend: str) -> None:
    """mlx-lm's gate and up, which are one matrix in the published files."""
    pytest.importorskip("mlx.core")
    from tests.support.mlx_folders import FORMS, make_plain, write_judge, write_mlx

    plain = make_plain(tmp_path / "plain", "granite4")
    folder = write_mlx(plain, tmp_path / "mlx", FORMS["mixed"])
    judge = write_judge(folder, plain, tmp_path / "judge")
    packings = {
        path: found.packing for path, found in needed_tensors(folder, LayerRange(0, 1), tmp_path).packed.items()
    }
    assert len({packings[f"model.layers.0.mlp.{part}_proj.weight"] for part in ("gate", "up")}) == 2
    assert_close(_chain(folder, backend).logits(row(1, 0, PROMPT)), reference_logits(judge, PROMPT))


def test_workspace_counts_what_a_recurrent_layer_projects_to(tmp_path: Path) -> None:
    keys = "intermediate_size", "moe_intermediate_size", "moe_shared_expert_intermediate_size"
    narrow: dict[str, Any] = dict.fromkeys(keys, 48)
    spec = read_spec(make_checkpoint(tmp_path, "nemotron_h", **narrow))
    assert spec.inner_size == 6 * 16 + 6 * 16 + 2 * 2 * 20
