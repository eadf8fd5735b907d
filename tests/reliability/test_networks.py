"""Rows R7 and R8: networks that are cut, and one that is slow."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.reliability.relay import slow_ways
from tests.ring.stages import raw_ring, running_stages
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.cluster import ask, by_hand, cluster_settings, right_answer, running_nodes, until
from tests.support.namespaces import permitted, run_scenario
from together.cluster_types import NodeState, StageState
from together.head.head import Head
from together.types import LayerRange

LONG = "word " * 70


@pytest.mark.full  # tests/head/test_recovery.py and tests/planning have lost machines and unusable links
@pytest.mark.skipif(not permitted(), reason="needs Linux's network namespaces")
def test_what_is_cut_off_is_planned_around(tmp_path: Path) -> None:
    print(run_scenario("tests.reliability.networks:cuts_that_heal", tmp_path))


# --- R8 ---------------------------------------------------------------------------------------------------------------

ROUND_TRIP_MS = 200
MEGABIT = 125_000  # bytes per second


@pytest.mark.full  # tests/cluster/test_reach.py has slow links
async def test_a_slow_network_is_slower_and_not_wrong(tmp_path: Path) -> None:
    """To both nodes and to every stage; a chunk of the prompt keeps a link busy for seconds, and nobody is lost."""
    toy = make_checksum_model(tmp_path / "toy", width=512, quiet_ids=(*QUIET, EOS))
    settings = cluster_settings(tmp_path, heartbeat=1.0, node_timeout=5.0, context=1024)
    beyond = settings.cluster + "-beyond"  # so that the head does not find the short way by itself
    with running_nodes(replace(settings, cluster=beyond), "anna", "berta") as nodes:
        async with slow_ways(nodes, beyond, ROUND_TRIP_MS / 2, MEGABIT) as relays:
            head = Head(settings, tuple(relay.endpoint for relay in relays))
            await head.start()
            try:
                await check_slow(head, toy)
            finally:
                await head.stop()


async def test_a_stage_tells_of_a_stream_that_ended(tmp_path: Path) -> None:
    """Its sender may have sent all it had, and wait for an answer that never comes."""
    toy = make_checksum_model(tmp_path / "toy")
    async with running_stages(toy, LayerRange(0, 2), LayerRange(2, 4)) as stages, raw_ring(stages) as ring:
        await ring.join()
        assert [stage.status.broken_epoch for stage in stages] == [-1, -1]
        await ring.leave()
        await until(lambda: stages[0].status.broken_epoch == ring.epoch)
        assert stages[0].status.cause == "the stream from the previous stage ended"
        assert stages[0].status.state is StageState.READY
        await ring.join()
        assert await ring.generate((1, 2, 3), 4)


async def check_slow(head: Head, toy: Path) -> None:
    await until(lambda: len(head.view().nodes) == 2)
    await head.load(toy, by_hand("anna=0:2,berta=2:4"))
    ring = head.view().serving.plan
    clock = asyncio.get_running_loop().time
    began = clock()
    assert await ask(head, tokens=8) == right_answer(toy, tokens=8)
    short = clock() - began
    assert short > 8 * 2 * ROUND_TRIP_MS / 2000  # the head to the first stage, that to the second
    began = clock()
    assert await ask(head, LONG, tokens=4) == right_answer(toy, LONG, 4)
    print(f"8 tokens in {short:.1f} s; {len(LONG)} tokens of prompt and 4 of answer in {clock() - began:.1f} s")
    assert clock() - began > len(LONG) * 512 * 4 / MEGABIT
    assert head.view().serving.plan is ring  # nothing was replaced
    assert all(node.state is NodeState.READY for node in head.view().nodes)
