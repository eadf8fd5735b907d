"""A node's life as a process: what it needs, what it says, how it leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.cluster import (
    CHECKOUT,
    call,
    cluster_settings,
    environment,
    running_node,
    running_nodes,
    status_of,
)
from tests.support.orders import make_order, stage_when
from tests.support.patience import PATIENCE
from together.cluster.local import said_to_parent
from together.cluster_types import StageState
from together.ring import rpc
from together.settings import Settings

pytestmark = pytest.mark.usefixtures("started_anew")


def outcome(settings: Settings, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a node that is not meant to start."""
    done = subprocess.run(
        [sys.executable, "-m", "together", "node", *arguments],
        cwd=CHECKOUT,
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"backend": "cuda"}, "there is no backend 'cuda'; choose one of torch, mlx, checksum"),
        ({"memory": "much"}, "'much' is not a size; write it as 4GB or 512MiB"),
    ],
)
def test_what_cannot_start_says_one_sentence(tmp_path: Path, wrong: dict[str, str], sentence: str) -> None:
    code, said = outcome(cluster_settings(tmp_path, **wrong))
    assert code == 2
    assert said.strip() == f"together: {sentence}"


async def test_a_node_leaves_with_its_stages_and_says_nothing(tmp_path: Path, toy: Path) -> None:
    settings = cluster_settings(tmp_path)
    with running_node(settings) as node:
        order = make_order(toy)
        await call(node, rpc.LOAD, order)
        stage = psutil.Process((await stage_when(node, settings, order, StageState.READY)).pid)
        node.stop()
        assert node.process.returncode == 0
        assert not stage.is_running()
        assert [line for line in node.lines if said_to_parent(line) is None] == []


async def test_nodes_share_a_machine_and_not_a_port(tmp_path: Path) -> None:
    settings = cluster_settings(tmp_path, memory="64MiB")
    with running_nodes(settings, "a", "b", "c") as nodes:
        found = [await status_of(node, settings) for node in nodes]
    assert [status.name for status in found] == ["a", "b", "c"]
    assert len({status.id for status in found}) == len({status.ports for status in found}) == 3
    assert len({status.machine for status in found}) == 1
    assert {status.memory_bytes for status in found} == {64 * 2**20}


async def test_a_node_on_ipv6_loads_a_stage(tmp_path: Path, toy: Path) -> None:
    if not _has("::1"):
        pytest.skip("this machine has no IPv6 loopback")
    settings = cluster_settings(tmp_path, host="::1")
    with running_node(settings) as node:
        order = make_order(toy)
        await call(node, rpc.LOAD, order)
        stage = await stage_when(node, settings, order, StageState.READY)
        assert stage.endpoint is not None
        assert stage.endpoint.addresses == ("::1",)
        assert node.process.poll() is None


def _has(host: str) -> bool:
    return any(item.address == host for items in psutil.net_if_addrs().values() for item in items)
