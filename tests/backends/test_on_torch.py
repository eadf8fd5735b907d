"""What the torch backend promises beside exactness: refusals, memory, sliding windows, own tensors only."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from backends.base import LoadRequest, devices_at_sight
from backends.layer_caches import REWIND
from backends.on_torch import backend
from backends.on_torch.half import widened
from tests.backends.conftest import Chains, Checkpoints
from tests.support.chain import GREEDY, MEMORY, Chain, activation_of, assert_close, load_shard, new_sequence, row
from tests.support.families import (
    HIDDEN,
    LAYERS,
    VOCAB,
    make_checkpoint,
    prompt_ids,
    reference_logits,
    reference_model,
)
from together.errors import BadPlan, BadSetting, BrokenModel, FrameRefused, NotEnoughMemory, UnsupportedModel
from together.models.reading import all_tensors, tensors_for
from together.models.spec import read_spec
from together.planning.memory import workspace_bytes
from together.types import (
    BLOCK,
    Activation,
    Batch,
    Continuation,
    Dtype,
    Fork,
    LayerRange,
    NamedTensor,
    Orders,
    Row,
    SampleRequest,
    Sampling,
)

PROMPT = prompt_ids(24)
WHOLE = LayerRange(0, LAYERS)
DTYPES: tuple[tuple[Dtype, Dtype], ...] = (("bf16", "bf16"), ("bf16", "fp32"), ("fp32", "bf16"), ("fp16", "fp32"))
BOTH = ("torch", "torch")


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        (row(1, 0, (5, VOCAB)),),
        (row(1, 0, (5, -1)),),
        (Row(1, 0, ()),),
        (Row(1, -1, (5,)),),
        (Row(1, 0, (5,), SampleRequest((1,), GREEDY, 1)),),
        (Row(1, 0, (5,), SampleRequest((), GREEDY, 1, score=(Continuation(1, 5),))),),
        (Row(1, 0, (5,), SampleRequest((), GREEDY, 1, score=(Continuation(0, VOCAB),))),),
        (Row(1, 0, (5,), positions=((0,), (0,), (0,))),),
        (Row(1, 0, (5,), adapter="poet"),),
        (row(1, 0, (5,)), row(1, 1, (6,))),
    ],
)
def test_rows_that_no_shard_can_run_refuse_the_frame(chain: Chains, bad: tuple[Row, ...]) -> None:
    with pytest.raises(FrameRefused):
        chain("llama", ("torch",)).results(Batch(bad))


def _changed(good: Activation, what: str) -> Activation | None:
    values = np.frombuffer(good.data, np.float32).copy()
    values[7] = np.nan if what == "nan" else np.inf
    return {
        "missing": None,
        "nan": replace(good, data=values.tobytes()),
        "infinite": replace(good, data=values.tobytes()),
        "dtype": Activation("bf16", good.tokens, good.width, bytes(good.nbytes // 2)),
        "width": Activation("fp32", good.tokens, good.width * 2, bytes(good.nbytes * 2)),
        "tokens": Activation("fp32", good.tokens - 1, good.width, bytes(good.nbytes - 4 * good.width)),
        "others": replace(good, others=(NamedTensor("deep", "fp32", 1, bytes(4 * good.tokens)),)),
    }[what]


@pytest.mark.parametrize("what", ["missing", "nan", "infinite", "dtype", "width", "tokens", "others"])
def test_hidden_states_that_do_not_fit_are_refused_and_leave_nothing_behind(chain: Chains, what: str) -> None:
    first, last = chain("qwen3", BOTH, (2,)).shards
    asked = row(new_sequence(), 0, PROMPT)
    good = activation_of(first, asked)
    with pytest.raises(FrameRefused):
        last.step(Batch((asked,)), _changed(good, what))
    assert last.step(Batch((asked,)), good).results[0].refusal is None


def test_a_first_stage_takes_no_hidden_states(chain: Chains) -> None:
    states = Activation("fp32", 1, HIDDEN, bytes(4 * HIDDEN))
    with pytest.raises(FrameRefused):
        chain("llama", ("torch",)).shards[0].step(Batch((row(new_sequence(), 0, (5,)),)), states)


def test_a_step_that_fails_at_its_very_end_leaves_nothing_behind(chain: Chains, checkpoint: Checkpoints) -> None:
    """The sampler refuses the mask when all layers have run: the same sequence goes on as if nothing had been."""
    ring, old, new = chain("gemma3_text", BOTH, (2,)), new_sequence(), new_sequence()
    ring.logits(row(old, 0, PROMPT[:10]))
    broken = SampleRequest((0,), Sampling(temperature=0.0), 1, allowed=bytes(VOCAB // 8))  # nothing may be drawn
    with pytest.raises(FrameRefused):
        ring.results(Batch((replace(row(old, 10, PROMPT[10:12]), sample=broken), row(new, 0, PROMPT))))
    results = ring.shards[-1].step(Batch((row(new, 1, PROMPT),)), Activation("fp32", 24, HIDDEN, bytes(96 * HIDDEN)))
    assert results.results[0].refusal is not None
    found = ring.logits(row(old, 10, PROMPT[10:]))
    assert_close(found, reference_logits(checkpoint("gemma3_text"), PROMPT)[10:])


def test_unusable_weights_say_so(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Overflowing logits are an error of the stage, not a token."""
    folder = Path(shutil.copytree(checkpoint("llama"), tmp_path / "model"))
    _fill_with_nan(folder, {"lm_head.weight"})
    with pytest.raises(ValueError, match="finite"):
        Chain([load_shard(folder, "torch", WHOLE)]).sampled(row(1, 0, PROMPT))


