"""What is particular to the MLX backend; that it computes what transformers computes is test_conformance's business."""

# ruff: noqa: E402  (the backend can be imported only where MLX exists)

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")

from backends.base import LoadRequest
from backends.layer_caches import REWIND
from backends.on_mlx import backend
from backends.on_mlx.shard import MlxLayerCache, MlxShard
from tests.backends.conftest import Checkpoints
from tests.support.chain import GREEDY, Chain, assert_close, new_sequence, row
from tests.support.families import (
    LAYERS,
    VOCAB,
    WINDOW,
    make_checkpoint,
    prompt_ids,
    reference_greedy,
    reference_logits,
)
from tests.support.patience import PATIENCE
from together.errors import (
    BadPlan,
    BadSetting,
    BrokenModel,
    FrameRefused,
    NotEnoughMemory,
    TogetherError,
    UnsupportedModel,
)
from together.models.spec import read_spec
from together.planning.memory import workspace_bytes
from together.types import BLOCK, Activation, Batch, Dtype, Fork, LayerRange, Orders, Row, SampleRequest

DEVICE = backend.probe()[0].name
WHOLE, FIRST, LAST = LayerRange(0, LAYERS), LayerRange(0, 2), LayerRange(2, LAYERS)
PROMPT = prompt_ids(20)
Load = Callable[..., MlxShard]


@pytest.fixture
def load(checkpoint: Checkpoints) -> Iterator[Load]:
    """`load(name or folder, layers)` → a shard of this test alone."""
    shards: list[MlxShard] = []

    def make(
        model: str | Path, layers: LayerRange = WHOLE, dtype: Dtype = "fp32", memory: int = 128 * 2**20
    ) -> MlxShard:
        folder = checkpoint(model) if isinstance(model, str) else model
        shards.append(backend.load(LoadRequest(folder, layers, DEVICE, dtype, memory, folder.parent)))
        return shards[-1]

    yield make
    for shard in shards:
        shard.close()


def edited(folder: Path, target: Path, **changes: Any) -> Path:
    """A copy of a checkpoint with other settings in its config.json."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (target / "config.json").write_text(json.dumps(config))
    return target


# --- importing and threads --------------------------------------------------------------------------------------------


def test_loading_imports_neither_torch_nor_transformers(checkpoint: Checkpoints) -> None:
    script = f"""
