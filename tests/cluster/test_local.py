"""Nodes that a head starts itself: it knows where they listen without multicast."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.cluster import cluster_settings
from tests.support.patience import PATIENCE
from together.cluster.node import LocalNodes, endpoint_said, say_endpoint
from together.cluster_types import Endpoint, Holding
from together.errors import AppError
from together.ring import rpc
from together.types import ModelRef

HERE = Endpoint(("127.0.0.1", "::1"), 47600)


async def test_a_node_of_ones_own_says_where_it_listens(tmp_path: Path) -> None:
    news = asyncio.Event()
    local = LocalNodes(cluster_settings(tmp_path), news.set)
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


def test_what_a_node_says_is_read_again() -> None:
    assert endpoint_said(say_endpoint(HERE)) == HERE


@pytest.mark.parametrize(
    "line", ["", "node anna listens", "{", "[]", "{}", '{"addresses": 3, "port": 1}', '{"port": 1}']
)
def test_any_other_line_is_none(line: str) -> None:
    assert endpoint_said(line) is None