# --- memory -----------------------------------------------------------------------------------------------------------


def test_capacity_is_what_the_weights_leave(checkpoint: Checkpoints) -> None:
    folder = checkpoint("llama")
    spec, layers = read_spec(folder), LayerRange(1, 3)
    fixed = spec.stage_bytes(layers, "fp32") + workspace_bytes(spec)
    block = BLOCK * spec.kv_bytes_per_token(layers, "fp32")
    assert load_shard(folder, "torch", layers, memory=fixed + 3 * block + 1).capacity == 3 * BLOCK
    with pytest.raises(NotEnoughMemory, match=r"needs [\d,]+ bytes here .* granted"):
        load_shard(folder, "torch", layers, memory=fixed + block - 1)


def test_a_full_cache_refuses_the_row_that_does_not_fit(checkpoint: Checkpoints) -> None:
    spec = read_spec(checkpoint("llama"))
    fixed = workspace_bytes(spec) + spec.stage_bytes(WHOLE, "fp32")
    memory = fixed + 2 * BLOCK * spec.kv_bytes_per_token(WHOLE, "fp32")
    ring = Chain([load_shard(checkpoint("llama"), "torch", WHOLE, memory=memory)])
    ring.sampled(row(1, 0, prompt_ids(BLOCK), "last"))
    results = ring.results(Batch((row(2, 0, prompt_ids(BLOCK + 1), "last"), row(3, 0, PROMPT, "last"))))
    assert [bool(result.refusal) for result in results] == [True, False]
    ring.sampled(row(2, 0, prompt_ids(BLOCK), "last"), orders=Orders(drops=(3,)))


