"""Layers with a recurrent state: steps that fail, files of other makers, and what a sequence counts for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from backends.base import LoadRequest, cache_capacity
from backends.on_torch.recurrent import next_state
from backends.on_torch.trial import trial_step
from tests.backends.conftest import Checkpoints
from tests.support.chain import Chain, assert_close, load_shard, row
from tests.support.families import LAYERS, make_checkpoint, prompt_ids, reference_logits
from together.errors import NotEnoughMemory
from together.models.spec import read_spec
from together.models.state import (
    MOST_PER_SEQUENCE,
    CacheSize,
    KeysValues,
    LayerState,
    Recurrent,
    cache_bytes,
    sequence_tokens,
)
from together.planning.held import held_bytes
from together.planning.memory import stage_memory, workspace_bytes
from together.types import BLOCK, Batch, LayerRange

BACKENDS = ("torch", "mlx") if find_spec("mlx") else ("torch",)
EACH = tuple(pairwise(range(LAYERS + 1)))  # a stage for each layer: some have no recurrent one
PROMPT = prompt_ids(24)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def stages(folder: Path, backend: str) -> Chain:
    return Chain([load_shard(folder, backend, LayerRange(*cut)) for cut in EACH])


@each_backend
@pytest.mark.parametrize("name", ["qwen3_5", "granite4", "nemotron_h"])
def test_a_step_that_fails_leaves_nothing_behind(
    checkpoint: Checkpoints, name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails behind the last layer, when all of them have written."""
    folder = checkpoint(name)
    shard: Any = load_shard(folder, backend, LayerRange(0, LAYERS))
    ring = Chain([shard])
    ring.logits(row(1, 0, PROMPT[:10]))
    with monkeypatch.context() as patched:
        patched.setattr(shard, "_logits", _fail)
        with pytest.raises(RuntimeError, match="broke"):
            shard.logits(Batch((row(1, 10, PROMPT[3:9]), row(2, 0, PROMPT[:5]))), None)
    found = ring.logits(row(1, 10, PROMPT[10:]), row(2, 0, PROMPT))
    wanted = reference_logits(folder, PROMPT)
    assert_close(found, np.concatenate((wanted[10:], wanted)))


def _fail(*_: object) -> None:
    raise RuntimeError("it broke")


@each_backend
def test_experts_in_one_tensor(checkpoint: Checkpoints, tmp_path: Path, backend: str) -> None:
    """As Qwen3.5's are published; transformers saves them one by one."""
    folder = _rewritten(checkpoint("qwen3_5_moe"), tmp_path / "fused", _fused)
    found = stages(folder, backend).logits(row(1, 0, PROMPT))
    assert_close(found, reference_logits(checkpoint("qwen3_5_moe"), PROMPT))


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_range_without_a_convolution_of_mlx_lms_files(
    checkpoint: Checkpoints, tmp_path: Path, backend: str, dtype: torch.dtype
) -> None:
    """Its norms are one larger there, and only other layers show that."""
    folder = _rewritten(checkpoint("qwen3_5"), tmp_path / "mlx", lambda found: _in(dtype, _as_mlx_has_them(found)))
    judge = _rewritten(folder, tmp_path / "judge", lambda found: _in(dtype, _as_published(found)))
    assert_close(stages(folder, backend).logits(row(1, 0, PROMPT)), reference_logits(judge, PROMPT))


