"""Row R19: an app that is told to end while it answers is gone within 5 s, says goodbye and leaves nothing behind.

Ctrl-C and Quit in the menu are in tests/desktop/test_running.py, as is row R20.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.conftest import RealApp
from tests.conftest import until as until_now
from tests.reliability.web import chat_body
from tests.support.cluster import cluster_settings, until
from tests.support.patience import PATIENCE
from together.cluster.membership import REMEMBER_LOST
from together.cluster_types import Endpoint
from together.head.head import Head


def read_for_ever(app: RealApp) -> threading.Thread:
    """A client in the middle of a long answer; returns once it is being made."""

    def read() -> None:
        try:
            httpx.post(app.url + "/v1/chat/completions", json=chat_body("hello", 4000), timeout=PATIENCE)
        except httpx.HTTPError:
            return  # cut off, as it should be

    client = threading.Thread(target=read)
    client.start()
    until_now(lambda: app.serving()["running"] == 1, PATIENCE, "the answer is being made")
    return client


@pytest.mark.full  # as Ctrl-C does in tests/desktop/test_running.py
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals for other processes")
async def test_sigterm_during_an_answer_ends_all_with_a_goodbye(own_app: RealApp, tmp_path: Path) -> None:
    family = own_app.tree()
    environment = own_app.environment
    settings = cluster_settings(tmp_path / "other", cluster=environment["TOGETHER_CLUSTER"])
    ports = [node["endpoint"]["port"] for node in own_app.status()["nodes"]]
    neighbour = Head(settings, tuple(Endpoint(("127.0.0.1",), port) for port in ports))  # a person gave it them
    await neighbour.start()
    try:
        await until(lambda: len(neighbour.view().nodes) == 2)
        client = await asyncio.to_thread(read_for_ever, own_app)
        began = time.monotonic()
        os.kill(own_app.process.pid, signal.SIGTERM)
        assert await asyncio.to_thread(own_app.process.wait, PATIENCE) == 0
        print(f"gone after {time.monotonic() - began:.1f} s")
        await until(lambda: not neighbour.view().nodes, REMEMBER_LOST / 2)  # not "lost": they said goodbye
        await asyncio.to_thread(client.join, PATIENCE)
    finally:
        await neighbour.stop()
    assert not any(process.is_running() for process in family)
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert log.endswith("stopped\n")
