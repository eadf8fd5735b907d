"""What surrounds the draw: settings in range, the seeds of several choices, and the draws that a row asks for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from together.errors import BadRequest
from together.sampling import argmax_answers, choice_seed, draws_for, validate
from together.types import Row, SampleRequest, Sampling

GREEDY = Sampling(temperature=0.0)


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("temperature", -0.1), ("temperature", 2.1), ("temperature", math.nan),
        ("top_p", 0.0), ("top_p", 1.01), ("top_k", -1), ("top_k", 2**32),
        ("min_p", -0.1), ("min_p", 1.1),
        ("repetition_penalty", 0.0), ("repetition_penalty", 10.5), ("repetition_penalty", math.inf),
        ("presence_penalty", -2.1), ("frequency_penalty", 2.1),
        ("seed", -1), ("seed", 2**64),
        ("logit_bias", ((1, 101.0),)), ("logit_bias", ((-1, 1.0),)), ("logit_bias", ((1, math.nan),)),
    ],
)  # fmt: skip
def test_values_out_of_range_name_their_field(param: str, value: Any) -> None:
    with pytest.raises(BadRequest, match=param) as caught:
        validate(Sampling(**{param: value}))
    assert caught.value.param == param


def test_values_at_the_limits_are_fine() -> None:
    validate(Sampling())
    validate(Sampling(2.0, 0, 1.0, 1.0, 10.0, 2.0, -2.0, ((5, -100.0),), 2**64 - 1), vocabulary=6)
    validate(Sampling(0.0, 2**32 - 1, 1e-9, 0.0, 0.01, -2.0, 2.0))
    with pytest.raises(BadRequest, match="token id"):
        validate(Sampling(logit_bias=((6, 1.0),)), vocabulary=6)


def test_a_row_names_its_draws_by_offset() -> None:
    ask = SampleRequest((0, 2), Sampling(presence_penalty=1.0), prompt_length=3, top_logprobs=2, allowed=b"\x07")
    first, second = draws_for(Row(1, 2, (30, 31, 32), ask), cached=[10, 11, 99])
    assert (first.position, list(first.tokens)) == (3, [10, 11, 30])
    assert (second.position, list(second.tokens)) == (5, [10, 11, 30, 31, 32])
    assert (second.prompt_length, second.top_logprobs, second.allowed) == (3, 2, b"\x07")
    assert draws_for(Row(1, 2, (30,)), cached=[10, 11]) == []


def test_argmax_answers_only_plain_greedy() -> None:
    assert argmax_answers(SampleRequest((0,), GREEDY, 1))
    assert not argmax_answers(SampleRequest((0,), Sampling(), 1))
    assert not argmax_answers(SampleRequest((0,), GREEDY, 1, top_logprobs=0))
    assert not argmax_answers(SampleRequest((0,), GREEDY, 1, allowed=b"\x01"))
    assert not argmax_answers(SampleRequest((0,), replace(GREEDY, logit_bias=((0, 1.0),)), 1))
    assert not argmax_answers(SampleRequest((0,), replace(GREEDY, frequency_penalty=0.1), 1))


def test_choice_seeds() -> None:
    assert choice_seed(42, 0) == 42
    seeds = {choice_seed(seed, i) for seed in (0, 1, 42, 2**64 - 1) for i in range(100)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**64 for seed in seeds)
