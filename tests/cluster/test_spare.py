"""Spare stage processes: what a node has ready for a stage that is lost, when it has none, and where they end."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.checksum import make_checksum_model
from tests.support.cluster import Node, ask, call, right_answer, running_cluster, until
from tests.support.orders import make_order
from together.cluster.spare import FREE, ROOM, Spares
from together.cluster.supervisor import Started
from together.errors import NotEnoughMemory
from together.head.head import Head
from together.ring import rpc
from together.view import ServingState


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return make_checksum_model(tmp_path / "toy")


@asynccontextmanager
async def served(home: Path, toy: Path) -> AsyncIterator[tuple[Head, Node, psutil.Process]]:
    """A model on one node with enough memory, and the node's spare."""
    async with running_cluster(home, "anna", memory="3GB") as (head, (anna,)):
        await head.load(toy)
        await until(lambda: spares(head, anna))
        yield head, anna, spares(head, anna)[0]


def stage_pids(head: Head) -> list[int]:
    return [stage.pid for node in head.view().nodes for stage in node.stages]


def spares(head: Head, node: Node) -> list[psutil.Process]:
    return [process for process in node.stages() if process.pid not in stage_pids(head)]


async def test_a_lost_stage_becomes_the_spare_and_another_one_comes(tmp_path: Path, toy: Path) -> None:
    async with served(tmp_path, toy) as (head, anna, spare):
        (lost,) = stage_pids(head)
        psutil.Process(lost).kill()
        await until(lambda: stage_pids(head) == [spare.pid] and head.view().serving.state is ServingState.READY)
        assert await ask(head) == right_answer(toy)
        await until(lambda: spares(head, anna))
        assert len(stage_pids(head)) == 1
        if sys.platform == "linux":  # it has a processor like any stage
            usual = os.getpriority(os.PRIO_PROCESS, 0)
            assert {os.getpriority(os.PRIO_PROCESS, thread.id) for thread in spare.threads()} == {usual}


async def test_nothing_is_left_of_it_after_the_node_or_the_model(tmp_path: Path, toy: Path) -> None:
    async with served(tmp_path, toy) as (head, anna, spare):
        await head.unload()
        await until(lambda: not spare.is_running())
        await head.load(toy)
        await until(lambda: spares(head, anna))
        (other,) = spares(head, anna)
        anna.kill()
        await until(lambda: not other.is_running() or other.status() == psutil.STATUS_ZOMBIE)


async def test_it_ends_before_a_stage_is_refused_for_lack_of_memory(tmp_path: Path, toy: Path) -> None:
    async with served(tmp_path, toy) as (_, anna, spare):
        with pytest.raises(NotEnoughMemory, match="node anna: needs"):
            await call(anna, rpc.LOAD, make_order(toy, memory=10**15))
        await until(lambda: not spare.is_running())


async def test_there_is_none_with_little_memory() -> None:
    before, free = children(), FREE + ROOM - 1
    kept = Spares(lambda: free)
    await kept.keep({"checksum"})
    assert not kept.any
    free = FREE + ROOM
    await kept.keep({"checksum"})
    await kept.keep({"checksum"})
    (spare,) = children() - before
    free = FREE
    await kept.make_room()
    assert spare.is_running()
    free = FREE - 1
    await kept.make_room()
    assert not spare.is_running()
    assert not kept.any


async def test_one_that_ended_by_itself_is_not_taken() -> None:
    before, kept = children(), Spares(lambda: FREE + ROOM)
    await kept.keep({"checksum"})
    (spare,) = children() - before
    spare.kill()
    await until(lambda: not spare.is_running())
    taken = await kept.take("checksum")
    assert taken.process.pid != spare.pid
    await ended(taken)


def children() -> set[psutil.Process]:
    return set(psutil.Process().children())


async def ended(started: Started) -> None:
    """A process without orders leaves when its input closes."""
    assert started.process.stdin is not None
    started.process.stdin.close()
    await started.process.wait()
    started.witness.close()