_PEAK = """
import resource, sys
from pathlib import Path
import transformers.models.llama.modeling_llama
from backends.on_torch import backend, shard
from backends.base import LoadRequest, devices_at_sight
from together.types import LayerRange
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
folder = Path(sys.argv[1])
backend.load(LoadRequest(folder, LayerRange(1, 4), "cpu", "bf16", 1 << 30, folder.parent))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_loading_takes_no_more_than_the_weights(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama", "bf16", hidden_size=1024, intermediate_size=4096, head_dim=64)
    weights = read_spec(folder).stage_bytes(LayerRange(1, LAYERS), "bf16")
    assert weights > 70e6
    run = subprocess.run([sys.executable, "-c", _PEAK, str(folder)], capture_output=True, text=True, check=True)
    assert int(run.stdout) < weights + 40e6


# --- own tensors ------------------------------------------------------------------------------------------------------


def _fill_with_nan(folder: Path, names: set[str]) -> None:
    for tensor in all_tensors(folder):
        if tensor.name in names:
            with tensor.file.open("r+b") as stream:
                stream.seek(tensor.start)
                stream.write(np.full(tensor.elements, np.nan, np.float32).tobytes())


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gemma3_text", "qwen3_moe"])
def test_only_the_own_tensors_are_read(checkpoint: Checkpoints, tmp_path: Path, name: str) -> None:
    """With every other stage's tensors overwritten by NaN, each stage computes the same."""
    stages = []
    for layers in (LayerRange(0, 1), LayerRange(1, 3), LayerRange(3, LAYERS)):
        folder = Path(shutil.copytree(checkpoint(name), tmp_path / f"{layers.start}"))
        own = {tensor.name for tensor in tensors_for(folder, layers, LAYERS, folder.parent)}
        _fill_with_nan(folder, {tensor.name for tensor in all_tensors(folder)} - own)
        stages.append(load_shard(folder, "torch", layers))
    assert_close(Chain(stages).logits(row(1, 0, PROMPT)), reference_logits(checkpoint(name), PROMPT))


def test_loading_reports_how_far_it_is(checkpoint: Checkpoints) -> None:
    seen: list[float] = []
    backend.load(
        LoadRequest(
            checkpoint("qwen3_moe"),
            LayerRange(1, 3),
            "cpu",
            "fp32",
            MEMORY,
            checkpoint("qwen3_moe").parent,
            seen.append,
        )
    )
    assert seen == sorted(seen)
    assert len(seen) > 10
    assert seen[-1] == 1.0


# --- sliding windows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gemma3_text", "mistral-window"])
def test_long_sequences_slide_and_can_be_undone(chain: Chains, checkpoint: Checkpoints, name: str) -> None:
    """Far past window and rewind: chunks, decode, going back as far as promised, and a fork from there."""
    ring, sequence, ids = chain(name, BOTH, (1,)), new_sequence(), prompt_ids(3 * REWIND, seed=3)
    wanted = reference_logits(checkpoint(name), ids)
    for position in range(0, len(ids) - 8, 95):
        ring.results(Batch((row(sequence, position, ids[position : min(position + 95, len(ids) - 8)], "none"),)))
    for position in range(len(ids) - 8, len(ids)):
        here = slice(position, position + 1)
        assert_close(ring.logits(row(sequence, position, ids[here])), wanted[here])
    back = len(ids) - REWIND
    assert_close(ring.logits(row(sequence, back, ids[back:])), wanted[back:])
    target = new_sequence()
    found = ring.logits(row(target, back, ids[back:]), orders=Orders(forks=(Fork(sequence, target, back),)))
    assert_close(found, wanted[back:])


def test_undoing_twice_never_gives_wrong_answers(chain: Chains, checkpoint: Checkpoints) -> None:
    """Two undos in a row lead behind what is kept: refused, or right, but never silently wrong."""
    ring, sequence, ids = chain("gemma3_text", BOTH, (1,)), new_sequence(), prompt_ids(3 * REWIND, seed=4)
    ring.results(Batch((row(sequence, 0, ids, "none"),)))
    first, second = len(ids) - REWIND, len(ids) - 2 * REWIND + 1
    ring.results(Batch((row(sequence, first, ids[first : first + 1], "none"),)))
    results = ring.results(Batch((row(sequence, second, ids[second : second + 1], "last"),)))
    assert results[0].refusal is not None


