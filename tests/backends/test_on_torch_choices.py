"""A machine that chose a kernel keeps to it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from backends.on_torch.choices import confirmed, recalled
from tests.support.patience import PATIENCE

_ASK = """
import sys, pathlib, torch
from backends.on_torch.kernels import Precision, called, fastest_kernel
from together.types import Packing
home = pathlib.Path(sys.argv[1])
precision = Precision(torch.float32, torch.device("cpu"), False, home)
print(called(fastest_kernel(Packing("affine", 4, 64), 384, precision)))
"""


def _chosen_by_a_process(home: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", _ASK, str(home)], capture_output=True, text=True, check=True, timeout=PATIENCE
    ).stdout.strip()


def _kept(home: Path) -> Path:
    (file,) = (home / "kernels").glob("*.json")
    return file


@pytest.mark.full  # what is kept is looked at here
def test_another_process_computes_with_the_kernel_that_was_chosen(tmp_path: Path) -> None:
    """Also where its own trial would say otherwise: here, whatever the first one did not say."""
    first = _chosen_by_a_process(tmp_path)
    file = _kept(tmp_path)
    other = next(name for name in ("NBits", "Int4", "Tiles") if name != first)
    file.write_text(file.read_text().replace(first, other))
    assert _chosen_by_a_process(tmp_path) == other


@pytest.mark.parametrize(
    "spoil",
    [
        lambda kept: kept | {"build": "an older library"},
        lambda kept: kept | {"chosen": dict.fromkeys(kept["chosen"], "a kernel that is gone")},
        lambda kept: {},
    ],
    ids=["build", "kernel", "broken"],
)
def test_a_choice_that_no_longer_holds_is_made_anew(tmp_path: Path, spoil: Callable[[Any], Any]) -> None:
    names, calls = ["one", "two"], []

    def choose() -> str:
        calls.append(names)
        return "two"

    assert [recalled(tmp_path, key, names, choose) for key in ("a", "a", "b")] == ["two"] * 3
    assert len(calls) == 2
    file = _kept(tmp_path)
    file.write_text(json.dumps(spoil(json.loads(file.read_text()))))
    assert [recalled(tmp_path, "a", names, choose) for _ in range(2)] == ["two"] * 2
    assert len(calls) == 3


def test_where_nothing_can_be_kept_each_chooses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "kernels").write_text("a file where the folder would be")
    assert recalled(tmp_path, "a", ["one"], lambda: "one") == "one"
    assert "cannot keep which kernels were chosen" in caplog.text


def test_who_asks_while_another_tries_gets_its_answer(tmp_path: Path) -> None:
    trying, go = threading.Event(), threading.Event()

    def slow() -> str:
        trying.set()
        assert go.wait(PATIENCE)
        return "one"

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(recalled, tmp_path, "a", ["one", "two"], slow)
        assert trying.wait(PATIENCE)
        second = pool.submit(recalled, tmp_path, "a", ["one", "two"], lambda: "two")
        go.set()
        assert (first.result(PATIENCE), second.result(PATIENCE)) == ("one", "one")


@pytest.mark.parametrize(
    ("winners", "chosen"), [(["a"], "a"), (["b", "b"], "b"), (["b", "a"], "a"), (["b", "c"], "a")], ids=str
)
def test_another_than_the_first_must_win_twice(winners: list[str], chosen: str) -> None:
    trials = iter(winners)
    assert confirmed(lambda: next(trials), "a") == chosen
    assert next(trials, None) is None
