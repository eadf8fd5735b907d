"""Processes that tests fork (`tests/support/forks.py`) are those of a real start, to their parent and to themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import forks
from tests.support.forks import CHECKOUT, order_of
from tests.support.patience import PATIENCE

STAGE = [sys.executable, "-m", "together.ring.stage"]
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or bool(os.environ.get(forks.ANEW)), reason="everything is started in the real way here"
)


def ended(*arguments: str, **more: Any) -> tuple[int, str, str]:
    command, given = [sys.executable, "-m", "together", *arguments], {"input": "", "cwd": CHECKOUT} | more
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, **given)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("arguments", [("nonsense",), ("help",)])
def test_it_says_and_returns_the_same(arguments: tuple[str, ...]) -> None:
    forked = ended(*arguments)
    with forks.real_starts():
        assert forked == ended(*arguments)
    assert forked[0] == (2 if arguments == ("nonsense",) else 0)


@pytest.mark.parametrize("session", [True, False])
def test_it_is_a_child_with_its_own_command_line_that_a_signal_ends(session: bool) -> None:
    with subprocess.Popen(STAGE, cwd=CHECKOUT, stdin=subprocess.PIPE, start_new_session=session) as stage:
        try:
            seen = psutil.Process(stage.pid)
            assert [word for word in seen.cmdline() if word] == STAGE  # zeros may stay where its first one was longer
            assert seen.ppid() == os.getpid()
            assert os.getsid(stage.pid) == (stage.pid if session else os.getsid(0))
            assert seen.num_fds() <= 4  # nothing of whoever forked it
            assert stage.poll() is None
        finally:
            stage.send_signal(signal.SIGKILL)
        assert stage.wait(PATIENCE) == -signal.SIGKILL


def test_it_ends_with_its_input() -> None:
    with subprocess.Popen(STAGE, cwd=CHECKOUT, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as stage:
        assert stage.stdin is not None
        stage.stdin.close()
        assert stage.wait(PATIENCE) == 1  # without a Launch


def test_what_is_unusual_is_started_in_the_real_way(tmp_path: Path) -> None:
    usual = order_of(STAGE, CHECKOUT, None, session=True)
    assert usual is not None
    assert usual.command == STAGE
    assert order_of(STAGE, CHECKOUT, {**os.environ, "TOGETHER_NAME": "anna"}, session=True) == replace(
        usual, environment={**os.environ, "TOGETHER_NAME": "anna"}
    )
    assert order_of(STAGE, tmp_path, None, session=True) is None
    assert order_of(STAGE, CHECKOUT, {**os.environ, "OMP_NUM_THREADS": "2"}, session=True) is None
    assert order_of([sys.executable, "-c", "pass"], CHECKOUT, None, session=True) is None
    assert order_of([sys.executable, "-m", "pytest"], CHECKOUT, None, session=True) is None
    assert order_of("ls", CHECKOUT, None, session=True) is None