@pytest.mark.parametrize("groups", [1, 2])
def test_the_rule_for_one_token_is_transformers(groups: int) -> None:
    rule = import_module("transformers.models.qwen3_5.modeling_qwen3_5").torch_recurrent_gated_delta_rule
    torch.manual_seed(groups)
    query, key = torch.randn(2, 1, 1, 3, 16)
    value, state = torch.randn(1, 1, 3 * groups, 24), torch.randn(1, 3 * groups, 16, 24)
    decay, beta = -torch.rand(1, 1, 3 * groups), torch.rand(1, 1, 3 * groups)
    asked = {"g": decay, "beta": beta, "initial_state": state, "output_final_state": True}
    wanted, after = rule(query, key, value, use_qk_l2norm_in_kernel=True, **asked)
    found = next_state(query[0, 0], key[0, 0], value[0, 0], decay[0, 0], beta[0, 0], state[0])
    torch.testing.assert_close(found[0], wanted[0, 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1], after[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_real_widths_in_the_way_that_is_fast(tmp_path: Path, dtype: torch.dtype) -> None:
    """Loops of our own take norms of these widths, but not those with a gate."""
    folder = make_checkpoint(
        tmp_path / "wide",
        "qwen3_5",
        "fp32" if dtype == torch.float32 else "bf16",
        hidden_size=64,
        head_dim=64,
        linear_value_head_dim=64,
        linear_key_head_dim=32,
    )
    ring = Chain([load_shard(folder, "torch", LayerRange(0, LAYERS), "fp32" if dtype == torch.float32 else "bf16")])
    found = np.concatenate((ring.logits(row(1, 0, PROMPT[:-1])), ring.logits(row(1, len(PROMPT) - 1, PROMPT[-1:]))))
    assert_close(found, reference_logits(folder, PROMPT), bound=1e-5 if dtype == torch.float32 else 0.05)


@each_backend
def test_as_published_with_a_vision_tower_and_a_draft_layer(
    checkpoint: Checkpoints, tmp_path: Path, backend: str
) -> None:
    """Qwen3.5's hub originals: the text model is wrapped, and neither of the others is read."""
    plain = checkpoint("qwen3_5")
    folder = _rewritten(plain, tmp_path / "published", _wrapped)
    config = json.loads((plain / "config.json").read_text(encoding="utf-8"))
    config.pop("architectures")
    rope = config["rope_parameters"] | {"mrope_interleaved": True, "mrope_section": [2, 1, 1]}
    text = config | {"rope_parameters": rope, "mtp_num_hidden_layers": 1, "full_attention_interval": 2}
    outer = {"model_type": "qwen3_5", "architectures": ["Qwen3_5ForConditionalGeneration"], "text_config": text}
    (folder / "config.json").write_text(json.dumps(outer | {"vision_config": {"depth": 2}}), encoding="utf-8")
    assert_close(stages(folder, backend).logits(row(1, 0, PROMPT)), reference_logits(plain, PROMPT))
    assert read_spec(folder).fingerprint != read_spec(plain).fingerprint


Tensors = dict[str, torch.Tensor]


def _wrapped(tensors: Tensors) -> Tensors:
    found = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in tensors.items()}
    draft = {name.replace("model.layers.1.", "mtp.layers.0."): tensor for name, tensor in tensors.items()}
    found |= {name: tensor + 1 for name, tensor in draft.items() if name.startswith("mtp.")}
    found |= {"mtp.norm.weight": torch.ones(48), "mtp.fc.weight": torch.ones(48, 96)}
    vision = {"blocks.0.norm1.weight": torch.ones(8), "patch_embed.weight": torch.ones(8, 3)}
    return found | {f"model.visual.{name}": tensor for name, tensor in vision.items()}


def _rewritten(source: Path, target: Path, change: Callable[[Tensors], Tensors]) -> Path:
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = {name: tensor.contiguous() for name, tensor in change(load_file(source / "model.safetensors")).items()}
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def _fused(tensors: Tensors) -> Tensors:
    found = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for path in {name.partition(".experts.")[0] for name in tensors if ".experts." in name}:
        count = sum(name.startswith(f"{path}.experts.") for name in tensors) // 3
        gate, up, down = (
            torch.stack([tensors[f"{path}.experts.{i}.{part}_proj.weight"] for i in range(count)])
            for part in ("gate", "up", "down")
        )
        found |= {f"{path}.experts.gate_up_proj": torch.cat((gate, up), dim=1), f"{path}.experts.down_proj": down}
    return found


def _in(dtype: torch.dtype, tensors: Tensors) -> Tensors:
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def _as_mlx_has_them(tensors: Tensors) -> Tensors:
    return {name: _turned(name, tensor, 1) for name, tensor in tensors.items()}


def _as_published(tensors: Tensors) -> Tensors:
    return {name: _turned(name, tensor, -1) for name, tensor in tensors.items()}


def _turned(name: str, tensor: torch.Tensor, more: int) -> torch.Tensor:
    if name.endswith("conv1d.weight"):
        return tensor.movedim(2, 1)
    return tensor.float() + more if name.endswith("norm.weight") and ".linear_attn." not in name else tensor


# --- what a sequence counts for ---------------------------------------------------------------------------------------

STATE = Recurrent(heads=4, key_dim=16, value_dim=24, channels=160, tail=3)
CACHE = KeysValues(heads=2, key_dim=32, value_dim=32)


def test_states_are_worth_tokens() -> None:
    """Twice, because a step that fails leaves behind what was there before it."""
    fixed = 2 * (4 * 16 * 24 * 4 + 160 * 3 * 2)
    assert STATE.sequence_bytes("bf16") == fixed
    whole = (STATE, STATE, CACHE)
    own = sequence_tokens(whole, "bf16")
    assert own % BLOCK == 0
    assert 0 <= own * 256 - 2 * fixed < BLOCK * 256
    assert CacheSize.of(whole, "bf16", own) == CacheSize(256, own)
    assert sequence_tokens((CACHE,) * 3, "bf16") == 0
    assert CacheSize.of((CACHE,), "bf16", 0) == CacheSize(256, 0)


@pytest.mark.parametrize("states", [(STATE,), (STATE, STATE), (CACHE,), (STATE, CACHE, STATE)])
def test_every_stage_of_a_ring_counts_alike(states: tuple[LayerState, ...]) -> None:
    """Those that keep nothing by the token count tokens all the same, each worth more: or the ring's least would do."""
    own = sequence_tokens((STATE, STATE, STATE, CACHE) * 2, "bf16")
    size = CacheSize.of(states, "bf16", own)
    assert size.per_sequence == own
    assert size.token_bytes >= sum(state.per_token for state in states) * 2
    assert size.nbytes(0, 1) >= sum(state.sequence_bytes("bf16") for state in states)


def test_a_model_without_keys_and_values_counts_at_most_so_many() -> None:
    assert sequence_tokens((STATE,) * 4, "bf16") == MOST_PER_SEQUENCE


def test_no_range_of_layers_is_worth_more_than_the_planner_counts() -> None:
    states = (STATE, STATE, STATE, CACHE) * 2
    caches, own = cache_bytes(states, "bf16"), sequence_tokens(states, "bf16")
    for start in range(len(states)):
        for stop in range(start + 1, len(states) + 1):
            size, counted = CacheSize.of(states[start:stop], "bf16", own), caches[start:stop]
            assert size.nbytes(1024, 2) <= sum(1024 * token + 2 * sequence for token, sequence in counted)


def test_a_stage_admits_as_many_sequences_as_its_memory_holds(checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder, whole = checkpoint("qwen3_5"), LayerRange(0, LAYERS)
    spec = read_spec(folder)
    size = spec.cache_size(whole, "fp32")
    fixed = held_bytes(spec.stage_weights(whole), "fp32", "torch") + workspace_bytes(spec)
    request = LoadRequest(folder, whole, "cpu", "fp32", fixed + size.nbytes(2 * BLOCK, 2), tmp_path)
    capacity = cache_capacity(spec, request, "torch")
    assert capacity == 2 * (BLOCK + size.per_sequence)
    with pytest.raises(NotEnoughMemory, match="needs"):
        cache_capacity(spec, replace(request, memory_bytes=fixed + size.nbytes(BLOCK, 1) - 1), "torch")
    shard = load_shard(folder, "torch", whole, memory=request.memory_bytes)
    assert (shard.capacity, shard.per_sequence, shard.rewind) == (capacity, size.per_sequence, 0)
    ring = Chain([shard])
    most = capacity // (size.per_sequence + shard.block)
    results = ring.results(Batch(tuple(row(sequence, 0, PROMPT[:3], "last") for sequence in range(most + 1))))
    refused = [result.sequence for result in results if result.refusal and "full" in result.refusal]
    assert refused == [most]


@pytest.mark.parametrize("cut", range(1, LAYERS))
def test_whatever_the_cut_a_ring_holds_what_it_was_planned_for(
    checkpoint: Checkpoints, tmp_path: Path, cut: int
) -> None:
    """A stage may have recurrent layers alone, or none; the ring admits by its least capacity."""
    folder, users, context = checkpoint("qwen3_5"), 3, 4 * BLOCK
    spec = read_spec(folder)
    own = sequence_tokens(spec.states, "fp32")
    for layers in (LayerRange(0, cut), LayerRange(cut, LAYERS)):
        granted = stage_memory(spec, layers, "fp32", context, users, "torch")
        request = LoadRequest(folder, layers, "cpu", "fp32", granted, tmp_path)
        assert cache_capacity(spec, request, "torch") >= users * (context + 2 * own)
        assert spec.cache_size(layers, "fp32").per_sequence == own


@pytest.mark.parametrize("last", [False, True])
def test_a_trial_of_threads_has_room_for_states(tmp_path: Path, last: bool) -> None:
    """Of these widths a state is worth more tokens than a trial's: a refused row would take no time at all."""
    shape: dict[str, Any] = {"linear_num_value_heads": 16, "linear_key_head_dim": 64, "linear_value_head_dim": 64}
    folder = make_checkpoint(tmp_path / "wide", "qwen3_5", **shape)
    spec, whole = read_spec(folder), LayerRange(0, LAYERS)
    assert sequence_tokens(spec.states, "fp32") > 512
    shard: Any = load_shard(folder, "torch", whole)
    step = trial_step(spec, whole, "fp32", shard._model, last=last)
    assert (step(1) is not None) == last
    step(64)
