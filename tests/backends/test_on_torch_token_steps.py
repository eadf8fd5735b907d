"""Steps of a token as one program: the numbers are the modules' own, and what does more keeps its modules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from backends.on_torch import program, shard, token_trial
from backends.on_torch.added import draft_sum
from backends.on_torch.compiled import lanes
from backends.on_torch.program import ProgramDraft
from backends.on_torch.shard import TorchShard, read_activation, write_activation
from tests.backends.conftest import Checkpoints
from tests.support.cases.qwen3_vl import SECTIONS, TOWER
from tests.support.chain import Chain, load_shard, new_sequence
from tests.support.families import HIDDEN, LAYERS, make_checkpoint
from tests.support.mlx_folders import FORMS, write_mlx
from tests.support.vision import Question, photo, text
from together.models.eyes import positions_of
from together.types import Batch, Dtype, Fork, LayerRange, Orders, Row, SampleRequest, Sampling

WIDTH = 128
SIZES: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 192, "head_dim": 32}  # such that all loops fit
FAMILIES: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("llama", "qwen2", "qwen3", "mistral-window", "gemma3_text", "smollm3-biased", "exaone4")},
    **{name: {} for name in ("qwen3_moe", "mixtral", "qwen2_moe")},  # experts are the model's own modules
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}},
}
WIDE_SECTIONS = SECTIONS | {"mrope_section": [6, 5, 5]}
PROMPTS = 9, 4, 14  # tokens: one below a window, two above
STEPS = 12
CPU = torch.device("cpu")

compiles = pytest.mark.skipif(lanes() == 0, reason="llvmlite has no build for this system")


@pytest.fixture(autouse=True)
def _any_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy moment may find that loops win for one row only: here they have all."""
    monkeypatch.setattr("backends.on_torch.linear.most_few", lambda dtype, home: 8)


def made(folder: Path, family: str, dtype: Dtype, layers: LayerRange, **how: Any) -> TorchShard:
    found = load_shard(folder, "torch", layers, dtype, **how)
    assert isinstance(found, TorchShard)
    return found


def states(tokens: int, dtype: Dtype, seed: int) -> Any:
    values = torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed))
    return write_activation(values.to(shard.TORCH[dtype]), dtype)


def answered(stage: TorchShard, dtype: Dtype, first: bool, sizes: Sequence[int]) -> list[torch.Tensor]:
    """What prompts side by side, and then steps of a token in each, lead to; one sequence is a fork of another."""
    sequences = [new_sequence() for _ in sizes]
    for place, (sequence, size) in enumerate(zip(sequences, sizes, strict=True)):
        ids = tuple(range(3, 3 + size))
        stage.step(Batch((Row(sequence, 0, ids),)), None if first else states(size, dtype, place))
    forked = new_sequence()
    stage.step(Batch((), Orders(forks=(Fork(sequences[0], forked, sizes[0]),))), None)
    found, lengths = [], [*sizes, sizes[0]]
    for step in range(STEPS):
        rows = [
            Row(sequence, length + step, (5 + step + place,))
            for place, (sequence, length) in enumerate(zip([*sequences, forked], lengths, strict=True))
        ]
        out = stage.step(Batch(tuple(rows)), None if first else states(len(rows), dtype, 100 + step))
        assert out.activation is not None
        found.append(read_activation(out.activation, CPU).float())
    stage.step(Batch((), Orders(drops=(*sequences, forked))), None)
    return found


def without_programs(stage: TorchShard) -> TorchShard:
    stage._token_steps = None
    return stage


def assert_alike(found: list[torch.Tensor], wanted: list[torch.Tensor], dtype: Dtype) -> None:
    """In half precision loops are the same; what a sum in another order rounds is rare."""
    for one, other in zip(found, wanted, strict=True):
        apart = float((one - other).abs().max()) / float(other.abs().max())
        assert apart <= (1e-5 if dtype == "fp32" else 2**-6)
        assert dtype == "fp32" or float((one != other).float().mean()) < 0.05


@compiles
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_program_computes_what_modules_do(tmp_path: Path, family: str, dtype: Dtype) -> None:
    folder = make_checkpoint(tmp_path, family, dtype, **SIZES | FAMILIES[family])
    for layers in (LayerRange(0, 2), LayerRange(1, LAYERS - 1)):
        stage = made(folder, family, dtype, layers)
        assert stage._token_steps is not None
        first = layers.start == 0
        found = answered(stage, dtype, first, PROMPTS)
        assert_alike(found, answered(without_programs(stage), dtype, first, PROMPTS), dtype)
        stage.close()


