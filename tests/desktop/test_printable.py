"""Names from other machines in a terminal: what would steer it is shown, not obeyed."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from together.desktop.loading import Bars
from together.desktop.show import Formatter, one_line, printable, show_status

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


def stage() -> dict[str, Any]:
    layers = {"start": 0, "stop": 2}
    more = {"fetched_bytes": 0, "fetch_bytes": 1, "progress": 0.5, "waiting": EVIL}
    return {"ring": "r", "slot": 0, "layers": layers, "model": EVIL} | more


def status() -> dict[str, Any]:
    """As `/status` answers it: everything that a stranger's node may say."""
    node = {
        "name": EVIL,
        "state": "FAILED",
        "cause": EVIL,
        "devices": [{"description": EVIL, "name": EVIL}],
        "stages": [stage()],
        "free_bytes": 0,
        "memory_bytes": 0,
        "endpoint": {"addresses": [EVIL], "port": 1},
    }
    said = {"reason": "", "advice": f"{EVIL} is slow", "offer": f"Last: {EVIL}.", "limits": [{"text": EVIL}]}
    serving = {"model": EVIL, "sentence": f"{EVIL} waits", "plan": None, "ring": "r"}
    return {"nodes": [node], "serving": serving, **said}


def test_status_shows_names_advice_and_offer_as_text() -> None:
    stream = io.StringIO()
    show_status(status(), "http://127.0.0.1:1", Console(file=stream, width=1000))
    shown = stream.getvalue()
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert shown.count(ESCAPED) == 9
    assert f"better: {ESCAPED} is slow; move to it with: python3 launch.py balance" in shown
    assert f"Last: {ESCAPED}. Load it with: python3 launch.py load" in shown


def test_progress_of_a_load_shows_names_as_text() -> None:
    progress = Progress(disable=True)
    Bars(progress).draw(status())
    assert [task.description for task in progress.tasks] == [f"{ESCAPED} 0:2"]
