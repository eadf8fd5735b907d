"""Row R6: a head is killed. Its stages are freed within its lease; other heads take the nodes, and so does its next."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.checksum import EOS as END
from tests.support.checksum import QUIET, make_checksum_model
from tests.support.cluster import (
    CHECKOUT,
    Node,
    ask,
    by_hand,
    cluster_settings,
    environment,
    right_answer,
    running_head,
    running_nodes,
    status_of,
    until,
)
from tests.support.patience import PATIENCE
from together.cluster_types import StageState
from together.errors import NotEnoughMemory
from together.head.head import Head
from together.settings import Settings
from together.view import ServingState

LEASE = 3.0  # seconds, here; 30 by default
PLAN = by_hand("anna=0:2,berta=2:4")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of it fills a node: what a dead head holds is missed by the next one."""
    folder = tmp_path_factory.mktemp("toy") / "toy"
    return make_checksum_model(folder, quiet_ids=(*QUIET, END), num_key_value_heads=2**12)


@contextmanager
def head_process(settings: Settings, toy: Path, *nodes: Node) -> Iterator[subprocess.Popen[str]]:
    """An app without nodes of its own that loads the toy on `nodes`; killed in the end."""
    peers = [f"--peer={node.host}:{node.port}" for node in nodes]
    options = ["--no-browser", "--port", "0", "--local-nodes", "0", "--layers", "anna=0:2,berta=2:4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "together", "up", "--model", str(toy), *options, *peers],
        cwd=CHECKOUT,
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE)


async def states(nodes: list[Node], settings: Settings) -> list[list[StageState]]:
    """Each node's stages, by the node itself."""
    return [[stage.state for stage in (await status_of(node, settings)).stages] for node in nodes]


async def until_all(nodes: list[Node], settings: Settings, ready: bool) -> None:
    """Every node holds one READY stage, or (not `ready`) none."""
    wanted = [[StageState.READY]] * len(nodes) if ready else [[]] * len(nodes)
    async with asyncio.timeout(PATIENCE):
        while await states(nodes, settings) != wanted:  # noqa: ASYNC110  # it is the state of others
            await asyncio.sleep(0.05)  # and they need the processor


@pytest.mark.full  # tests/cluster/test_membership.py has leases and other heads
async def test_a_killed_heads_nodes_are_freed_and_found_by_others(tmp_path: Path, toy: Path) -> None:
    """Until the lease ends nothing is granted twice; then another head takes them, later one that starts anew."""
    settings = cluster_settings(tmp_path, lease=LEASE, memory="110MB")
    with running_nodes(settings, "anna", "berta") as nodes:
        with head_process(settings, toy, *nodes):
            await until_all(nodes, settings, ready=True)
            stages = [stage for node in nodes for stage in node.stages()]
        assert len(stages) == 2
        async with running_head(settings, *nodes) as other:
            with pytest.raises(NotEnoughMemory):
                await other.load(toy, PLAN)
            await until_all(nodes, settings, ready=False)
            assert not any(stage.is_running() for stage in stages)
            await load_when_free(other, toy)
            assert await ask(other) == right_answer(toy)
        async with running_head(settings) as again:  # nobody tells it where they are
            await until(lambda: len(again.view().nodes) == 2, PATIENCE)
            await load_when_free(again, toy)
            assert await ask(again) == right_answer(toy)


async def load_when_free(head: Head, toy: Path) -> None:
    """A head hears a moment after the nodes that they are free."""
    async with asyncio.timeout(PATIENCE):
        while head.view().serving.state is not ServingState.READY:
            try:
                await head.load(toy, PLAN)
            except NotEnoughMemory:
                await asyncio.sleep(0.1)