@compiles
def test_after_a_picture_a_program_computes_what_modules_do(tmp_path: Path) -> None:
    """Over two stages, with three axes of positions that are apart."""
    sizes = SIZES | {"vision_config": TOWER | {"out_hidden_size": WIDTH}, "rope_parameters": WIDE_SECTIONS}
    folder = make_checkpoint(tmp_path, "qwen3_vl", "fp32", **sizes)
    stages = [made(folder, "qwen3_vl", "fp32", layers) for layers in (LayerRange(0, 2), LayerRange(2, LAYERS))]
    question = Question.of(text(4), photo(90, 37), text(20, 1))
    behind = len(question.ids) - 12
    assert positions_of(question.pictures, behind, behind + 1)[0][0] < behind
    ring = Chain(stages)

    def told() -> list[torch.Tensor]:
        sequence = new_sequence()
        ring.logits(question.row(sequence, 0, behind))
        rows = [question.row(sequence, at, at + 1) for at in range(behind, len(question.ids))]
        return [torch.from_numpy(ring.logits(row)) for row in rows]

    assert all(stage._token_steps is not None for stage in stages)
    found = told()
    for stage in stages:
        without_programs(stage)
    assert_alike(found, told(), "fp32")
    for stage in stages:
        stage.close()


@compiles
@pytest.mark.parametrize("form", ["affine-4", "affine-8", "mixed"])
def test_packed_weights(tmp_path: Path, form: str) -> None:
    plain = make_checkpoint(tmp_path / "plain", "llama-tied", "bf16", **SIZES)
    folder = write_mlx(plain, tmp_path / "packed", FORMS[form])
    stage = made(folder, "llama-tied", "bf16", LayerRange(0, 2), exact=False)
    assert stage._token_steps is not None
    found = answered(stage, "bf16", True, PROMPTS)
    assert_alike(found, answered(without_programs(stage), "bf16", True, PROMPTS), "bf16")


@compiles
def test_the_last_stage_samples_and_leaves_out_what_it_refuses(tmp_path: Path) -> None:
    folder, greedy = (
        make_checkpoint(tmp_path, "llama", "fp32", **SIZES),
        SampleRequest((0,), Sampling(temperature=0.0), 4),
    )
    stage, found = made(folder, "llama", "fp32", LayerRange(0, LAYERS)), []
    for _ in range(2):
        one, other = new_sequence(), new_sequence()
        for sequence in (one, other):
            stage.step(Batch((Row(sequence, 0, (3, 4, 5)),)), None)
        gap = Row(other, 9, (6,), greedy)
        first, second = stage.step(Batch((Row(one, 3, (6,), greedy), gap)), None).results
        assert (first.refusal, bool(second.refusal)) == (None, True)
        found.append([each.token_id for each in first.sampled])
        without_programs(stage)
    assert found[0] == found[1] != []


@compiles
@pytest.mark.parametrize("family", ["granite", "ministral3", "phi3", "gpt_oss", "gemma4_text"])
def test_layers_that_do_more_keep_their_modules(tmp_path: Path, family: str) -> None:
    stage = made(make_checkpoint(tmp_path, family, "fp32", **SIZES), family, "fp32", LayerRange(0, 2))
    assert stage._token_steps is None


@compiles
def test_a_factor_that_nobody_knows_of_is_found_by_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer made of known parts, whose code names nothing else, that computes something else."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    def forward(self: Any, hidden_states: Any, **more: Any) -> Any:
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), **more)[0]
        return 0.9 * hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))

    monkeypatch.setattr(LlamaDecoderLayer, "forward", forward)
    stage = made(make_checkpoint(tmp_path, "llama", "fp32", **SIZES), "llama", "fp32", LayerRange(0, 2))
    assert stage._token_steps is None


@compiles
def test_a_clamp_that_a_trial_would_not_meet_is_seen_in_the_code(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "olmoe", "fp32", **SIZES, clip_qkv=100.0)
    assert made(folder, "olmoe", "fp32", LayerRange(0, 2))._token_steps is None


@compiles
def test_shapes_that_no_loop_takes_keep_their_modules(checkpoint: Checkpoints) -> None:
    assert HIDDEN % 32  # of the usual tiny models
    assert made(checkpoint("llama"), "llama", "fp32", LayerRange(0, 2))._token_steps is None


@compiles
@pytest.mark.parametrize("yields", [True, False])
def test_no_thread_runs_ahead(monkeypatch: pytest.MonkeyPatch, *, yields: bool) -> None:
    """Sums that each need the one before, by more threads than there are processors."""
    if not yields:
        monkeypatch.setattr(program, "_yielding", lambda: 0)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        draft, one, other = ProgramDraft(), torch.empty(7, 64), torch.empty(7, 64)
        for _ in range(16):
            for states, added in ((one, other), (other, one)):
                draft_sum(draft, states, added)
                draft.meet()
        made = draft.finish()
        for _ in range(50):
            one.fill_(1)
            other.fill_(1)
            made.run(4)
            assert other.eq(5702887).all()  # Fibonacci's 34th number
    finally:
        torch.set_num_threads(before)


def test_a_trial_sees_every_kind_of_layer() -> None:
    class Kind(torch.nn.Module):
        def __init__(self, layer_idx: int, window: int | None) -> None:
            super().__init__()
            self.layer_idx, self.window = layer_idx, window

    kinds = [8, 8, None, 8, None]
    assert token_trial._until_all_kinds(torch.nn.ModuleList(Kind(*each) for each in enumerate(kinds))) == 3
    assert token_trial._until_all_kinds(torch.nn.ModuleList()) == 0
