"""Names from other machines in a terminal: what would steer it is shown, not obeyed."""

from __future__ import annotations

import io
import logging
from dataclasses import replace

import pytest
from rich.console import Console
from rich.progress import Progress

from together.cluster_types import Device, Endpoint, NodeState, NodeStatus, StageState, StageStatus
from together.desktop.app_status import AppLimit, AppNote, AppServing, AppStatus
from together.desktop.logs import BEGINS
from together.desktop.show import Formatter, draw_stages, one_line, print_table, printable, show_status
from together.sentences import say
from together.types import LayerRange
from together.view import NoteKind, ServingState

EVIL = "a\x1b]0;title\x07\x1b[2Jb\r\nc\u202ed"
ESCAPED = r"a\x1b]0;title\x07\x1b[2Jb\r\nc\u202ed"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("studio", "studio"),
        ("Küche 👩‍💻 厨房", "Küche 👩‍💻 厨房"),  # joined emoji are one letter to a person
        ("a\xa0b", "a\xa0b"),
        ("a\x9b31mb", r"a\x9b31mb"),  # the C1 form of ESC [
        ("a\x00b\x7f", r"a\x00b\x7f"),
        ("a\ud800b", r"a\ud800b"),  # half a character, which no stream can encode
        ("a\u2028b", r"a\u2028b"),
        ("<img>", "<img>"),
        (EVIL, ESCAPED),
    ],
)
def test_what_steers_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert one_line(text) == shown


def test_lines_of_a_longer_text_stay() -> None:
    assert printable("one\n\ttwo\x1b[A") == "one\n\ttwo\\x1b[A"


def test_log_lines_are_escaped() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "node %s is gone", (EVIL,), None)
    assert Formatter("%(levelname)s: %(message)s").format(record).startswith("WARNING: node a\\x1b]0;")


def test_no_name_looks_like_a_line_of_ours() -> None:
    name = "a\r\n2026-01-01 10:00:00,000 ERROR together: all is lost"
    record = logging.LogRecord("x", logging.WARNING, "", 0, "node %s is gone", (name,), None)
    assert not any(map(BEGINS.match, Formatter("%(message)s").format(record).split("\n")))
    assert str(say("node_left", node=name)).startswith("a\\r\\n2026")
    assert str(say("infeasible", error="no", suggestions=("one", say("all", sentences=(name,))))).count("\n") == 2


def status() -> AppStatus:
    """Everything that a stranger's node may say."""
    stage = StageStatus(
        "r", 0, "head", EVIL, 4, LayerRange(0, 2), "cpu", StageState.LOADING, fetch_bytes=1, waiting=EVIL, cause=EVIL
    )
    node = NodeStatus(
        "id",
        EVIL,
        "machine",
        Endpoint((EVIL,), 1),
        1,
        NodeState.DRAINING,
        EVIL,
        (Device(EVIL, EVIL, EVIL, 0, 0),),
        (stage,),
    )
    serving = AppServing(ServingState.WAITING, EVIL, None, "r", f"{EVIL} waits")
    notes = (AppNote("id", NoteKind.MEMORY, f"other programs on {EVIL} need memory"),)
    return AppStatus((node,), serving, f"{EVIL} is slow", f"Last: {EVIL}.", (AppLimit(EVIL),), EVIL, notes=notes)


def test_status_shows_names_advice_and_offer_as_text() -> None:
    stream = io.StringIO()
    show_status(status(), "http://127.0.0.1:1", Console(file=stream, width=1000))
    shown = stream.getvalue()
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert shown.count(ESCAPED) == 10
    assert f"other programs on {ESCAPED} need memory" in shown
    assert f"better: {ESCAPED} is slow; move to it with: python3 launch.py balance" in shown
    assert f"Last: {ESCAPED}. Load it with: python3 launch.py load" in shown


def test_a_narrow_status_breaks_no_address_and_names_a_model_once() -> None:
    stages = tuple(
        StageStatus("r", slot, "head", "SmolLM2-135M-Instruct", 30, layers, "cpu", StageState.READY)
        for slot, layers in enumerate((LayerRange(10, 30), LayerRange(0, 10)))
    )
    devices = (Device("torch", "cpu", "AMD EPYC", 16 * 10**9, 14 * 10**9),)
    address = Endpoint(("192.168.100.120",), 47600)
    node = NodeStatus("id", "studio", "machine", address, 1, NodeState.READY, "", devices, stages)
    stream = io.StringIO()
    show_status(replace(status(), nodes=(node,)), "http://127.0.0.1:1", Console(file=stream, width=80))
    assert "192.168.100.120:47600" in stream.getvalue()
    assert stream.getvalue().count("0:10, 10:30") == stream.getvalue().count("SmolLM2") == 1


def test_progress_of_a_load_shows_names_as_text() -> None:
    progress = Progress(disable=True)
    draw_stages(progress, {}, status())
    assert [task.description for task in progress.tasks] == [f"{ESCAPED} 0:2"]
    assert ESCAPED in str(progress.tasks[0].fields["said"])


def test_a_table_shows_text_as_it_is_and_numbers_in_four_digits() -> None:
    stream = io.StringIO()
    rows = [("[red]x", 1234.5, 0.123456, (1.0, 2.5)), (EVIL, 3, "", 10.0)]
    print_table(("[b]name", "a", "b", "c"), rows, Console(file=stream, width=200))
    shown = stream.getvalue()
    for words in ("[b]name", "[red]x", "1,234", "0.1235", "1, 2.5", ESCAPED, "10"):
        assert words in shown
    print_table(("nothing",), [], Console(file=stream))
    assert "nothing" not in stream.getvalue()
