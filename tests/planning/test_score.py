"""Ranges that are all layers in order, and what is wrong with the others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from together.planning.mend import right_ranges
from together.planning.problem import Assignment
from together.planning.request import parse_layers
from together.planning.score import range_violations
from together.planning.strategies import uniform_ranges
from together.types import LayerRange

LAYERS = 6


def unnamed(ranges: Sequence[LayerRange]) -> tuple[Assignment, ...]:
    return tuple(Assignment("", layers) for layers in ranges)


@hypothesis(max_examples=200, deadline=None)
@given(st.integers(1, 200), st.integers(1, 40))
def test_equal_parts_cover_all_layers_and_differ_by_at_most_one(layers: int, parts: int) -> None:
    ranges = uniform_ranges(layers, parts)
    assert range_violations(unnamed(ranges), layers) == []
    sizes = [len(item) for item in ranges]
    assert len(ranges) == min(layers, parts)
    assert sum(sizes) == layers
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


cuts = st.lists(st.integers(1, 39), unique=True, max_size=6).map(sorted)


@hypothesis(max_examples=100, deadline=None)
@given(cuts)
def test_any_rising_cuts_are_a_plan(points: list[int]) -> None:
    ends = [0, *points, 40]
    assert range_violations(unnamed([LayerRange(a, b) for a, b in pairwise(ends)]), 40) == []


PAIRS = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 12)), max_size=5)


@hypothesis(max_examples=100, deadline=None)
@given(PAIRS, st.integers(1, 12))
def test_ranges_pass_exactly_when_they_are_all_layers_in_order(pairs: list[tuple[int, int]], layers: int) -> None:
    ranges = [LayerRange(start, start + size) for start, size in pairs]
    flat = [layer for item in ranges for layer in range(item.start, item.stop)]
    assert (range_violations(unnamed(ranges), layers) == []) == (flat == list(range(layers)))


@hypothesis(max_examples=200, deadline=None)
@given(PAIRS.filter(bool), st.integers(1, 12))
def test_what_is_said_to_be_right_is(pairs: list[tuple[int, int]], layers: int) -> None:
    shares = unnamed([LayerRange(start, start + size) for start, size in pairs])
    right = right_ranges(shares, layers)
    assert range_violations(right, layers) == []
    assert range_violations(shares, layers) != [] or right == shares


@pytest.mark.parametrize(
    ("ranges", "sentence"),
    [
        (["0:2", "3:6"], "layers 2:3 are in no range; right would be 0:2,2:6"),
        (["1:6"], "layers 0:1 are in no range; right would be 0:6"),
        (["0:4", "3:6"], "layers 3:4 are in two ranges; right would be 0:4,4:6"),
        (["b=3:6", "a=0:3"], "the ranges are not in the order of the layers; right would be a=0:3,b=3:6"),
        (["a=0:3"], "layers 3:6 are in no range; right would be a=0:6"),
        (["a=0:4", "b=4:9"], "there are no layers 6:9: the model has 6; right would be a=0:4,b=4:6"),
        (["a=0:3", "b=0:3"], "layers 0:3 are in two ranges; layers 3:6 are in no range; right would be a=0:3,b=3:6"),
        (["a=7:9"], "layers 0:6 are in no range; there are no layers 7:9: the model has 6; right would be a=0:6"),
        ([], "layers 0:6 are in no range"),
    ],
)
def test_what_is_wrong_is_said(ranges: list[str], sentence: str) -> None:
    found = range_violations(parse_layers(",".join(ranges)) if ranges else (), LAYERS)
    assert "; ".join(map(str, found)) == sentence
