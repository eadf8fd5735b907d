"""Ranges that are all layers in order, and what is wrong with the others."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from together.planning.score import range_violations
from together.planning.strategies import uniform_ranges
from together.types import LayerRange

LAYERS = 6


@hypothesis(max_examples=200, deadline=None)
@given(st.integers(1, 200), st.integers(1, 40))
def test_equal_parts_cover_all_layers_and_differ_by_at_most_one(layers: int, parts: int) -> None:
    ranges = uniform_ranges(layers, parts)
    assert range_violations(ranges, layers) == []
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
    assert range_violations([LayerRange(a, b) for a, b in pairwise(ends)], 40) == []


@hypothesis(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 12)), max_size=5), st.integers(1, 12))
def test_ranges_pass_exactly_when_they_are_all_layers_in_order(pairs: list[tuple[int, int]], layers: int) -> None:
    ranges = [LayerRange(start, start + size) for start, size in pairs]
    flat = [layer for item in ranges for layer in range(item.start, item.stop)]
    assert (range_violations(ranges, layers) == []) == (flat == list(range(layers)))


@pytest.mark.parametrize(
    ("ranges", "sentence"),
    [
        (["0:2", "3:6"], "layers 2:3 are in no range"),
        (["1:6"], "layers 0:1 are in no range"),
        (["0:4", "3:6"], "the range 3:6 starts before layer 4"),
        (["3:6", "0:3"], "layers 0:3 are in no range"),
        (["0:3"], "the ranges end at layer 3, and the model has 6 layers"),
        (["0:9"], "the ranges end at layer 9, and the model has 6 layers"),
        ([], "the ranges end at layer 0"),
    ],
)
def test_what_is_wrong_is_said(ranges: list[str], sentence: str) -> None:
    found = range_violations([LayerRange.parse(text) for text in ranges], LAYERS)
    assert str(found[0]).startswith(sentence)
