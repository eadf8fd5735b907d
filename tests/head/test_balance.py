"""A machine that becomes slow while it serves: the view advises a better split, and moving to it keeps the text."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from tests.head.test_recovery import layout, stage_of
from tests.support.checksum import EOS as END
from tests.support.checksum import QUIET, make_checksum_model
from tests.support.cluster import ask, right_answer, running_cluster
from tests.support.patience import PATIENCE
from together.errors import NotServing
from together.head.head import Head
from together.planning.request import PlanRequest


async def hinder(process: psutil.Process) -> None:
    """Take two thirds of a process's time, until cancelled."""
    try:
        while True:
            process.suspend()
            await asyncio.sleep(0.04)
            process.resume()
            await asyncio.sleep(0.02)
    finally:
        process.resume()


async def keep_busy(head: Head) -> None:
    while True:
        await ask(head, "work", 100)


@pytest.mark.full
async def test_a_slow_machine_is_seen_and_gets_fewer_layers(tmp_path: Path) -> None:
    """Neither has room for all layers: of two nodes of one machine that had it, only one would be used."""
    toy = make_checksum_model(
        tmp_path / "toy", layers=12, quiet_ids=(*QUIET, END), step_ms=4, num_key_value_heads=2**12
    )
    async with running_cluster(tmp_path / "home", "anna", "berta", memory="420MB") as (head, _):
        await head.load(toy, PlanRequest(users=4, context=256))
        before = layout(head)
        assert len(before) == 2
        with pytest.raises(NotServing, match="as planned"):
            await head.rebalance()
        jobs = [asyncio.create_task(keep_busy(head)) for _ in range(2)]
        jobs.append(asyncio.create_task(hinder(psutil.Process(stage_of(head, "berta").pid))))
        async with asyncio.timeout(PATIENCE):
            async for view in head.changes():
                if view.advice:
                    break
        assert "berta is" in str(view.advice)
        assert "slower than planned" in str(view.advice)
        await head.rebalance()
        after = layout(head)
        assert len(after.get("berta", [range(0)])[0]) < len(before["berta"][0])
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        assert await ask(head) == right_answer(toy)
