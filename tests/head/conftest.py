"""Nodes that the tests of a file share, with a head of its own for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.cluster import Node, cluster_settings, fresh_head, running_nodes
from together.head.head import Head
from together.settings import Settings


@pytest.fixture(scope="module")
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, list[Node]]]:
    """The file's `NODES`, of all tests that end no node."""
    settings = cluster_settings(tmp_path_factory.mktemp("nodes"))
    with running_nodes(settings, *request.module.NODES) as nodes:
        yield settings, nodes


@pytest_asyncio.fixture
async def cluster(tmp_path: Path, shared: tuple[Settings, list[Node]]) -> AsyncIterator[tuple[Head, list[Node]]]:
    async with fresh_head(tmp_path / "home", *shared) as head:
        yield head, shared[1]