import sys
from pathlib import Path
from backends.on_mlx import backend
from backends.base import LoadRequest
from together.types import LayerRange
folder = Path({str(checkpoint("gemma3_text"))!r})
backend.load(LoadRequest(folder, LayerRange(1, 3), {DEVICE!r}, "fp32", 2**27, folder.parent))
print(sorted({{"torch", "transformers", "mlx_lm"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout.strip() == "[]"


def test_a_worker_thread_loads_steps_and_closes(checkpoint: Checkpoints) -> None:
    folder = checkpoint("qwen3_moe")

    def serve() -> list[int]:
        shard = backend.load(LoadRequest(folder, WHOLE, DEVICE, "fp32", 2**27, folder.parent))
        first = shard.step(Batch((row(1, 0, PROMPT, "last"),)), None).results[0].sampled[0].token_id
        fork = Orders(forks=(Fork(1, 2, 20),))
        second = shard.step(Batch((row(1, 20, [first], "last"), row(2, 20, [first], "last")), fork), None).results
        shard.close()
        return [first, *(result.sampled[0].token_id for result in second)]

    wanted = reference_greedy(folder, PROMPT, 2)
    with ThreadPoolExecutor(1) as here, ThreadPoolExecutor(1) as there:
        for future in (here.submit(serve), there.submit(serve)):
            assert future.result(60) == [*wanted, wanted[1]]


# --- loading ----------------------------------------------------------------------------------------------------------


def test_only_the_ranges_tensors_take_memory(checkpoint: Checkpoints) -> None:
    folder = checkpoint("qwen3_moe")
    spec = read_spec(folder)
    for layers in (LayerRange(0, 1), LayerRange(1, 3), LayerRange(3, 4)):
        before = mx.get_active_memory()
        shard = backend.load(LoadRequest(folder, layers, DEVICE, "fp32", 2**27, folder.parent))
        took = mx.get_active_memory() - before
        assert 1.0 <= took / spec.stage_bytes(layers, "fp32") < 1.1
        shard.close()
        assert mx.get_active_memory() - before < 10_000


def test_progress_rises_to_one(checkpoint: Checkpoints) -> None:
    seen: list[float] = []
    backend.load(
        LoadRequest(checkpoint("llama"), FIRST, DEVICE, "fp32", 2**27, checkpoint("llama").parent, seen.append)
    ).close()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_what_the_weights_leave_is_capacity_in_whole_blocks(load: Load, checkpoint: Checkpoints) -> None:
    spec = read_spec(checkpoint("llama"))
    block_bytes = spec.kv_bytes_per_token(FIRST, "fp32") * BLOCK
    memory = spec.stage_bytes(FIRST, "fp32") + workspace_bytes(spec) + 2 * block_bytes
    shard = load("llama", FIRST, memory=memory + block_bytes // 2)
    assert (shard.capacity, shard.block, shard.rewind) == (2 * BLOCK, BLOCK, None)
    taken = shard.step(Batch((row(1, 0, [5] * BLOCK, "none"), row(2, 0, [5], "none"), row(3, 0, [5], "none"))), None)
    assert [(result.sequence, "full" in (result.refusal or "")) for result in taken.results] == [(3, True)]
    with pytest.raises(NotEnoughMemory, match=r"needs .* here"):
        load("llama", FIRST, memory=memory - 2 * block_bytes)


LLAMA_REFUSED = {
    "dynamic RoPE": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    "longrope": {"rope_scaling": {"type": "longrope", "factor": 2.0}, "rope_parameters": None, "rope_theta": 1e4},
    "partial RoPE": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "attention_factor": {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.5}},
    "activation": {"hidden_act": "relu"},
    "quantized": {"quantization_config": {"quant_method": "hqq"}},
    "biases that are not there": {"attention_bias": True},
    "a head_dim that does not fit": {"head_dim": 16},
    "a family": {"model_type": "gpt2"},
}


@pytest.mark.parametrize("changes", LLAMA_REFUSED.values(), ids=LLAMA_REFUSED.keys())
def test_what_mlx_would_compute_wrongly_is_refused(
    load: Load, checkpoint: Checkpoints, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises((UnsupportedModel, BrokenModel)):
        load(edited(checkpoint("llama"), tmp_path / "model", **changes))


def test_softcapping_of_scores_is_refused(load: Load, checkpoint: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="attn_logit_softcapping"):
        load(edited(checkpoint("gemma3_text"), tmp_path / "model", attn_logit_softcapping=30.0))


def test_softcapping_of_logits(load: Load, checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = edited(checkpoint("gemma3_text"), tmp_path / "model", final_logit_softcapping=1.5)
    found = Chain([load(folder)]).logits(row(new_sequence(), 0, PROMPT))
    assert_close(found, reference_logits(folder, PROMPT))


@pytest.mark.skipif(DEVICE != "cpu", reason="MLX's GPUs run experts in every dtype")
def test_experts_in_bf16_are_refused_on_a_cpu(load: Load) -> None:
    with pytest.raises(UnsupportedModel, match="only in fp32"):
        load("qwen3_moe", dtype="bf16")


def test_plans_and_devices_that_do_not_fit(load: Load, checkpoint: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(BadPlan, match="4 layers"):
        load("llama", LayerRange(2, 5))
    with pytest.raises(BadSetting, match="no device 'npu'"):
        backend.load(LoadRequest(checkpoint("llama"), WHOLE, "npu", "fp32", 2**27, checkpoint("llama").parent))
    with pytest.raises(BrokenModel):
        load(tmp_path)


# --- computing --------------------------------------------------------------------------------------------------------

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_yarn(load: Load, tmp_path: Path, family: str) -> None:
    """mlx-lm's own Qwen3-MoE ignores every RoPE scaling."""
    folder = make_checkpoint(tmp_path, family, rope_parameters=YARN)
    assert_close(load(folder).logits(Batch((row(1, 0, PROMPT),)), None), reference_logits(folder, PROMPT))


def test_positions_far_out(load: Load, checkpoint: Checkpoints) -> None:
    """`mx.fast.rope` with a base is off by 4e-5 at position 1,000."""
    prompt = prompt_ids(1500)
    shard = load("mistral")
    shard.step(Batch((row(1, 0, prompt[:-8], "none"),)), None)
    found = shard.logits(Batch((row(1, len(prompt) - 8, prompt[-8:]),)), None)
    assert_close(found, reference_logits(checkpoint("mistral"), prompt)[-8:])


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_half_precision(load: Load, checkpoint: Checkpoints, name: str, dtype: Dtype) -> None:
    first, last = load(name, FIRST, dtype), load(name, LAST, dtype)
    batch = Batch((row(1, 0, PROMPT),))
    hidden = first.step(batch, None).activation
    assert hidden is not None
    assert (hidden.dtype, hidden.tokens, len(hidden.data)) == (dtype, 20, 20 * 48 * 2)
    assert_close(last.logits(batch, hidden), reference_logits(checkpoint(name), PROMPT), bound=0.1)


def test_sliding_layers_forget_but_can_go_back(load: Load, checkpoint: Checkpoints) -> None:
    shard, prompt, bound = load("gemma3_text"), prompt_ids(1400), WINDOW + REWIND + 3 * BLOCK
    wanted = reference_logits(checkpoint("gemma3_text"), prompt)
    assert shard.rewind == REWIND
    for start in range(0, 1400, 100):
        shard.step(Batch((row(1, start, prompt[start : start + 100], "none"),)), None)
    rooms = [cache.room for cache in shard._caches.sequences[1] if isinstance(cache, MlxLayerCache)]
    assert [room <= bound for room in rooms] == [True, True, False, True]
    found = shard.logits(Batch((row(1, 1400 - REWIND, prompt[1400 - REWIND :]),)), None)
    assert_close(found, wanted[1400 - REWIND :])
    (refused,) = shard.step(Batch((row(1, 1400 - REWIND - 1, prompt[:1]),)), None).results
    assert refused.refusal is not None
    fork = Orders(forks=(Fork(1, 2, 1300),))
    assert_close(shard.logits(Batch((row(2, 1300, prompt[1300:]),), fork), None), wanted[1300:])


@pytest.mark.parametrize("chunk", [1, 3, 100, 700])
def test_a_sliding_layer_keeps_what_its_rewind_needs(chunk: int) -> None:
    """At every length, also right after it has forgotten; keys are their own positions here."""
    nothing = mx.zeros((1, 1, 0, 4))
    cache = MlxLayerCache(WINDOW, nothing, nothing)
    for position in range(0, 2100, chunk):
        keys = mx.broadcast_to(mx.arange(position, position + chunk, dtype=mx.float32)[:, None], (1, 1, chunk, 4))
        cache.attend(keys, keys, keys, position, 1.0)
        mx.eval(cache.keys, cache.values)
        kept = max(0, position - REWIND - WINDOW + 1)
        assert cache.start <= kept
        assert cache.keys[0, 0, kept - cache.start, 0].item() == kept
        assert cache.room <= WINDOW + REWIND + chunk + 2 * BLOCK


def test_truncation_and_drop_give_memory_back(load: Load) -> None:
    shard = load("llama")
    before = mx.get_active_memory()
    shard.step(Batch((row(1, 0, [7] * 1000, "none"),)), None)
    full = mx.get_active_memory() - before
    shard.step(Batch((row(1, 10, [7], "none"),)), None)
    assert mx.get_active_memory() - before < full / 3
    shard.step(Batch(orders=Orders(drops=(1,))), None)
    assert mx.get_active_memory() - before < full / 100


def test_a_sequence_named_twice_is_refused(load: Load) -> None:
    shard, asked = load("llama"), row(1, 0, PROMPT, "last")
    with pytest.raises(FrameRefused, match="two rows"):
        shard.step(Batch((asked, asked, row(2, 0, PROMPT, "last"))), None)


# --- frames that do not fit, and failures -----------------------------------------------------------------------------


def states(values: Any, dtype: Dtype = "fp32", width: int = 48) -> Activation:
    data = np.asarray(values).tobytes()
    return Activation(dtype, len(data) // width // (4 if dtype == "fp32" else 2), width, data)


NAN_IN_BF16 = np.full((20, 48), 0x7FC0, np.uint16)
REFUSED = {
    "nothing": None,
    "fewer tokens": states(np.ones((19, 48), np.float32)),
    "wider": states(np.ones((20, 96), np.float32), width=96),
    "other dtype": states(np.ones((20, 48), np.uint16), "bf16"),
    "not a number": states(np.full((20, 48), np.nan, np.float32)),
    "infinite": states(np.full((20, 48), -np.inf, np.float32)),
}


@pytest.mark.parametrize("hidden", REFUSED.values(), ids=REFUSED.keys())
def test_hidden_states_that_do_not_fit_are_refused(load: Load, hidden: Activation | None) -> None:
    shard = load("llama", LayerRange(1, 2))
    batch = Batch((row(1, 0, PROMPT),), Orders(drops=(1,)))
    good = states(np.ones((20, 48), np.float32))
    shard.step(batch, good)
    with pytest.raises(FrameRefused):
        shard.step(batch, hidden)
    assert shard.step(Batch((row(1, 20, PROMPT),)), good).results == ()  # not even the frame's orders were obeyed


def test_half_precision_that_is_no_number_is_refused(load: Load) -> None:
    shard = load("llama", LayerRange(1, 2), "bf16")
    with pytest.raises(FrameRefused, match="no numbers"):
        shard.step(Batch((row(1, 0, PROMPT),)), states(NAN_IN_BF16, "bf16"))


@pytest.mark.parametrize(
    "bad",
    [
        row(1, 0, [3, VOCAB]),
        row(1, 0, [-1]),
        Row(1, 0, (3, 4), SampleRequest((2,), GREEDY, 2)),
        Row(1, 0, (3, 4), SampleRequest((-1,), GREEDY, 2)),
    ],
)
def test_rows_that_do_not_fit_are_refused(load: Load, bad: Row) -> None:
    with pytest.raises(FrameRefused, match="sequence 1"):
        load("llama").step(Batch((bad,)), None)


def test_the_first_stage_takes_no_hidden_states(load: Load) -> None:
    with pytest.raises(FrameRefused):
        load("llama", FIRST).step(Batch((row(1, 0, PROMPT),)), states(np.ones((20, 48), np.float32)))


def test_frames_without_rows(load: Load) -> None:
    first, inner, last = load("llama", LayerRange(0, 1)), load("llama", LayerRange(1, 2)), load("llama", LAST)
    nothing = first.step(Batch(), None).activation
    assert nothing == Activation("fp32", 0, 48, b"")
    assert inner.step(Batch(), nothing).activation == nothing
    assert last.step(Batch(), nothing).results == ()


def test_a_draw_that_is_refused_leaves_nothing_behind(load: Load, checkpoint: Checkpoints) -> None:
    shard, new = load("llama"), new_sequence()
    shard.step(Batch((row(1, 0, PROMPT[:10], "none"),)), None)
    used = shard._ledger.used
    asked = row(1, 10, PROMPT[10:], "last")
    assert asked.sample is not None
    bad = replace(asked, sample=replace(asked.sample, allowed=bytes(VOCAB // 8)))
    with pytest.raises(TogetherError):
        shard.step(Batch((bad, row(new, 0, PROMPT))), None)
    (result,) = shard.step(Batch((asked,)), None).results
    assert [item.token_id for item in result.sampled] == list(reference_greedy(checkpoint("llama"), PROMPT, 1))
    assert shard._ledger.used == used


# --- measuring --------------------------------------------------------------------------------------------------------


def test_probe_and_measure(checkpoint: Checkpoints, tmp_path: Path) -> None:
    (device,) = backend.probe()
    assert 0 < device.free_bytes <= device.total_bytes
    (tmp_path / "config.json").write_bytes((checkpoint("gemma3_text") / "config.json").read_bytes())
    found = backend.measure(tmp_path, device.name, "fp32")
    assert found.ms_per_layer > 0
    assert found.ms_per_stage >= 0
    assert min(found.memory_bytes_per_s, found.matrix_flops_per_s) > 0
