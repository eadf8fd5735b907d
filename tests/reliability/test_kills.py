"""Row R1 again and again: every kill of a stage costs a pause and not one token, however often it happens."""

from __future__ import annotations

import random
from pathlib import Path

import psutil
import pytest

from tests.head.test_recovery import TOKENS, disturbed
from tests.reliability.watching import at_rest, holds_each_layer_once
from tests.support.checksum import EOS as END
from tests.support.checksum import QUIET, make_checksum_model
from tests.support.cluster import by_hand, right_answer, running_cluster, until
from together.cluster_types import StageState

KILLS = 20


@pytest.mark.full  # the short form, a few kills, is in tests/head/test_recovery.py
@pytest.mark.timeout(400)
async def test_every_kill_costs_a_pause_and_no_text(tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "toy", layers=6, quiet_ids=(*QUIET, END), step_ms=2)
    rng = random.Random(KILLS)
    async with running_cluster(tmp_path, "anna", "berta", "carla") as (head, _):
        await head.load(toy, by_hand("anna=0:3,berta=3:6"))

        def kill() -> None:
            ring = head.view().serving.ring
            living = [stage.pid for node in head.view().nodes for stage in node.stages if stage.ring == ring]
            psutil.Process(rng.choice(living)).kill()

        stalls = []
        for _ in range(KILLS):
            outcome = await disturbed(head, kill, at=rng.randrange(1, TOKENS - 20))
            assert outcome.text == right_answer(toy, tokens=TOKENS)
            stalls.append(outcome.stall)
            await until(lambda: holds_each_layer_once(head, 6))
            await until(lambda: all(s.state is StageState.READY for node in head.view().nodes for s in node.stages))
        await at_rest(head)
        print(f"{KILLS} of {KILLS}; stalls of {min(stalls):.1f} to {max(stalls):.1f} s")
