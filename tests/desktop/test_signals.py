"""An app that is told to end ends, whatever its event loop or its threads do then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.support.patience import PATIENCE

HELD_UP = {
    "the loop": "print('held up', flush=True); exec('while True: pass')",
    "a thread": "asyncio.get_running_loop().run_in_executor(None, time.sleep, 100); print('held up', flush=True)",
}
APP = """
import asyncio, sys, time
from together.processes import ExitGuard, stop_on_signals

async def main(guard):
    stop = asyncio.Event()
    with stop_on_signals(stop, guard):
        exec(sys.argv[1])
        await stop.wait()

asyncio.run(main(ExitGuard(0.5)))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals for other processes")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("what", HELD_UP)
def test_a_signal_ends_an_app_that_is_held_up(what: str, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", APP, HELD_UP[what]], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held up\n"
    process.send_signal(number)
    try:
        assert process.wait(PATIENCE) == 1
    finally:
        process.kill()
        process.communicate()
