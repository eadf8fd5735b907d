"""What an app with models that nobody uses costs: how often its head wakes, and its memory."""

from __future__ import annotations

import sys
import time

import psutil
import pytest

from tests.conftest import RealApp
from tests.support.checksum import make_checksum_model

SECONDS = 20.0
WAKES = 20.0  # in a second: messages of nodes, multicast of others and a look at the clock; it was 25 before


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="Windows and macOS count no waits")
def test_three_idle_models_hardly_wake_the_head_and_need_little_more_than_one(own_app: RealApp) -> None:
    head = psutil.Process(own_app.process.pid)
    before = head.memory_info().rss
    for layers, name in ((5, "second"), (6, "third")):
        model = make_checksum_model(own_app.home.parent / name, layers=layers, seed=layers)
        own_app.post("/control/load", {"model": str(model), "beside": True}).raise_for_status()
    assert len(own_app.status()["services"]) == 3
    time.sleep(5.0)  # what a load leaves behind is cleaned up
    waits, began, used = head.num_ctx_switches().voluntary, time.monotonic(), sum(head.cpu_times()[:2])
    time.sleep(SECONDS)
    per_second = (head.num_ctx_switches().voluntary - waits) / (time.monotonic() - began)
    share = (sum(head.cpu_times()[:2]) - used) / SECONDS
    more = head.memory_info().rss - before
    print(f"{per_second:.1f} wakes a second, {share:.2%} of a core, {more / 1e6:.1f} MB more than with one model")
    assert per_second < WAKES
    assert more < 60e6