# --- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gemma3_text"])
@pytest.mark.parametrize(
    "dtypes", [("bf16", "bf16"), ("bf16", "fp32"), ("fp32", "bf16"), ("fp16", "fp32")], ids="-".join
)
def test_other_dtypes(checkpoint: Checkpoints, name: str, dtypes: tuple[Dtype, Dtype]) -> None:
    """The same model within the rounding of the narrower dtype, and what travels has the compute dtype's width."""
    folder, compute = checkpoint(name, dtypes[0]), dtypes[1]
    ring = Chain([load_shard(folder, "torch", layers, compute) for layers in (LayerRange(0, 2), LayerRange(2, LAYERS))])
    sent = activation_of(ring.shards[0], row(2, 0, PROMPT))
    assert (sent.dtype, sent.nbytes) == (compute, 24 * HIDDEN * (4 if compute == "fp32" else 2))
    assert_close(ring.logits(row(1, 0, PROMPT)), reference_logits(folder, PROMPT), 1e-5 if compute == "fp32" else 0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_widened_products_are_at_least_as_exact(dtype: torch.dtype) -> None:
    """Against fp64: also with a last block that is not full."""
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(n, 3000, generator=generator).to(dtype) for n in (5, 401))
    exact = rows.double() @ weight.double().T
    found, plain = widened(rows, weight), torch.nn.functional.linear(rows, weight)
    assert found.dtype == dtype
    assert (found.double() - exact).abs().max() <= (plain.double() - exact).abs().max() * 1.01 + 1e-3


# --- what does not run ------------------------------------------------------------------------------------------------


def _with_config(folder: Path, target: Path, **changes: object) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


def test_what_does_not_run_is_refused_by_name(checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = checkpoint("llama")
    quantized = _with_config(folder, tmp_path / "q", quantization_config={"quant_method": "hqq", "bits": 4})
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    varying = _with_config(folder, tmp_path / "r", rope_parameters=rope)
    with pytest.raises(UnsupportedModel, match="hqq"):
        load_shard(quantized, "torch", WHOLE)
    with pytest.raises(UnsupportedModel, match="dynamic"):
        load_shard(varying, "torch", WHOLE)
    with pytest.raises(BadPlan, match="4 layers"):
        load_shard(folder, "torch", LayerRange(0, 5))
    with pytest.raises(BadSetting, match="cpu"):
        backend.load(LoadRequest(folder, WHOLE, "cuda:99", "fp32", MEMORY, folder.parent))


def test_missing_or_misshapen_tensors_are_no_random_numbers(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """transformers would fill them in; a wrong model must not answer."""
    wider = _with_config(checkpoint("llama"), tmp_path / "wide", intermediate_size=96)
    with pytest.raises(BrokenModel, match="mlp"):
        load_shard(wider, "torch", WHOLE)
    biased = _with_config(checkpoint("llama"), tmp_path / "bias", attention_bias=True)
    with pytest.raises(BrokenModel, match="bias"):
        load_shard(biased, "torch", WHOLE)


@pytest.mark.full  # test_measure.py has each family
def test_measure_needs_only_the_config(checkpoint: Checkpoints, tmp_path: Path) -> None:
    shutil.copy(checkpoint("qwen3_moe") / "config.json", tmp_path / "config.json")
    found = backend.measure(tmp_path, "cpu", "fp32")
    assert found.ms_per_layer > 0
    assert found.ms_per_stage >= 0
    assert min(found.memory_bytes_per_s, found.matrix_flops_per_s) > 0


def test_probe_names_the_cpu() -> None:
    cpu = backend.probe()[0]
    assert cpu.key == "torch/cpu"
    assert 0 < cpu.free_bytes <= cpu.total_bytes
    assert cpu.description


def test_reference_is_the_unsplit_model(checkpoint: Checkpoints) -> None:
    """The yardstick itself: all parameters that the spec counts, and none else."""
    spec = read_spec(checkpoint("qwen3_moe"))
    counted = spec.stage_weights(LayerRange(0, spec.layers)).elements
    assert counted == reference_model(checkpoint("qwen3_moe")).num_parameters()


def test_a_build_for_cpus_tells_its_devices_without_torch() -> None:
    """They are those of `probe`; nothing is told of a build that may have others."""
    code = (
        "import sys; from backends.base import devices_at_sight as seen; print(seen('torch'), 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    known = devices_at_sight("torch")
    assert [device.key for device in known] == (["torch/cpu"] if version("torch").endswith("+cpu") else [])
    assert all(device.description == backend.probe()[0].description for device in known)
    assert run.stdout.startswith("(Device(" if known else "()")
    assert run.stdout.endswith("False\n")
