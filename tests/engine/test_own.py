"""What a head adds to a token, measured over a real link; how long it is depends on the machine."""

from __future__ import annotations

import pytest

from together.cluster_types import HeadCost
from together.engine.own import OwnCost, measure_head
from together.errors import BadSetting


async def test_every_frame_takes_some_time() -> None:
    found = await measure_head()
    assert found.step_ms + found.row_ms > 0
    assert min(found.step_ms, found.row_ms) >= 0


async def test_it_is_measured_once_and_only_when_asked_to() -> None:
    own = OwnCost()
    assert await own(False) == HeadCost()
    found = await own(True)
    assert found != HeadCost()
    assert await own(False) == await own(True) == found


async def test_a_head_that_cannot_be_measured_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is asked again the next time."""
    monkeypatch.setattr("together.ring.message.PORTS", range(0))
    with pytest.raises(BadSetting, match="no free port"):
        await measure_head()
    own = OwnCost()
    assert await own(True) == HeadCost()
    monkeypatch.undo()
    assert await own(True) != HeadCost()
