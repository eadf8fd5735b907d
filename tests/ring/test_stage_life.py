"""How stage processes start, fail, stall and leave: with their node, whatever happens to it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.ring.stages import RawRing, launches, raw_ring, running_stages
from tests.support.checksum import expected_tokens, make_checksum_model
from tests.support.cluster import CHECKOUT, GREEDY, until
from tests.support.patience import PATIENCE
from together.cluster.supervisor import StageProcess
from together.cluster_types import StageState
from together.ring.stage import MOST_MISSED
from together.types import LayerRange, Row, SampleRequest

pytestmark = pytest.mark.usefixtures("started_anew")

HALVES = (LayerRange(0, 2), LayerRange(2, 4))
WHOLE = (LayerRange(0, 4),)
PROMPT = (256, 72, 105, 33)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checksum_model(tmp_path_factory.mktemp("toy") / "model", context=4096)


async def failed(launch_folder: Path, ranges: tuple[LayerRange, ...] = WHOLE, memory: int = 2**20) -> str:
    """The cause that a stage which cannot start gives."""
    (launch,) = launches(launch_folder, ranges, memory=memory)[:1]
    stage = StageProcess(launch, ("127.0.0.1",), lambda: None)
    await stage.start()
    try:
        await until(lambda: stage.status.state is StageState.FAILED)
    finally:
        await stage.stop()
    return stage.status.cause


async def test_a_failing_step_travels_to_the_head_with_node_stage_and_cause(tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "model", fail_at_position=6, fail_at_layer=1)
    async with running_stages(toy, *HALVES) as stages, raw_ring(stages) as ring:
        await ring.join()
        assert await ring.generate(PROMPT, 2) == expected_tokens(toy, PROMPT, 2, GREEDY)
        answer = await ring.step(Row(1, 0, (65,) * 7, SampleRequest((6,), GREEDY, 1)))
        assert answer.failure is not None
        assert (answer.failure.node, answer.failure.stage) == ("node0", 0)
        assert answer.failure.cause == "RuntimeError: the checksum toy was told to fail at position 6"
        assert len(answer.timings) == 2
        assert await ring.generate(PROMPT, 2) == expected_tokens(toy, PROMPT, 2, GREEDY)


async def test_a_stage_that_comes_to_an_old_ring_counts_from_its_epoch(toy: Path) -> None:
    async with running_stages(toy, *HALVES, epoch=10**6) as stages, raw_ring(stages) as ring:
        ring.epoch = 10**6 + MOST_MISSED - 1
        await ring.join()
        assert await ring.generate(PROMPT, 2) == expected_tokens(toy, PROMPT, 2, GREEDY)


async def test_too_little_memory_is_said_with_both_numbers(toy: Path) -> None:
    cause = await failed(toy, memory=10_000)
    assert "10000 were granted" in cause
    assert "needs " in cause


async def test_a_truncated_file_is_said_by_name(tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "model")
    (launch,) = launches(toy, WHOLE)
    weights = toy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    stage = StageProcess(launch, ("127.0.0.1",), lambda: None)
    await stage.start()
    await until(lambda: stage.status.state is StageState.FAILED)
    await stage.stop()
    assert "model.safetensors" in stage.status.cause


async def test_a_killed_stage_is_explained(toy: Path) -> None:
    async with running_stages(toy, *WHOLE) as (stage,):
        psutil.Process(stage.status.pid).kill()
        await until(lambda: stage.status.state is StageState.FAILED, PATIENCE)
        assert stage.status.cause.startswith("its process was ended by SIGKILL")


async def test_a_stage_that_dies_by_itself_gives_its_last_words(toy: Path) -> None:
    (launch,) = launches(toy, WHOLE)
    stage = StageProcess(replace(launch, ports=(70000, 70000)), ("127.0.0.1",), lambda: None)
    await stage.start()
    await until(lambda: stage.status.state is StageState.FAILED)
    await stage.stop()
    assert "OverflowError" in stage.status.cause


async def test_stopping_a_stage_while_it_starts_leaves_no_process(toy: Path) -> None:
    (launch,) = launches(toy, WHOLE)
    before = _children()
    stage = StageProcess(launch, ("127.0.0.1",), lambda: None)
    starting = asyncio.create_task(stage.start())
    await asyncio.sleep(0)
    await stage.stop()
    await starting
    assert _children() == before


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


async def test_a_busy_stage_is_ended_all_the_same(tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "model", step_ms=60_000)
    async with running_stages(toy, *WHOLE) as (stage,), raw_ring([stage]) as ring:
        await ring.join()
        await ring.push(Row(1, 0, PROMPT))
        async with asyncio.timeout(PATIENCE):
            await stage.stop()
        assert not psutil.pid_exists(stage.status.pid)


def test_a_stage_leaves_when_its_node_is_killed(toy: Path) -> None:
    (launch,) = launches(toy, WHOLE)
    node = subprocess.Popen(
        [sys.executable, "-c", _NODE],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert node.stdin is not None
    assert node.stdout is not None
    try:
        node.stdin.write(launch.line().decode())
        node.stdin.flush()
        stage = psutil.Process(int(node.stdout.readline()))
        assert '"ready"' in node.stdout.readline()
        node.kill()
        stage.wait(PATIENCE)
    finally:
        node.kill()
        node.wait()
        node.stdin.close()
        node.stdout.close()
    assert not stage.is_running()


_NODE = """
import subprocess, sys
stage = subprocess.Popen([sys.executable, "-m", "together.ring.stage"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
stage.stdin.write(sys.stdin.readline().encode())
stage.stdin.flush()
print(stage.pid, flush=True)
for line in stage.stdout:
    if b"ready" in line:
        print(line.decode(), flush=True)
"""


async def test_a_new_epoch_frees_a_stage_that_is_stuck_in_sending(tmp_path: Path) -> None:
    wide = make_checksum_model(tmp_path / "model", layers=2, width=4096)  # 4 MB a frame: few of them fill the link
    async with (
        running_stages(wide, LayerRange(0, 1), LayerRange(1, 2), memory=2**26) as stages,
        raw_ring(stages) as ring,
    ):
        await ring.join()
        second = psutil.Process(stages[1].status.pid)
        second.suspend()
        flood = asyncio.create_task(_flood(ring))
        done, _ = await asyncio.wait({flood}, timeout=2.0)
        assert not done
        second.resume()
        flood.cancel()
        await asyncio.gather(flood, return_exceptions=True)
        await ring.join()
        assert await ring.generate(PROMPT, 3) == expected_tokens(wide, PROMPT, 3, GREEDY)


async def _flood(ring: RawRing) -> None:
    while True:
        await ring.push(Row(1, 0, (65,) * 256))
