"""Pictures that the head holds for the page: for a while, within bounds, under names that nobody guesses."""

from __future__ import annotations

import pytest

from together.errors import BadRequest
from together.head.attachments import KEPT, MOST, MOST_BYTES, Attachments


def test_a_picture_is_held_while_somebody_asks_for_it() -> None:
    now = 0.0
    held = Attachments(clock=lambda: now)
    used, idle = held.add(b"a", "image/png"), held.add(b"b", "image/png")
    assert used != idle
    assert len(used) >= 22
    now = KEPT / 2
    assert held.data(used) == b"a"
    now = KEPT + 1
    assert held.find(idle) is None
    with pytest.raises(BadRequest, match="is not held any more; attach it again"):
        held.data(idle)
    assert held.data(used) == b"a"


def test_the_oldest_go_where_they_are_many_or_large() -> None:
    held = Attachments()
    names = [held.add(b"a", "image/png") for _ in range(MOST + 1)]
    assert [held.find(name) is not None for name in names] == [False] + [True] * MOST
    large = [held.add(bytes(MOST_BYTES // 2), "image/png") for _ in range(3)]
    assert [held.find(name) is not None for name in large] == [False, True, True]
    assert held.find(names[-1]) is None
