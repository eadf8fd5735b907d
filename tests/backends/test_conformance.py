"""Every family on every backend against the unsplit transformers model: the proof that a family is supported."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from _pytest.mark.structures import ParameterSet

from backends.base import Backend, open_backend
from tests.backends.conftest import Chains, Checkpoints
from tests.support.chain import GREEDY, Chain, assert_close, load_shard, new_sequence, row
from tests.support.families import (
    BY_NAME,
    CASES,
    LAYERS,
    MORE,
    make_checkpoint,
    prompt_ids,
    reference_greedy,
    reference_logits,
)
from together.errors import UnsupportedModel
from together.models.config import FAMILIES
from together.types import Batch, Fork, LayerRange, Orders, Row, SampleRequest

BACKENDS = ("torch", "mlx") if find_spec("mlx") else ("torch",)
EXAMPLE = "numpy"  # tests/backends/numpy_backend.py: the llama family alone
PAIRS = tuple(product(BACKENDS, repeat=2))
EXAMPLE_PAIRS = ((EXAMPLE, EXAMPLE), (EXAMPLE, "torch"), ("torch", EXAMPLE))
NAMES = tuple(case.name for case in CASES)
LLAMAS = tuple(name for name in NAMES if BY_NAME[name].family == "llama")
PROMPT = prompt_ids(24)
LONGER, SHORTER = prompt_ids(31, seed=1), prompt_ids(5, seed=2)

LATER = [(case.name, backend) for case in MORE for backend in case.backends if backend in BACKENDS]


def _long(*case: object) -> ParameterSet:
    """Of families that came later the default suite has one cut."""
    return pytest.param(*case, marks=pytest.mark.full)


each_case = pytest.mark.parametrize(
    ("name", "backend"),
    [*product(NAMES, BACKENDS), *product(LLAMAS, (EXAMPLE,)), *(_long(*case) for case in LATER)],
)
each_case_of_two = pytest.mark.parametrize(
    ("name", "pair"),
    [
        *(
            pytest.param(*case, id=f"{case[0]}-{'-'.join(case[1])}")
            for case in [*product(NAMES, PAIRS), *product(LLAMAS, EXAMPLE_PAIRS)]
        ),
        *(
            pytest.param(case.name, pair, id=f"{case.name}-{'-'.join(pair)}", marks=pytest.mark.full)
            for case in MORE
            for pair in PAIRS
            if set(pair) <= set(case.backends)
        ),
    ],
)
each_backend = pytest.mark.parametrize("backend", [*BACKENDS, EXAMPLE])
each_pair = pytest.mark.parametrize("pair", [*PAIRS, *EXAMPLE_PAIRS], ids="-".join)


def test_every_family_has_a_case() -> None:
    assert {case.family for case in (*CASES, *MORE)} == set(FAMILIES)


@pytest.mark.parametrize(("name", "backend"), LATER)
def test_an_inner_cut(chain: Chains, checkpoint: Checkpoints, name: str, backend: str) -> None:
    """In chunks, with another sequence beside, and a token at the end."""
    ring, first, other = chain(name, (backend, backend), (BY_NAME[name].cut,)), new_sequence(), new_sequence()
    begun = ring.logits(row(first, 0, PROMPT[:13]), row(other, 0, SHORTER))
    rest = ring.logits(row(first, 13, PROMPT[13:-1]))
    last = ring.logits(row(first, len(PROMPT) - 1, PROMPT[-1:]))
    whole, beside = (reference_logits(checkpoint(name), ids) for ids in (PROMPT, SHORTER))
    assert_close(np.concatenate((begun, rest, last)), np.concatenate((whole[:13], beside, whole[13:])))


@each_case
def test_whole_model(chain: Chains, checkpoint: Checkpoints, name: str, backend: str) -> None:
    found = chain(name, (backend,)).logits(row(new_sequence(), 0, PROMPT))
    assert_close(found, reference_logits(checkpoint(name), PROMPT))


@pytest.mark.parametrize(
    "name", [pytest.param(case.name, marks=() if case.name == "deepseek_v3" else pytest.mark.full) for case in MORE]
)
def test_half_precision_is_near(tmp_path: Path, name: str) -> None:
    """On torch, whose states and weights may have different dtypes within a layer."""
    folder = make_checkpoint(tmp_path / "plain", name, "bf16")
    ring, sequence = Chain([load_shard(folder, "torch", LayerRange(0, BY_NAME[name].layers), "bf16")]), new_sequence()
    found = np.concatenate((ring.logits(row(sequence, 0, PROMPT[:-1])), ring.logits(row(sequence, 23, PROMPT[-1:]))))
    wanted = reference_logits(folder, PROMPT)
    assert np.linalg.norm(found - wanted) < 0.2 * np.linalg.norm(wanted)  # where experts are alike, others are chosen


@each_case_of_two
@pytest.mark.parametrize("cut", range(1, LAYERS))
def test_every_cut(chain: Chains, checkpoint: Checkpoints, name: str, pair: tuple[str, str], cut: int) -> None:
    found = chain(name, pair, (cut,)).logits(row(new_sequence(), 0, PROMPT))
    assert_close(found, reference_logits(checkpoint(name), PROMPT))


@each_case
def test_a_layer_per_stage(chain: Chains, checkpoint: Checkpoints, name: str, backend: str) -> None:
    found = chain(name, (backend,) * LAYERS, (1, 2, 3)).logits(row(new_sequence(), 0, PROMPT))
    assert_close(found, reference_logits(checkpoint(name), PROMPT))


@each_case_of_two
def test_greedy_tokens(chain: Chains, checkpoint: Checkpoints, name: str, pair: tuple[str, str]) -> None:
    assert chain(name, pair, (2,)).greedy(new_sequence(), PROMPT, 8) == reference_greedy(checkpoint(name), PROMPT, 8)


@each_case
def test_configs_as_found_on_hubs(chain: Chains, checkpoint: Checkpoints, name: str, backend: str) -> None:
    found = chain(name, (backend, backend), (1,), dialect="old").logits(row(new_sequence(), 0, PROMPT))
    assert_close(found, reference_logits(checkpoint(name), PROMPT))


@each_case
def test_chunked_prefill_and_decode(chain: Chains, checkpoint: Checkpoints, name: str, backend: str) -> None:
    ring, sequence, position, found = chain(name, (backend, backend), (2,)), new_sequence(), 0, []
    for size in (7, 1, 9, 12, 1, 1):
        found.append(ring.logits(row(sequence, position, LONGER[position : position + size])))
        position += size
    assert_close(np.concatenate(found), reference_logits(checkpoint(name), LONGER))


@each_case
def test_batched_equals_alone(chain: Chains, checkpoint: Checkpoints, name: str, backend: str) -> None:
    """Prefill, a later chunk and decode rows of different lengths in one step."""
    ring, (a, b, c, d) = chain(name, (backend, backend), (2,)), (new_sequence() for _ in range(4))
    begun = ((a, PROMPT[:-1]), (b, LONGER[:10]), (c, SHORTER[:-1]))
    ring.results(Batch(tuple(row(sequence, 0, ids, "none") for sequence, ids in begun)))
    found = ring.logits(row(a, 23, PROMPT[-1:]), row(b, 10, LONGER[10:]), row(c, 4, SHORTER[-1:]), row(d, 0, PROMPT))
    folder = checkpoint(name)
    whole = reference_logits(folder, PROMPT)
    parts = (whole[-1:], reference_logits(folder, LONGER)[10:], reference_logits(folder, SHORTER)[-1:], whole)
    assert_close(found, np.concatenate(parts))


@each_case
def test_truncated_and_replayed(chain: Chains, checkpoint: Checkpoints, name: str, backend: str) -> None:
    ring, sequence = chain(name, (backend, backend), (2,)), new_sequence()
    ring.logits(row(sequence, 0, PROMPT[:12]))
    ring.logits(row(sequence, 12, SHORTER))  # a path that is given up
    ring.logits(row(sequence, 17, SHORTER[:1]))
    begin = 10
    if not BY_NAME[name].rewinds:
        (refused,) = ring.results(Batch((row(sequence, begin, PROMPT[begin:]),)))
        assert refused.refusal == "can go back to token 18 of the sequence, was asked to go back to 10"
        begin = 0
    found = ring.logits(row(sequence, begin, PROMPT[begin:]))
    assert_close(found, reference_logits(checkpoint(name), PROMPT)[begin:])


@each_case
def test_forks(chain: Chains, checkpoint: Checkpoints, name: str, backend: str) -> None:
    """A fork goes its own way, its source too, and an order given twice is obeyed once."""
    ring, source, target = chain(name, (backend, backend), (2,)), new_sequence(), new_sequence()
    length = 11 if BY_NAME[name].rewinds else 15
    ring.logits(row(source, 0, PROMPT[:15]))
    order = Orders(forks=(Fork(source, target, length), Fork(source, target, length)))
    other = (*PROMPT[:length], *SHORTER)
    found = ring.logits(row(target, length, SHORTER), row(source, 15, PROMPT[15:]), orders=order)
    folder = checkpoint(name)
    wanted = np.concatenate((reference_logits(folder, other)[length:], reference_logits(folder, PROMPT)[15:]))
    assert_close(found, wanted)


@each_backend
def test_refused_rows_do_not_disturb_others(chain: Chains, checkpoint: Checkpoints, backend: str) -> None:
    ring, good, bad = chain("llama", (backend, backend), (2,)), new_sequence(), new_sequence()
    results = ring.results(Batch((row(bad, 3, SHORTER, "last"), row(good, 0, PROMPT, "last"))))
    refused, answered = sorted(results, key=lambda result: result.sequence == good)
    assert refused.refusal is not None
    assert "holds 0" in refused.refusal
    assert not refused.sampled
    assert [item.token_id for item in answered.sampled] == list(reference_greedy(checkpoint("llama"), PROMPT, 1))


@each_backend
def test_dropped_sequences_are_gone(chain: Chains, backend: str) -> None:
    ring, sequence = chain("llama", (backend, backend), (2,)), new_sequence()
    ring.logits(row(sequence, 0, PROMPT))
    assert ring.results(Batch((), Orders(drops=(sequence,)))) == ()
    (result,) = ring.results(Batch((row(sequence, 24, SHORTER),)))
    assert result.refusal is not None


@each_backend
def test_only_last_stages_answer_and_all_refused_rows_still_do(chain: Chains, backend: str) -> None:
    ring, a, b = chain("llama", (backend, backend), (2,)), new_sequence(), new_sequence()
    results = ring.results(Batch((row(a, 1, SHORTER), row(b, 2, SHORTER))))
    assert {result.sequence for result in results if result.refusal} == {a, b}


@each_pair
def test_seeded_draws_are_the_same_everywhere(chain: Chains, pair: tuple[str, str]) -> None:
    """Sampling at a temperature, with log-probabilities: only the last stage's backend could make a difference."""
    settings = GREEDY.__class__(temperature=0.9, top_k=40, top_p=0.95, seed=5)
    places = tuple(range(len(PROMPT)))

    def ids(ring: Chain) -> list[int]:
        sequence = new_sequence()
        asked = Row(sequence, 0, PROMPT, SampleRequest(places, settings, len(PROMPT), top_logprobs=2))
        drawn = ring.sampled(asked)[sequence]
        assert all(item.logprob is not None and len(item.top) == 2 for item in drawn)
        return [item.token_id for item in drawn]

    assert ids(chain("llama", pair, (2,))) == ids(chain("llama", ("torch", "torch"), (2,)))


def test_the_example_is_a_whole_backend(checkpoint: Checkpoints) -> None:
    example: Backend = open_backend(EXAMPLE)  # mypy checks every function of the contract here
    assert [device.backend for device in example.probe()] == [EXAMPLE]
    profile = example.measure(checkpoint("llama"), "cpu", "fp32")
    assert min(profile.ms_per_layer, profile.memory_bytes_per_s, profile.matrix_flops_per_s) > 0
    with pytest.raises(UnsupportedModel, match="runs llama in fp32"):
        load_shard(checkpoint("qwen2"), EXAMPLE, LayerRange(0, 2))
    assert len((Path(__file__).parent / "numpy_backend.py").read_text().splitlines()) <= 200
