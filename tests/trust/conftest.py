"""A head and a node that are open to the network, for the tests of one module."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.checksum import make_checksum_model
from tests.support.cluster import ask, cluster_settings, right_answer, running_head, running_nodes
from tests.support.members import member, opened, stranger
from tests.support.patience import PATIENCE
from together.cluster_types import Endpoint
from together.head.head import Head
from together.ring import rpc
from together.ring.doors import find_door
from together.settings import Settings
from together.trust.credentials import Credentials

LAYERS = 4


@dataclass(slots=True)
class Open:
    """A head and a node that are open to the network, a model served on it, a member who is neither, and a stranger."""

    settings: Settings
    head: Head
    toy: Path
    member: Credentials
    stranger: Credentials
    node: int  # the node's process id

    @property
    def doors(self) -> dict[str, Endpoint]:
        node = self.head.view().nodes[0]
        stage = node.stages[0].endpoint
        assert stage is not None
        return {"node": node.endpoint, "stage": stage, "head": self.head.machines.where.endpoint}

    async def call(self, door: str, method: rpc.Unary, request: object, who: Credentials | None = None) -> Any:
        async with (await find_door(self.doors[door], who or self.member)).open() as channel:
            return await rpc.call(channel, method, request, door, PATIENCE)

    async def answers_as_before(self) -> None:
        """Whatever was tried, the ring of the head works on."""
        assert await ask(self.head) == right_answer(self.toy)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Open]:
    folder = tmp_path_factory.mktemp("open")
    toy = make_checksum_model(folder / "toy", layers=LAYERS)
    settings = opened(cluster_settings(folder / "home", name="studio"))
    with running_nodes(settings, "mini") as nodes:
        for node in nodes:
            node.host = "127.0.0.1"
        async with running_head(settings, *nodes) as head:
            await head.load(str(toy))
            outsider = member(settings, "feedfeedfeedfeed")
            yield Open(settings, head, toy, outsider, stranger(folder, outsider.name), nodes[0].process.pid)
