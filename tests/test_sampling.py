"""The sampler: every step of its order by hand, the whole against exact distributions and a slow reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from tests.support.work import calls_of, peak_bytes
from together.errors import FrameRefused
from together.sampling import Draw, sample, survivors
from together.types import Sampled, Sampling

GREEDY = Sampling(temperature=0.0)


def row_of(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def draw_of(sampling: Sampling = GREEDY, position: int = 7, **rest: Any) -> Draw:
    return Draw(sampling, position, **{"tokens": (), "prompt_length": 0, **rest})


def drawn(row: NDArray[np.float32], sampling: Sampling = GREEDY, **rest: Any) -> int:
    return sample(row[None], [draw_of(sampling, **rest)])[0].token_id


def kept(row: NDArray[np.float32], **options: Any) -> list[int]:
    return [int(token) for token in survivors(row, Sampling(**options))[0]]


# --- each step by hand ------------------------------------------------------------------------------------------------


def test_greedy_is_argmax_and_ties_take_the_lowest_id() -> None:
    assert drawn(row_of(0, 3, 1, 3)) == 1


def test_repetition_divides_positive_and_multiplies_negative_logits_once_per_token_of_prompt_and_answer() -> None:
    twice = replace(GREEDY, repetition_penalty=2.0)
    assert drawn(row_of(4, 3, 0), twice, tokens=[0, 0], prompt_length=1) == 1  # 4 / 2 = 2 < 3
    assert drawn(row_of(4, 1.5, 0), twice, tokens=[0, 0], prompt_length=1) == 0  # once: 2, not 1
    assert drawn(row_of(-1, -1.5), twice, tokens=[0], prompt_length=1) == 1  # −1 · 2 = −2 < −1.5
    assert drawn(row_of(-1, -1.5), replace(GREEDY, repetition_penalty=0.5), tokens=[1], prompt_length=1) == 1


def test_presence_counts_once_frequency_each_time_and_both_only_the_answer() -> None:
    row = row_of(2.0, 1.2, 0.0)
    presence, frequency = replace(GREEDY, presence_penalty=0.5), replace(GREEDY, frequency_penalty=0.5)
    answer: dict[str, Any] = {"tokens": [0, 0], "prompt_length": 0}
    assert drawn(row, presence, **answer) == 0  # 1.5
    assert drawn(row, frequency, **answer) == 1  # 1.0
    assert drawn(row, frequency, tokens=[0, 0], prompt_length=1) == 0  # 1.5
    assert drawn(row, replace(frequency, presence_penalty=2.0), tokens=[0, 0], prompt_length=2) == 0


def test_bias_moves_a_token_and_repeated_ids_add_up() -> None:
    assert drawn(row_of(1, 0, 0), replace(GREEDY, logit_bias=((2, 1.5),))) == 2
    assert drawn(row_of(1, 0, 0), replace(GREEDY, logit_bias=((0, -0.6), (0, -0.6)))) == 1


def test_penalties_come_before_the_mask_and_the_mask_before_temperature_zero() -> None:
    assert drawn(row_of(9, 3, 5), allowed=bytes([0b110])) == 2
    assert drawn(row_of(9, 3, 5), replace(GREEDY, logit_bias=((0, 100.0),)), allowed=bytes([0b010])) == 1


def test_a_mask_is_little_endian_and_may_end_before_the_vocabulary() -> None:
    row = np.arange(20, dtype=np.float32)
    assert drawn(row, allowed=bytes([0, 0b00000100])) == 10
    assert drawn(row, allowed=bytes([0b10000001])) == 7
    assert drawn(row, allowed=bytes([1, 0, 0b1000])) == 19


def test_top_k_keeps_exactly_k_and_ties_by_the_lower_id() -> None:
    row = row_of(1, 5, 3, 3, 3, 0)
    assert kept(row, top_k=3) == [1, 2, 3]
    assert kept(row, top_k=1) == [1]
    assert kept(row, top_k=99) == kept(row, top_k=0) == [0, 1, 2, 3, 4, 5]


def test_top_p_takes_the_smallest_set_that_reaches_the_mass() -> None:
    row = np.log(row_of(0.5, 0.125, 0.25, 0.125))
    assert kept(row, top_p=0.4) == [0]
    assert kept(row, top_p=0.6) == [0, 2]
    assert kept(row, top_p=0.80) == [0, 1, 2]  # 1 and 3 tie: the lower id
    assert kept(row, top_p=0.9) == [0, 1, 2, 3]


def test_top_p_edges() -> None:
    equal = row_of(0, 0, 0, 0)
    assert kept(equal, top_p=0.5) == [0, 1]  # exactly reached: no third
    assert kept(equal, top_p=1e-12) == [0]
    assert kept(equal, top_p=1.0) == [0, 1, 2, 3]
    assert kept(equal, top_p=1 - 2**-53) == [0, 1, 2, 3]
    assert kept(row_of(0, -math.inf, 0), top_p=0.99) == [0, 2]
    assert kept(np.zeros(5000, np.float32), top_p=0.5) == list(range(2500))  # beyond the first look


def test_temperature_comes_before_top_p() -> None:
    row = np.log(row_of(0.6, 0.3, 0.1))  # at temperature 0.5: 0.783, 0.196, 0.022
    assert kept(row, temperature=1.0, top_p=0.7) == [0, 1]
    assert kept(row, temperature=0.5, top_p=0.7) == [0]


def test_top_p_counts_mass_of_what_top_k_left() -> None:
    row = np.log(row_of(0.4, 0.3, 0.3))
    assert kept(row, top_p=0.5) == [0, 1]
    assert kept(row, top_k=2, top_p=0.5) == [0]  # 0.4 / 0.7 = 0.57


def test_min_p_compares_with_the_best() -> None:
    row = np.log(row_of(0.5, 0.24, 0.26))
    assert kept(row, min_p=0.5) == [0, 2]
    assert kept(row, min_p=1.0) == [0]
    assert kept(row_of(1, 1, 0), min_p=1.0) == [0, 1]


def test_a_tiny_temperature_leaves_the_best_without_a_warning() -> None:
    assert kept(row_of(1, 5, 3), temperature=1e-310) == [1]


def test_forbidden_tokens_are_never_drawn() -> None:
    row = row_of(50, 0, 0, 0)
    mask = bytes([0b1010])
    draws = [draw_of(Sampling(seed=seed, top_k=3), allowed=mask) for seed in range(200)]
    assert {one.token_id for one in sample(np.tile(row, (200, 1)), draws)} == {1, 3}


# --- log-probabilities ------------------------------------------------------------------------------------------------


def test_log_probabilities_are_of_the_raw_logits() -> None:
    row = np.log(row_of(0.5, 0.25, 0.125, 0.125))
    ask = draw_of(replace(GREEDY, logit_bias=((0, -100.0),)), top_logprobs=3)
    one = sample(row[None] + 3, [ask])[0]
    assert one.token_id == 1
    assert one.logprob == pytest.approx(math.log(0.25), abs=1e-6)
    assert [token for token, _ in one.top] == [0, 1, 2]
    assert [value for _, value in one.top] == pytest.approx(np.log([0.5, 0.25, 0.125]), abs=1e-6)


def test_log_probabilities_only_when_asked_for() -> None:
    row = row_of(0, 1)[None]
    assert sample(row, [draw_of()]) == [Sampled(1)]
    assert sample(row, [draw_of(top_logprobs=0)])[0].top == ()
    assert sample(row, [draw_of(top_logprobs=0)])[0].logprob == pytest.approx(-math.log1p(math.exp(-1)))
    assert len(sample(row, [draw_of(top_logprobs=20)])[0].top) == 2


# --- the draw ---------------------------------------------------------------------------------------------------------


def exact(row: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    """The distribution over the whole vocabulary, by plain loops."""
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    order = order[: sampling.top_k or None]
    score = {i: (float(row[i]) - float(row[order[0]])) / sampling.temperature for i in order}
    weight = {i: math.exp(score[i]) for i in order}
    total, running, nucleus = math.fsum(weight.values()), 0.0, []
    for i in order:
        nucleus.append(i)
        running += weight[i]
        if sampling.top_p < 1 and running >= sampling.top_p * total:
            break
    result = np.zeros(len(row))
    for i in nucleus:
        if not sampling.min_p or score[i] >= math.log(sampling.min_p):  # weights of almost equal scores may round alike
            result[i] = weight[i]
    return np.asarray(result / result.sum())


def p_value(counts: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    assert not counts[probabilities == 0].any()
    expected = probabilities * counts.sum()
    common = expected >= 5
    observed = [*counts[common], counts[~common].sum()]
    wanted = [*expected[common], expected[~common].sum()]
    if wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    return float(stats.chisquare(observed, wanted).pvalue)


SETTINGS = [
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(temperature=1.8, top_k=9),
    Sampling(temperature=1.1, top_p=0.85),
    Sampling(temperature=1.3, min_p=0.1),
    Sampling(temperature=0.9, top_k=12, top_p=0.9, min_p=0.02),
]


def assert_fits(draws: list[Draw], vocabulary: int, sampling: Sampling, spread: float = 2.0) -> None:
    row = np.random.default_rng(5).normal(0, spread, vocabulary).astype(np.float32)
    tokens = [one.token_id for one in sample(np.broadcast_to(row, (len(draws), vocabulary)), draws)]
    assert p_value(np.bincount(tokens, minlength=vocabulary), exact(row, sampling)) > 0.001


@pytest.mark.parametrize("sampling", SETTINGS, ids=range(len(SETTINGS)))
def test_draws_over_positions_fit_the_exact_distribution(sampling: Sampling) -> None:
    assert_fits([draw_of(replace(sampling, seed=11), position=i) for i in range(10_000)], 40, sampling)


def test_draws_over_seeds_fit_the_exact_distribution() -> None:
    assert_fits([draw_of(replace(SETTINGS[5], seed=i)) for i in range(10_000)], 40, SETTINGS[5])


def test_a_large_vocabulary_fits_too_where_only_tokens_that_can_win_get_exact_noise() -> None:
    assert_fits([draw_of(Sampling(seed=1), position=i) for i in range(10_000)], 3000, Sampling(), spread=1.5)


def test_the_same_token_is_drawn_whether_others_are_cut_away_or_not() -> None:
    """Gumbel noise belongs to the token: cutting tokens that did not win changes nothing."""
    row = np.random.default_rng(7).normal(0, 1, 3000).astype(np.float32)
    for position in range(50):
        free = drawn(row, Sampling(seed=3), position=position)
        mask = np.random.default_rng(position).random(3000) < 0.5
        mask[free] = True
        assert (
            drawn(row, Sampling(seed=3), position=position, allowed=np.packbits(mask, bitorder="little").tobytes())
            == free
        )


def test_successive_draws_are_independent() -> None:
    row = np.zeros(8, np.float32)
    draws = [draw_of(Sampling(seed=2), position=i) for i in range(12_000)]
    tokens = np.array([one.token_id for one in sample(np.broadcast_to(row, (len(draws), 8)), draws)])
    pairs = np.bincount(tokens[:-1] * 8 + tokens[1:], minlength=64)
    assert p_value(pairs, np.full(64, 1 / 64)) > 0.001


def test_a_row_is_drawn_the_same_alone_and_in_any_batch() -> None:
    random = np.random.default_rng(8)
    logits = random.normal(0, 3, (24, 500)).astype(np.float32)
    draws = [
        draw_of(
            replace(SETTINGS[i % 6], seed=i), position=i, tokens=[i, i + 1, i], prompt_length=1, top_logprobs=i % 3 - 1
        )
        for i in range(24)
    ]
    alone = [sample(logits[i : i + 1], draws[i : i + 1])[0] for i in range(24)]
    order = random.permutation(24)
    assert sample(logits[order], [draws[i] for i in order]) == [alone[i] for i in order]


def test_logits_are_left_as_they_are() -> None:
    logits = np.random.default_rng(9).normal(0, 3, (1, 50)).astype(np.float32)
    before = logits.copy()
    sample(logits, [draw_of(Sampling(repetition_penalty=1.5, logit_bias=((3, 2.0),)), tokens=[1, 2], allowed=b"\xff")])
    assert np.array_equal(logits, before)


def test_the_noise_is_pinned() -> None:
    """A change here changes every seeded answer ever given: it must be meant."""
    draws = [draw_of(Sampling(seed=42), position=i) for i in range(8)]
    tokens = [one.token_id for one in sample(np.zeros((8, 1000), np.float32), draws)]
    assert tokens == [718, 944, 910, 15, 948, 992, 708, 250]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_an_error(bad: float) -> None:
    for sampling in (GREEDY, Sampling(), Sampling(top_k=2)):
        with pytest.raises(ValueError, match="finite"):
            drawn(row_of(0, bad, 1), sampling)
    with pytest.raises(ValueError, match="finite"):
        drawn(row_of(-math.inf, -math.inf))


@pytest.mark.parametrize("mask", [b"", b"\x00", b"\x08"])
def test_a_mask_that_allows_nothing_is_refused(mask: bytes) -> None:
    with pytest.raises(FrameRefused, match="no token"):
        drawn(row_of(1, 2, 3), allowed=mask)


def test_masks_and_biases_of_another_vocabulary_are_refused() -> None:
    with pytest.raises(FrameRefused, match="2 bytes"):
        drawn(row_of(1, 2, 3), allowed=b"\x01\x00")
    for token in (3, -1):
        with pytest.raises(FrameRefused, match=f"token {token}"):
            drawn(row_of(1, 2, 3), replace(GREEDY, logit_bias=((token, 1.0),)))


def test_draws_must_fit_the_logits() -> None:
    with pytest.raises(ValueError, match="2 draws"):
        sample(np.zeros((1, 4), np.float32), [draw_of(), draw_of()])
    assert sample(np.zeros((0, 4), np.float32), []) == []


# --- properties -------------------------------------------------------------------------------------------------------

ROWS = st.lists(
    st.one_of(st.integers(-6, 6).map(lambda n: n / 2), st.floats(-20, 20, width=32), st.just(-math.inf)),
    min_size=1,
    max_size=60,
).filter(lambda values: max(values) > -math.inf)


@settings(max_examples=300, deadline=None)
@given(
    ROWS,
    st.sampled_from([1.0, 0.3, 2.0, 0.01]),
    st.integers(0, 70),
    st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.1, 1e-6]),
    st.sampled_from([0.0, 0.05, 0.3, 1.0]),
)
def test_survivors_are_those_of_a_slow_reference(
    values: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    row = row_of(*values)
    ids, scores = survivors(row, Sampling(temperature, top_k, top_p, min_p))
    tiny = 1e-300  # the reference's probabilities may round to 0, scores do not
    allowed = [
        set(np.flatnonzero(exact(row, Sampling(temperature, top_k, mass, min_p)) > tiny))
        for mass in ((1.0,) if top_p == 1.0 else (top_p - 1e-9, top_p + 1e-9))
    ]  # one rounding more or less where the mass is reached exactly
    assert set(ids[np.exp(scores) > tiny * np.exp(scores).sum()]) in allowed
    assert list(ids) == sorted(ids)
    assert scores.max() == 0.0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**31), st.integers(2050, 6000), st.floats(0.01, 12))
def test_looking_only_at_tokens_that_can_win_finds_the_winner_of_all(
    seed: int, position: int, vocabulary: int, spread: float
) -> None:
    row = np.random.default_rng(seed % 1000).normal(0, spread, vocabulary).astype(np.float32)
    winner = drawn(row, Sampling(seed=seed), position=position)
    chunks = [range(start, min(start + 2000, vocabulary)) for start in range(0, vocabulary, 2000)]
    finalists = []
    for chunk in chunks:  # a chunk is small enough that every token's noise is computed
        part = np.full(vocabulary, -math.inf, np.float32)
        part[chunk.start : chunk.stop] = row[chunk.start : chunk.stop]
        finalists.append(drawn(part, Sampling(seed=seed), position=position))
    final = np.full(vocabulary, -math.inf, np.float32)
    final[finalists] = row[finalists]
    assert drawn(final, Sampling(seed=seed), position=position) == winner


# --- work -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "copies"),
    [
        (GREEDY, 0),
        (Sampling(0.8, 40, 0.95, repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.2), 3),
    ],
    ids=["greedy", "all"],
)
def test_a_large_vocabulary_is_left_to_numpy_and_hardly_copied(sampling: Sampling, copies: int) -> None:
    """No loop over the vocabulary in Python, and never more than a few copies of one row. `bench sampler` has times."""
    work = [eight_rows(sampling, vocabulary) for vocabulary in (4096, 131_072)]
    work[0]()  # the first one imports
    assert calls_of(work[0]) == calls_of(work[1])
    assert peak_bytes(work[1]) < copies * 131_072 * 4 + 20_000


def eight_rows(sampling: Sampling, vocabulary: int) -> Callable[[], object]:
    random = np.random.default_rng(10)
    logits = random.normal(0, 3, (8, vocabulary)).astype(np.float32)
    tokens = random.integers(0, vocabulary, 2000).tolist()
    draws = [draw_of(replace(sampling, seed=i), tokens=tokens, prompt_length=1000) for i in range(8)]
    return lambda: sample(logits, draws)
