"""What the shapes of a matrix's tensors say about its packing."""

from __future__ import annotations

import pytest

from together.models.packing import AFFINE_BITS, FP_PACKINGS, Packing, packing_of

WIDTH = 768


@pytest.mark.parametrize("bits", AFFINE_BITS)
@pytest.mark.parametrize("group", [16, 32, 64, 128])
def test_shapes_tell_bits_and_group(bits: int, group: int) -> None:
    packing = Packing("affine", bits, group)
    assert packing_of(WIDTH, packing.words(WIDTH), packing.groups(WIDTH), biases=True) == packing


@pytest.mark.parametrize("packing", FP_PACKINGS.values(), ids=str)
def test_scales_without_biases_are_a_floating_point_packing(packing: Packing) -> None:
    assert packing_of(WIDTH, packing.words(WIDTH), packing.groups(WIDTH), biases=False) == packing


@pytest.mark.parametrize(
    ("words", "groups", "biases"),
    [(7 * WIDTH // 32, 12, True), (WIDTH // 8, 0, True), (WIDTH // 8, 5, True), (WIDTH // 8, 96, True),
     (WIDTH // 8, 12, False), (WIDTH // 4 + 1, 12, True)],
)  # fmt: skip
def test_other_shapes_are_nothing_known(words: int, groups: int, biases: bool) -> None:
    assert packing_of(WIDTH, words, groups, biases=biases) is None
