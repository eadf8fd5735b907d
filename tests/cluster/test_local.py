"""Nodes that a head starts itself: it knows where they listen without multicast."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.support.cluster import cluster_settings
from tests.support.patience import PATIENCE
from together.cluster.local import LocalNodes, said_to_parent, say_to_parent
from together.cluster_types import Endpoint, Holding
from together.errors import AppError
from together.ring import rpc
from together.sentences import Sentence
from together.types import ModelRef

KILLED = "anna ended with code" if sys.platform == "win32" else "anna was ended by SIGKILL; the menu starts another one"
HERE = Endpoint(("127.0.0.1", "::1"), 47600)


async def test_a_node_of_ones_own_says_where_it_listens(tmp_path: Path) -> None:
    news = asyncio.Event()
    local = LocalNodes(cluster_settings(tmp_path), "head", news.set)
    assert not local.endpoints()
    try:
        await local.start(1)
        await asyncio.wait_for(news.wait(), PATIENCE)
        (endpoint,) = local.endpoints()
        async with rpc.open_channel(endpoint.addresses[0], endpoint.port) as channel:
            unheard_of = ModelRef("none", "", "0" * 64, 1)
            assert await rpc.call(channel, rpc.FIND, unheard_of, "node", 10) == Holding("", ())
        await local.stop_one()
        assert not local.endpoints()
        with pytest.raises(AppError, match="no node that this app started"):
            await local.stop_one()
    finally:
        await local.close()


async def test_two_orders_to_stop_a_node_are_about_two(tmp_path: Path) -> None:
    """Also where the second one comes before the first node has ended."""
    local = LocalNodes(cluster_settings(tmp_path), "head", lambda: None)
    try:
        await local.start(2)
        await asyncio.gather(local.stop_one(), local.stop_one())
        assert local.count == 0
    finally:
        await local.close()


async def test_a_node_of_ones_own_that_cannot_run_says_why(tmp_path: Path) -> None:
    ended, said = asyncio.Event(), list[str]()

    def tell(sentence: Sentence) -> None:
        said.append(str(sentence))
        ended.set()

    local = LocalNodes(cluster_settings(tmp_path, memory="much", name="anna"), "head", lambda: None, tell)
    await local.start(1)
    await asyncio.wait_for(ended.wait(), PATIENCE)
    assert said == ["anna ended: 'much' is not a size; write it as 4GB or 512MiB"]
    assert local.count == 0


async def test_a_node_of_ones_own_that_is_killed_is_said_to_have_ended(tmp_path: Path) -> None:
    ready, said = asyncio.Event(), asyncio.Queue[str]()
    settings = cluster_settings(tmp_path, name="anna")
    local = LocalNodes(settings, "head", ready.set, lambda sentence: said.put_nowait(str(sentence)))
    await local.start(1)
    await asyncio.wait_for(ready.wait(), PATIENCE)
    local._nodes[0].process.kill()
    assert (await asyncio.wait_for(said.get(), PATIENCE)).startswith(KILLED)
    await local.close()


def test_what_a_node_says_is_read_again() -> None:
    assert said_to_parent(say_to_parent(HERE)) == HERE
    assert said_to_parent(say_to_parent("it {cannot} run")) == "it {cannot} run"


@pytest.mark.parametrize(
    "line", ["", "node anna listens", "{", "[]", "{}", '{"addresses": 3, "port": 1}', '{"port": 1}']
)
def test_any_other_line_is_none(line: str) -> None:
    assert said_to_parent(line) is None
