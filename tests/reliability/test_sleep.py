"""A machine sleeps and wakes, and clocks are set: what served serves on by itself, with the same text.

Sleep is played by stopping all processes of a machine; their event loops see a jump of the same size.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import RealApp, start_app
from tests.conftest import until as wait_until
from tests.head.test_recovery import layout, stage_of
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.cluster import ask, by_hand, cluster_settings, right_answer, running_cluster, until
from tests.support.patience import PATIENCE
from together.cluster.node import run_node
from together.cluster_types import LetGo, NodeState
from together.head.head import Head
from together.settings import Settings
from together.types import LayerRange
from together.view import ServingState

ENDLESS = (*QUIET, EOS)
TOKENS = 300
HOUR = 3600.0
SHORT, LONG = 4.0, 60.0  # seconds of sleep


@contextmanager
def asleep(processes: list[psutil.Process]) -> Iterator[None]:
    """Parents first: no child is ended for being silent."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in reversed(processes):
            with suppress(psutil.NoSuchProcess):
                process.resume()


class Answer(threading.Thread):
    """A streamed answer of an app, read by another program."""

    def __init__(self, app: RealApp) -> None:
        super().__init__(daemon=True)
        self.app, self.text = app, ""

    def run(self) -> None:
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": TOKENS, "temperature": 0}
        url = f"{self.app.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body | {"stream": True}, timeout=None) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    for choice in json.loads(line.removeprefix("data: "))["choices"]:
                        self.text += choice["delta"].get("content") or ""


@pytest.mark.parametrize(
    ("seconds", "lease"), [(SHORT, "2"), pytest.param(LONG, "30", marks=pytest.mark.full)], ids=["short", "long"]
)
def test_a_machine_that_sleeps_with_all_that_runs_on_it_goes_on_where_it_was(
    tmp_path: Path, seconds: float, lease: str
) -> None:
    """Longer than a lease: nobody could renew one, so nothing is given up, and no layer is loaded again."""
    with start_app(tmp_path, TOGETHER_LEASE=lease) as app:
        stages, answer = app.stage_pids(), Answer(app)
        answer.start()
        wait_until(lambda: len(answer.text) > 10, PATIENCE, "it answers")
        with asleep(app.tree()):
            before = len(answer.text)
            time.sleep(seconds)  # this is what is tested
        answer.join(PATIENCE)
        assert not answer.is_alive()
        assert len(answer.text) > before
        assert answer.text == right_answer(tmp_path / "toy", tokens=TOKENS)
        time.sleep(0.5)
        assert app.stage_pids() == stages
        assert app.serving()["state"] == ServingState.READY
        assert {node["state"] for node in app.status()["nodes"]} == {NodeState.READY}


@pytest.mark.parametrize("seconds", [SHORT, pytest.param(LONG, marks=pytest.mark.full)], ids=["short", "long"])
async def test_a_sleeping_machine_s_layers_move_and_it_is_there_again_when_it_wakes(
    tmp_path: Path, seconds: float
) -> None:
    toy = make_checksum_model(tmp_path / "toy", layers=6, quiet_ids=ENDLESS, step_ms=2)
    async with running_cluster(tmp_path, "anna", "berta") as (head, nodes):
        await head.load(toy, by_hand("anna=0:3,berta=3:6"))
        answer = asyncio.create_task(ask(head, tokens=TOKENS))
        await until(lambda: head.view().serving.running == 1)
        with asleep([psutil.Process(nodes[1].process.pid), *nodes[1].stages()]):
            await asyncio.sleep(seconds)
            assert await answer == right_answer(toy, tokens=TOKENS)
        await until(lambda: all(node.state is not NodeState.FAILED for node in head.view().nodes))
        await until(lambda: not nodes[1].stages())  # they are strays now
        await head.load(toy, by_hand("anna=0:3,berta=3:6"))
        assert await ask(head) == right_answer(toy)


async def test_without_room_elsewhere_the_model_waits_for_the_machine_that_sleeps(tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "toy", layers=6, quiet_ids=ENDLESS, step_ms=2, num_key_value_heads=2**12)
    async with running_cluster(tmp_path, "anna", "berta", memory="140MB") as (head, nodes):
        await head.load(toy, by_hand("anna=0:3,berta=3:6"))
        assert await ask(head) == right_answer(toy)
        with asleep([psutil.Process(nodes[1].process.pid), *nodes[1].stages()]):
            await until(lambda: head.view().nodes[1].state is NodeState.FAILED)
            asked = asyncio.create_task(ask(head))
            await until(lambda: head.view().serving.state is ServingState.WAITING)
            await asyncio.gather(asked, return_exceptions=True)
        await until(lambda: head.view().serving.state is ServingState.READY)
        assert await ask(head) == right_answer(toy)
        assert layout(head) == {"anna": [LayerRange(0, 3)], "berta": [LayerRange(3, 6)]}


# --- clocks that are set ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def cluster_here(settings: Settings, *names: str) -> AsyncIterator[Head]:
    """A head and its nodes in this process, so that one clock is theirs."""
    stop = asyncio.Event()
    tasks = [asyncio.create_task(run_node(replace(settings, name=name), stop=stop)) for name in names]
    head = Head(settings)
    await head.start()
    try:
        await until(lambda: len(head.view().nodes) == len(names))
        yield head
    finally:
        await head.stop()
        stop.set()
        await asyncio.gather(*tasks)


async def test_a_clock_that_is_set_forward_and_back_disturbs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an hour, while an answer comes: leases, heartbeats and what is shown for a while go by another clock."""
    real, offset = time.time, [0.0]

    def turned() -> float:
        """For this program alone: gRPC compares its deadlines with the system's clock, which nobody sets here."""
        caller = str(sys._getframe(1).f_globals["__name__"])
        ours = caller.startswith(("together", "backends", "tests"))
        return real() + offset[0] * ours

    monkeypatch.setattr(time, "time", turned)
    toy = make_checksum_model(tmp_path / "toy", layers=4, quiet_ids=ENDLESS, step_ms=2)
    settings = cluster_settings(tmp_path / "home", lease=2.0)
    async with cluster_here(settings, "anna", "berta") as head:
        await head.load(toy, by_hand("anna=0:2,berta=2:4"))
        head.machines.gone.note(LetGo("tiny", "4 bit", 10, time.time()))
        pids, ring = [stage_of(head, name).pid for name in ("anna", "berta")], head.view().serving.ring
        for hours in (1, -1, 0):
            answer = asyncio.create_task(ask(head, tokens=TOKENS // 2))
            await until(lambda: head.view().serving.running == 1)
            offset[0] = hours * HOUR
            assert await answer == right_answer(toy, tokens=TOKENS // 2)
            await asyncio.sleep(settings.lease)
            view = head.view()
            assert view.serving.state is ServingState.READY
            assert [node.state for node in view.nodes] == [NodeState.READY] * 2
            assert [gone.model for gone in view.let_go] == ["tiny"]
        assert [stage_of(head, name).pid for name in ("anna", "berta")] == pids
        assert head.view().serving.ring == ring
