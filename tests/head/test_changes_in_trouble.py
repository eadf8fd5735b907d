"""A change of plan that meets trouble: it is given up half-way, or the ring is being mended. No open answer ends."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.head.test_recovery import TOKENS, disturbed, layout, stage_of
from tests.reliability.watching import holds_each_layer_once
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.cluster import (
    Node,
    ask,
    by_hand,
    right_answer,
    until,
)
from together.errors import StageLost
from together.head.head import Head
from together.types import LayerRange
from together.view import ServingState

NODES = ("anna", "berta", "carla")
BEFORE, AFTER = by_hand("anna=0:3,berta=3:6"), by_hand("anna=0:3,carla=3:6")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checksum_model(tmp_path_factory.mktemp("toy") / "model", layers=6, quiet_ids=(*QUIET, EOS), step_ms=2)


@pytest.fixture
def head(cluster: tuple[Head, list[Node]]) -> Head:
    return cluster[0]


async def test_whoever_ordered_a_change_may_leave_in_the_middle_of_it(head: Head, toy: Path) -> None:
    await head.load(toy, BEFORE)
    leaving: list[asyncio.Task[None]] = []
    outcome = await disturbed(head, lambda: leaving.append(asyncio.create_task(leave_in_the_middle(head))))
    await leaving[0]
    assert outcome.text == right_answer(toy, tokens=TOKENS)
    await until(lambda: head.view().serving.state is ServingState.READY)
    assert await ask(head) == right_answer(toy)
    await until(lambda: holds_each_layer_once(head, 6))


async def leave_in_the_middle(head: Head) -> None:
    """The new stages are loaded, and the ring is to be joined anew as soon as nothing is on its way."""
    change = asyncio.create_task(head.load(request=AFTER))
    service = head.service
    assert service is not None
    while service.change is None:  # noqa: ASYNC110  # it is state of the service, and passes within milliseconds
        await asyncio.sleep(0)
    change.cancel()
    with pytest.raises(asyncio.CancelledError):
        await change


async def test_a_change_waits_for_a_ring_that_is_being_mended(head: Head, toy: Path) -> None:
    await head.load(toy, BEFORE)
    changing: list[asyncio.Task[None]] = []

    def kill_and_change() -> None:
        psutil.Process(stage_of(head, "berta").pid).kill()
        changing.append(asyncio.create_task(change_when_mended(head)))

    outcome = await disturbed(head, kill_and_change)
    await changing[0]
    assert outcome.text == right_answer(toy, tokens=TOKENS)
    assert layout(head) == {"anna": [LayerRange(0, 3)], "carla": [LayerRange(3, 6)]}
    await until(lambda: holds_each_layer_once(head, 6))
    assert await ask(head) == right_answer(toy)


async def change_when_mended(head: Head) -> None:
    await until(lambda: head.view().serving.state is ServingState.RECOVERING)
    await head.load(request=AFTER)


async def test_a_change_that_is_ready_while_the_ring_is_mended_happens_after_that(head: Head, toy: Path) -> None:
    await head.load(toy, BEFORE)
    changing: list[asyncio.Task[None]] = []
    outcome = await disturbed(head, lambda: changing.append(asyncio.create_task(break_while_it_loads(head))))
    await asyncio.wait_for(changing[0], 30)
    assert outcome.text == right_answer(toy, tokens=TOKENS)
    await head.load(request=AFTER)  # nothing of it is left in the way
    assert layout(head) == {"anna": [LayerRange(0, 3)], "carla": [LayerRange(3, 6)]}
    await until(lambda: holds_each_layer_once(head, 6))
    assert await ask(head) == right_answer(toy)


async def break_while_it_loads(head: Head) -> None:
    """The mending takes longer than what is left of the change's loading."""
    lost = psutil.Process(stage_of(head, "berta").pid)
    change = asyncio.create_task(head.load(request=AFTER))
    await until(lambda: any(node.name == "carla" and node.stages for node in head.view().nodes))
    lost.kill()
    with suppress(StageLost):  # the mending may end what the change is loading, which says so
        await change
