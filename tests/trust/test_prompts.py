"""Row S8: a prompt goes to the machines that run a stage of its plan, and into no log, however much these tell."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.reliability.relay import slow_ways
from tests.support.checksum import make_checksum_model
from tests.support.cluster import ask, by_hand, cluster_settings, prompt_of, right_answer, running_nodes, until
from together.head.head import Head

PROMPT = "what no machine beside those of the plan may hear"
FAST = 10**9  # bytes a second


async def test_a_prompt_goes_to_the_machines_of_its_plan_alone_and_into_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    toy = make_checksum_model(tmp_path / "toy")
    settings = cluster_settings(tmp_path / "home", cluster="beyond", log_level="DEBUG")
    with running_nodes(settings, "anna", "berta") as nodes:
        async with slow_ways(nodes, settings.cluster, 0.0, FAST) as ways:  # the only ones: the head has another cluster
            heard = [way.hear() for way in ways]
            head = Head(cluster_settings(tmp_path / "head"), tuple(way.endpoint for way in ways))
            await head.start()
            try:
                await until(lambda: len(head.view().nodes) == len(nodes))
                await head.load(toy, by_hand("anna=0:4"))
                assert await ask(head, PROMPT) == right_answer(toy, PROMPT)
            finally:
                await head.stop()
        ids = bytes(prompt_of(toy, PROMPT)[4:24])  # those below 128 are a byte each
        assert [ids in each for each in heard] == [True, False]
        assert heard[1].count(b"/together.v1.Node/") > 0, "it was spoken to"
        told = [caplog.text, *(line for node in nodes for line in node.lines)]
        assert max(len(each) for each in told) > 1000
        assert not [line for line in told if PROMPT in line or PROMPT.split("machine")[1] in line]
