"""The checksum toy: any cut, batch and history answers as the plain loop; anything lost or mixed up shows."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from backends import checksum as backend_module
from backends.base import Backend, LoadRequest, Shard, open_backend
from backends.checksum import KV_BYTES
from tests.support.checksum import EOS, QUIET, VOCABULARY, expected_text, expected_tokens, make_checksum_model
from together.errors import BrokenModel, FrameRefused, NotEnoughMemory, UnsupportedModel
from together.types import Activation, Batch, Fork, LayerRange, Orders, Row, RowResult, SampleRequest, Sampling

GREEDY = Sampling(temperature=0.0)
WARM = Sampling(temperature=1.2, top_k=40, top_p=0.95, repetition_penalty=1.1, presence_penalty=0.3, seed=7)
PROMPT = tuple(b"What is the capital of France?")


@dataclass
class Chain:
    """Shards of one model, one after the other, as a ring passes frames on: refused rows leave the batch."""

    shards: list[Shard]

    def step(self, *rows: Row, orders: Orders | None = None) -> dict[int, RowResult]:
        batch, hidden = Batch(rows, orders or Orders()), None
        results: dict[int, RowResult] = {}
        for shard in self.shards:
            output = shard.step(batch, hidden)
            hidden = output.activation
            results |= {result.sequence: result for result in output.results}
            batch = replace(batch, rows=tuple(row for row in batch.rows if row.sequence not in results))
        return results

    def answer(
        self, prompt: Sequence[int], count: int, sampling: Sampling, sequence: int = 1, chunk: int = 1000
    ) -> list[int]:
        tokens = list(prompt)
        for start in range(0, len(prompt) - chunk, chunk):
            self.step(Row(sequence, start, tuple(tokens[start : start + chunk])))
        held = (len(prompt) - 1) // chunk * chunk
        while len(tokens) < len(prompt) + count:
            tokens.append(self.next(sequence, tokens, held, len(prompt), sampling))
            held = len(tokens) - 1
        return tokens[len(prompt) :]

    def next(self, sequence: int, tokens: Sequence[int], held: int, prompt: int, sampling: Sampling) -> int:
        return drawn(self.step(asking(sequence, held, tokens[held:], prompt, sampling))[sequence])


def asking(sequence: int, position: int, tokens: Sequence[int], prompt: int, sampling: Sampling = GREEDY) -> Row:
    """A row that is sampled at its last token."""
    return Row(sequence, position, tuple(tokens), SampleRequest((len(tokens) - 1,), sampling, prompt))


def drawn(result: RowResult) -> int:
    assert result.refusal is None
    return result.sampled[0].token_id


def load(folder: Path, layers: str, memory: int = 1_000_000) -> Shard:
    return open_backend("checksum").load(
        LoadRequest(folder, LayerRange.parse(layers), "cpu", "fp32", memory, folder.parent)
    )


def chain(folder: Path, *ranges: str) -> Chain:
    return Chain([load(folder, each) for each in ranges or ("0:2", "2:4")])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checksum_model(tmp_path_factory.mktemp("models") / "toy")


# --- the same text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "warm"])
@pytest.mark.parametrize("cut", ["0:4", "0:1 1:4", "0:2 2:4", "0:3 3:4", "0:1 1:2 2:3 3:4"])
def test_every_cut_answers_as_the_plain_loop(model: Path, cut: str, sampling: Sampling) -> None:
    answer = chain(model, *cut.split()).answer(PROMPT, 40, sampling)
    assert answer == expected_tokens(model, PROMPT, 40, sampling)
    assert len(set(answer)) > 10


@pytest.mark.parametrize("chunk", [1, 7, 29, 30])
def test_chunked_prefill_equals_whole(model: Path, chunk: int) -> None:
    assert chain(model).answer(PROMPT, 10, WARM, chunk=chunk) == expected_tokens(model, PROMPT, 10, WARM)


def test_a_batch_equals_one_at_a_time(model: Path) -> None:
    ring = chain(model)
    prompts = {s: [*PROMPT[: 5 * s], s] for s in range(1, 6)}
    answers: dict[int, list[int]] = {s: [] for s in prompts}
    for turn in range(12):
        active = [s for s in prompts if turn >= s % 3]  # they join at different steps
        rows = []
        for s in active:
            tokens = [*prompts[s], *answers[s]]
            held = len(tokens) - 1 if answers[s] else 0
            rows.append(asking(s, held, tokens[held:], len(prompts[s]), replace(WARM, seed=s)))
        results = ring.step(*rows)
        for s in active:
            answers[s].append(drawn(results[s]))
    for s, answer in answers.items():
        assert answer == expected_tokens(model, prompts[s], len(answer), replace(WARM, seed=s))


def test_truncated_replayed_and_forked_sequences_answer_the_same(model: Path) -> None:
    ring, want = chain(model), expected_tokens(model, PROMPT, 10, WARM)
    tokens = [*PROMPT, *ring.answer(PROMPT, 10, WARM)]
    assert ring.next(1, tokens[:33], 20, len(PROMPT), WARM) == want[3]  # truncated and replayed from 20
    ring.step(orders=Orders(forks=(Fork(1, 2, 25),)))
    assert ring.next(2, tokens[:35], 25, len(PROMPT), WARM) == want[5]
    ring.step(orders=Orders(drops=(1, 2)))
    assert ring.answer(PROMPT, 10, WARM) == want


def test_all_offsets_of_a_row_are_sampled_each_with_its_own_key(model: Path) -> None:
    answer = expected_tokens(model, PROMPT, 6, WARM)
    ring, tokens = chain(model), (*PROMPT, *answer[:5])
    offsets = tuple(range(len(PROMPT) - 1, len(tokens)))
    result = ring.step(Row(1, 0, tokens, SampleRequest(offsets, WARM, len(PROMPT))))[1]
    assert [one.token_id for one in result.sampled] == answer


def test_a_row_that_asks_for_nothing_is_answered_with_nothing(model: Path) -> None:
    assert chain(model).step(Row(1, 0, PROMPT)) == {1: RowResult(1, 0)}


def test_settings_and_weights_matter(model: Path, tmp_path: Path) -> None:
    other = make_checksum_model(tmp_path / "other", seed=1)
    answers = [
        tuple(expected_tokens(folder, PROMPT, 8, sampling))
        for folder, sampling in ((model, GREEDY), (other, GREEDY), (model, WARM), (model, replace(WARM, seed=8)))
    ]
    assert len(set(answers)) == 4


# --- other text when something went wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        PROMPT[1:],
        PROMPT[:-2] + PROMPT[-1:],
        (*PROMPT[:9], PROMPT[10], PROMPT[9], *PROMPT[11:]),
        (*PROMPT[:5], *PROMPT[4:]),
    ],
    ids=["first lost", "one lost", "two swapped", "one repeated"],
)
def test_any_difference_in_the_tokens_changes_the_answer(model: Path, wrong: tuple[int, ...]) -> None:
    assert chain(model).answer(wrong, 4, GREEDY) != expected_tokens(model, PROMPT, 4, GREEDY)


def test_exchanged_states_of_two_rows_change_the_answers(model: Path) -> None:
    first, second = load(model, "0:2"), load(model, "2:4")
    batch = Batch((asking(1, 0, (10, 11), 2), asking(2, 0, (20, 21), 2)))
    sent = first.step(batch, None).activation
    assert sent is not None
    right = second.step(batch, sent).results
    half = len(sent.data) // 2
    swapped = replace(sent, data=bytes(sent.data[half:]) + bytes(sent.data[:half]))
    wrong = second.step(batch, swapped).results
    assert [drawn(result) for result in right] != [drawn(result) for result in wrong]


def test_layers_in_the_wrong_order_change_the_answer(model: Path, tmp_path: Path) -> None:
    folder = make_checksum_model(tmp_path / "swapped")
    tensors = load_file(folder / "model.safetensors")
    names = ("model.layers.1.weight", "model.layers.2.weight")
    tensors |= {names[0]: tensors[names[1]], names[1]: tensors[names[0]]}
    save_file(tensors, folder / "model.safetensors")
    assert chain(folder).answer(PROMPT, 4, GREEDY) != expected_tokens(model, PROMPT, 4, GREEDY)


# --- the contract -----------------------------------------------------------------------------------------------------


def test_it_is_a_backend() -> None:
    backend: Backend = backend_module  # mypy checks every function of the contract here
    assert open_backend("checksum") is backend


def test_capacity_is_what_the_weights_leave_in_whole_blocks(model: Path) -> None:
    weights = 4 * (2 * 8 + VOCABULARY * 8)  # two layers and the embedding
    block = 16 * 2 * KV_BYTES
    shard = load(model, "0:2", weights + 3 * block + block - 1)
    assert (shard.capacity, shard.block, shard.rewind, shard.layers) == (48, 16, None, LayerRange(0, 2))
    with pytest.raises(NotEnoughMemory, match=r"toy needs \d+ bytes here"):
        load(model, "0:2", weights + block - 1)


def test_a_full_cache_refuses_that_row_alone(model: Path) -> None:
    small = load(model, "2:4", 4 * (2 * 8 + 8 + VOCABULARY * 8) + 2 * 16 * 2 * KV_BYTES)
    assert small.capacity == 32
    results = Chain([load(model, "0:2"), small]).step(asking(1, 0, PROMPT, 30), asking(2, 0, (5,), 1))
    assert drawn(results[1]) == expected_tokens(model, PROMPT, 1, GREEDY)[0]
    assert "full" in (results[2].refusal or "")


def test_refused_rows_leave_the_activation(model: Path) -> None:
    rows = (asking(1, 3, (9,), 1), asking(2, 0, PROMPT, 30), asking(3, 1, (9, 9), 1))
    output = load(model, "0:2").step(Batch(rows), None)
    assert output.activation is not None
    assert output.activation.tokens == len(PROMPT)
    assert [result.sequence for result in output.results] == [1, 3]
    results = chain(model).step(*rows)
    assert drawn(results[2]) == expected_tokens(model, PROMPT, 1, GREEDY)[0]
    assert "holds 0 tokens" in (results[1].refusal or "")
    nothing = load(model, "0:2").step(Batch(rows[:1]), None).activation
    assert nothing is not None
    assert nothing.tokens == 0


def test_the_last_stage_answers_every_row_in_order(model: Path) -> None:
    results = (
        load(model, "0:4")
        .step(Batch((asking(5, 3, (9,), 1), asking(4, 0, (9,), 1), asking(3, 1, (9,), 1))), None)
        .results
    )
    assert [result.sequence for result in results] == [5, 4, 3]
    assert [bool(result.refusal) for result in results] == [True, False, True]


def test_rewind_is_the_configured_one(tmp_path: Path) -> None:
    ring = chain(make_checksum_model(tmp_path / "toy", rewind=5, block=8))
    assert (ring.shards[0].rewind, ring.shards[0].block) == (5, 8)
    ring.step(Row(1, 0, PROMPT))
    assert "back to token 25" in (ring.step(Row(1, 24, (1,)))[1].refusal or "")


def test_frames_that_do_not_fit_are_refused_and_change_nothing(model: Path) -> None:
    first, second = load(model, "0:2"), load(model, "2:4")
    row = asking(1, 0, PROMPT, len(PROMPT))
    good = first.step(Batch((row,)), None).activation
    assert good is not None
    halves = np.full((len(PROMPT), 8), 0.5, "<f4").tobytes()
    bad: list[Activation | None] = [
        None,
        Activation("fp32", 29, 8, good.data[: 29 * 32]),
        Activation("fp32", 60, 4, good.data),
        Activation("bf16", 30, 16, good.data),
        replace(good, data=halves),
        replace(good, data=np.full((30, 8), 2.0**24, "<f4").tobytes()),
        replace(good, data=np.full((30, 8), np.nan, "<f4").tobytes()),
        replace(good, data=np.full((30, 8), -1, "<f4").tobytes()),
    ]
    for hidden in bad:
        with pytest.raises(FrameRefused):
            second.step(Batch((row,)), hidden)
    with pytest.raises(FrameRefused, match="first stage"):
        first.step(Batch((row,)), good)
    assert drawn(second.step(Batch((row,)), good).results[0]) == expected_tokens(model, PROMPT, 1, GREEDY)[0]


@pytest.mark.parametrize(
    "row",
    [
        Row(1, 0, ()), Row(1, -1, (5,)), Row(1, 4090, (5,) * 7), Row(1, 0, (VOCABULARY,)), Row(1, 0, (-1,)),
        Row(1, 0, (5,), SampleRequest((1,), GREEDY, 1)), Row(1, 0, (5,), SampleRequest((-1,), GREEDY, 1)),
    ],
    ids=str,
)  # fmt: skip
def test_rows_that_no_shard_can_run_are_refused_by_name(model: Path, row: Row) -> None:
    with pytest.raises(FrameRefused, match="sequence 1"):
        load(model, "0:4").step(Batch((row,)), None)
    with pytest.raises(FrameRefused, match="two rows"):
        load(model, "0:4").step(Batch((Row(1, 0, (5,)), Row(1, 0, (5,)))), None)


def test_orders_alone_pass_through(model: Path) -> None:
    ring = chain(model)
    ring.step(Row(1, 0, PROMPT))
    assert ring.step(orders=Orders(drops=(1,))) == {}
    assert load(model, "2:4").step(Batch(orders=Orders(drops=(1,))), None).results == ()
    assert "holds 0" in (ring.step(Row(1, 30, (5,)))[1].refusal or "")


def test_closing_frees_the_cache(model: Path) -> None:
    shard = load(model, "0:4")
    shard.step(Batch((Row(1, 0, PROMPT),)), None)
    shard.close()


# --- misbehaving on demand --------------------------------------------------------------------------------------------


def test_a_step_fails_where_it_was_told_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = make_checksum_model(tmp_path / "toy", fail_at_position=33, fail_at_layer=2)
    ring = chain(folder)
    with pytest.raises(RuntimeError, match="position 33"):
        ring.answer(PROMPT, 10, GREEDY)
    want = expected_tokens(folder, PROMPT, 3, GREEDY)
    tokens = [*PROMPT, *want]
    assert ring.next(1, tokens[:32], 31, len(PROMPT), GREEDY) == want[2]  # both stages go back to 31
    with pytest.raises(RuntimeError):
        ring.shards[1].step(Batch((Row(2, 0, (1,) * 34),)), Activation("fp32", 34, 8, bytes(34 * 32)))
    assert ring.answer(PROMPT, 3, GREEDY, sequence=2) == want


def test_steps_and_loading_take_as_long_as_told(tmp_path: Path) -> None:
    folder = make_checksum_model(tmp_path / "toy", step_ms=20, load_ms=200)
    seen: list[float] = []
    start = time.monotonic()
    request = LoadRequest(folder, LayerRange(0, 3), "cpu", "fp32", 10**6, folder.parent, seen.append)
    shard = open_backend("checksum").load(request)
    assert time.monotonic() - start >= 0.2
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)
    start = time.monotonic()
    shard.step(Batch((Row(1, 0, (1,)),)), None)
    assert time.monotonic() - start >= 0.06


def test_measure_sees_the_slowness(model: Path, tmp_path: Path) -> None:
    backend = open_backend("checksum")
    slow = backend.measure(make_checksum_model(tmp_path / "slow", step_ms=10), "cpu", "fp32")
    fast = backend.measure(model, "cpu", "fp32")
    assert slow.ms_per_layer > 5  # four layers' sleep by the difference of two steps, each the fastest of some
    assert fast.ms_per_layer > 0
    assert min(slow.ms_per_stage, slow.memory_bytes_per_s, slow.matrix_flops_per_s) > 0


def test_probe_shows_this_machine() -> None:
    (device,) = open_backend("checksum").probe()
    assert (device.backend, device.name) == ("checksum", "cpu")
    assert 0 < device.free_bytes <= device.total_bytes


# --- folders ----------------------------------------------------------------------------------------------------------


def test_only_the_toy_and_only_on_cpu_in_fp32(model: Path, tmp_path: Path) -> None:
    backend = open_backend("checksum")
    request = LoadRequest(model, LayerRange(0, 4), "cpu", "fp32", 10**6, model.parent)
    for wrong in (replace(request, dtype="bf16"), replace(request, device="cuda:0")):
        with pytest.raises(UnsupportedModel):
            backend.load(wrong)
    with pytest.raises(UnsupportedModel, match="llama"):
        backend.load(replace(request, folder=make_checksum_model(tmp_path / "toy", model_type="llama")))


@pytest.mark.parametrize("lost", ["model.layers.3.weight", "model.norm.weight", "model.embed_tokens.weight"])
def test_missing_tensors_are_named(tmp_path: Path, lost: str) -> None:
    folder = make_checksum_model(tmp_path / "toy")
    tensors = load_file(folder / "model.safetensors")
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BrokenModel, match="has no tensors"):
        load(folder, "0:4")


def test_other_broken_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokenModel, match="has 4 layers"):
        load(make_checksum_model(tmp_path / "short"), "3:5")
    with pytest.raises(BrokenModel, match="shape"):
        load(make_checksum_model(tmp_path / "wide", hidden_size=9), "0:4")
    with pytest.raises(BrokenModel, match="num_hidden_layers"):
        load(make_checksum_model(tmp_path / "none", num_hidden_layers=0), "0:4")


def test_the_tokenizer_speaks_bytes_and_the_answer_is_readable(model: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    assert tokenizer.encode("Hé 🙂") == list("Hé 🙂".encode())
    assert tokenizer.decode(list("Hé 🙂".encode())) == "Hé 🙂"
    messages = [{"role": "user", "content": "Hi"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert prompt == [256, 259, *b"Hi", EOS, 260]
    text = expected_text(model, prompt, 60, WARM)
    assert text.isascii()
    assert text.isprintable()


def test_answers_end_at_times_or_never(model: Path, tmp_path: Path) -> None:
    endless = make_checksum_model(tmp_path / "endless", quiet_ids=(*QUIET, EOS))
    assert EOS in expected_tokens(model, PROMPT, 600, GREEDY)
    assert EOS not in expected_tokens(endless, PROMPT, 600, GREEDY)
    assert json.loads((endless / "generation_config.json").read_text())["eos_token_id"] == [EOS]
