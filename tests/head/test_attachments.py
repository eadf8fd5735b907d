"""Pictures that the head holds for the page: for a while, within bounds, under names that nobody guesses."""

from __future__ import annotations

import pytest

from together.errors import BadRequest
from together.head.attachments import KEPT, MOST, MOST_BYTES, Attachments
from together.requests import LOCAL, Owner


def test_a_picture_is_held_while_somebody_asks_for_it() -> None:
    now = 0.0
    held = Attachments(clock=lambda: now)
    used, idle = held.add(LOCAL, b"a", "image/png"), held.add(LOCAL, b"b", "image/png")
    assert used != idle
    assert len(used) >= 22
    now = KEPT / 2
    assert held.data(LOCAL, used) == b"a"
    now = KEPT + 1
    assert held.find(LOCAL, idle) is None
    with pytest.raises(BadRequest, match="is not held any more; attach it again"):
        held.data(LOCAL, idle)
    assert held.data(LOCAL, used) == b"a"


def test_the_oldest_go_where_they_are_many_or_large() -> None:
    held = Attachments()
    names = [held.add(LOCAL, b"a", "image/png") for _ in range(MOST + 1)]
    assert [held.find(LOCAL, name) is not None for name in names] == [False] + [True] * MOST
    large = [held.add(LOCAL, bytes(MOST_BYTES // 2), "image/png") for _ in range(3)]
    assert [held.find(LOCAL, name) is not None for name in large] == [False, True, True]
    assert held.find(LOCAL, names[-1]) is None


def test_a_picture_is_its_owner_s_alone() -> None:
    held, other = Attachments(), Owner("0a1b2c3d")
    name = held.add(LOCAL, b"a", "image/png")
    assert held.find(other, name) is None
    with pytest.raises(BadRequest, match="is not held any more"):
        held.data(other, name)
    assert held.forget(other) == 0
    assert held.data(LOCAL, name) == b"a"
    assert held.forget(LOCAL) == 1
    assert held.find(LOCAL, name) is None


def test_nobody_pushes_out_what_others_have() -> None:
    held, other = Attachments(), Owner("0a1b2c3d")
    own = held.add(LOCAL, bytes(1000), "image/png")
    for _ in range(2 * MOST):
        held.add(other, b"b", "image/png")
    for _ in range(4):
        held.add(other, bytes(MOST_BYTES // 2), "image/png")
    assert held.find(LOCAL, own) is not None
