"""Long work says what it does on a terminal, and nothing in a pipe."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import RealApp, until
from tests.support.patience import PATIENCE
from tests.support.terminal import NO_TERMINALS, Terminal

COLOURS = {"TERM": "xterm-256color"}
MEASURING = "measuring the machines and their links"
SCREEN = """
import sys
from together.desktop.show import Screen
screen = Screen()
screen.line("starting")
screen.busy("loading toy: reading", 0.25)
screen.busy("loading toy: reading", 0.5)
screen.line("vm joined")
screen.busy("loading toy: reading", 0.75)
screen.busy("")
screen.line("toy is ready")
"""


@pytest.mark.skipif(NO_TERMINALS, reason="Windows has no pseudo-terminals")
@pytest.mark.parametrize(
    ("arguments", "shown", "then"),
    [
        (("plan",), MEASURING, "takes"),
        (("status", "--save", "cluster.json"), MEASURING, "saved"),
        pytest.param(("doctor", "--backend", "checksum"), "measuring checksum/cpu", "layer", marks=pytest.mark.full),
        (("load",), "reading the model and planning", "ready"),
    ],
)
def test_a_terminal_shows_what_goes_on(
    real_app: RealApp, tmp_path: Path, arguments: tuple[str, ...], shown: str, then: str
) -> None:
    arguments = tuple(str(tmp_path / word) if word.endswith(".json") else word for word in arguments)
    with Terminal.of(real_app, *arguments, **COLOURS) as terminal:
        terminal.wait_for(shown)
        terminal.wait_for(then)
        until(lambda: terminal.read() and terminal.process.poll() is not None, PATIENCE, "it ends")


def test_a_pipe_gets_the_result_alone(real_app: RealApp, tmp_path: Path) -> None:
    for arguments in (("plan",), ("status", "--save", str(tmp_path / "cluster.json")), ("load",)):
        done = real_app.command(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), arguments
        assert "measuring the" not in done.stdout


@pytest.mark.skipif(NO_TERMINALS, reason="Windows has no pseudo-terminals")
def test_what_goes_on_is_written_over_and_lines_stay() -> None:
    with Terminal([sys.executable, "-c", SCREEN], dict(os.environ)) as terminal:
        terminal.process.wait(PATIENCE)
        terminal.wait_for("toy is ready")
    lines = [line.rpartition("\r")[2] for line in terminal.shown.replace("\r\n", "\n").split("\n")]
    assert lines == ["starting", "vm joined", "toy is ready", ""]
    assert "loading toy: reading 50%" in terminal.shown


def test_elsewhere_each_step_is_a_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    exec(SCREEN, {})
    said = capsys.readouterr().out.splitlines()
    assert said == ["starting", "loading toy: reading", "vm joined", "toy is ready"]
