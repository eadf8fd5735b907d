"""The page asked from another machine: a scenario of `tests.support.namespaces`. Knows no test."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx

from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.cluster import CHECKOUT, by_hand, cluster_settings, running_head, running_nodes
from tests.support.namespaces import OWN, switch
from tests.surface.client import said
from tests.surface.served import served_page
from together.api.keys import KeyFile
from webui.events import HERE_ONLY

SILENT = {"opened", "usual"}  # nothing is chosen or shown to another machine, and nothing was asked by a person
LOOKING = {"demanded", "_show_ratio"}  # from everywhere
REASON = HERE_ONLY[1:]  # a notice begins with a capital


async def orders_from_elsewhere(folder: Path) -> None:
    """Every event of the page: another machine may look, and nothing else; this one may do all."""
    toy = make_checksum_model(folder / "toy", quiet_ids=(*QUIET, EOS))
    settings = cluster_settings(folder, host=OWN)
    with switch("berta") as network, running_nodes(settings, "anna") as nodes:
        async with running_head(settings, *nodes) as head, served_page(head, "0.0.0.0") as served:
            await head.load(toy, by_hand("anna=0:4"))
            plan = head.view().serving.plan
            url = f"http://{OWN}:{served.client.base_url.port}"
            orders = {served.blocks.fns[number].name or "": served.usual(number) for number in served.events}
            key = KeyFile(folder).make("berta")[1]
            there = await answers_of(network.machines["berta"].within, url, orders, key)
            assert head.view().serving.plan is plan
            async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
                here = {name: await said(client, order) for name, order in orders.items()}
    check(there, here, str(folder))


def check(there: dict[str, str], here: dict[str, str], folder: str) -> None:
    assert set(there) == set(here) > LOOKING
    for name, answer in there.items():
        assert "process_completed" in answer, f"{name}: {answer}"
        assert folder not in answer, f"{name}: {answer}"
        if name not in SILENT:
            assert (REASON in answer) == (name not in LOOKING), f"{name}: {answer}"
        assert REASON not in here[name], f"{name}: {here[name]}"
    assert ["(in service)" in answers["opened"] for answers in (here, there)] == [True, False]


async def answers_of(within: tuple[str, ...], url: str, orders: dict[str, Any], key: str) -> dict[str, str]:
    """What the page says to a client on the machine that `within` leads to."""
    pipe = asyncio.subprocess.PIPE
    client = await asyncio.create_subprocess_exec(
        *within, sys.executable, "-m", "tests.surface.client", url, key, cwd=CHECKOUT, stdin=pipe, stdout=pipe
    )
    said, _ = await client.communicate(json.dumps(orders).encode())
    assert client.returncode == 0
    answers: dict[str, str] = json.loads(said)
    return answers
