"""Pictures in the scheduler: they are in the rows that hold their parts, and no two of them share a prefix."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.engines import LAYERS, loads
from tests.support.frames import next_frame, request, rows, run, scheduler
from tests.support.loopback import LoopbackRing
from together.engine import engine as module
from together.engine.engine import Engine
from together.errors import QueueFull, RingBroken
from together.models.eyes import positions_of
from together.picture import Picture
from together.requests import GenerateRequest
from together.types import Frame, Limits

PICTURE = Picture(20, 4, 6, 1, bytes(72), "0a")
OTHER = replace(PICTURE, key="0b")


def seeing(*pictures: Picture, length: int = 60) -> GenerateRequest:
    return replace(request(length, 5), pictures=pictures)


def test_a_picture_is_in_every_row_that_holds_a_part_of_it() -> None:
    found = scheduler(chunk=16)
    found.submit(seeing(PICTURE))
    sent = [row for frame in run(found) for row in frame.batch.rows][:4]
    assert [[each.offset for each in row.pictures] for row in sent] == [[], [4], [-12], []]
    assert [row.positions for row in sent] == [
        positions_of((PICTURE,), at, min(at + 16, 60)) for at in range(0, 60, 16)
    ]


def test_a_frame_has_the_pictures_of_one_request() -> None:
    found = scheduler(chunk=100)
    found.submit(seeing(PICTURE, length=40))
    found.submit(seeing(OTHER, length=50))
    found.submit(request(30, 5, 500))
    assert [row[2] for row in rows(next_frame(found))] == [40, 30]


@pytest.mark.parametrize(("again", "reused"), [(PICTURE, 59), (OTHER, 20), (None, 20)])
def test_the_same_tokens_are_shared_only_for_the_same_picture(again: Picture | None, reused: int) -> None:
    found = scheduler()
    found.submit(seeing(PICTURE))
    run(found)
    sequence = found.submit(seeing(*([again] if again else ())))
    next_frame(found)
    assert sequence.reused == reused


def test_a_replay_sends_pictures_again() -> None:
    found = scheduler()
    found.submit(seeing(PICTURE))
    before = next_frame(found).batch.rows
    found.replay()
    (row,) = next_frame(found).batch.rows
    assert row.pictures == before[0].pictures == (PICTURE,)


async def test_pictures_of_open_requests_take_a_bounded_memory(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PIXELS", 150)
    async with LoopbackRing(loads(toy, (LAYERS,))) as ring:
        engine = Engine(ring, frozenset())
        for each in (PICTURE, OTHER, OTHER):
            engine.submit(seeing(each))
        with pytest.raises(QueueFull, match="pictures of other requests take all room"):
            engine.submit(seeing(replace(PICTURE, key="0c")))
        engine.submit(request(5, 5))


async def test_a_step_that_looks_at_pictures_may_take_longer(toy: Path) -> None:
    """A large one takes a minute where there is no better device; a ring that answers never is broken all the same."""
    async with LoopbackRing(loads(toy, (LAYERS,))) as ring:
        engine = Engine(Silent(ring.limits), frozenset(), step_timeout=0.1)
        engine.submit(seeing(PICTURE))
        with pytest.raises(RingBroken, match=r"no answer from the ring for 0\.5 s"):
            await engine.serve()


class Silent:
    """A ring that takes frames and answers nothing."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    async def push(self, frame: Frame) -> None:
        """Nobody reads it."""

    async def receive(self) -> Frame:
        await asyncio.Event().wait()
        raise AssertionError
