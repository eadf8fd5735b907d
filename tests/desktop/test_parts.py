"""The parts of the command line that need no running app: lock and arguments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.checksum import make_checksum_model
from tests.support.patience import PATIENCE
from together.desktop.cli import main
from together.desktop.cli_models import model_of, request_of, saved_plan
from together.desktop.client import AppLock, find_running, read_announced
from together.errors import BadInput, BadSetting
from together.planning.request import parse_layers
from together.settings import Settings

# --- lock -------------------------------------------------------------------------------------------------------------


def test_one_lock_per_home(tmp_path: Path) -> None:
    first, second = AppLock(tmp_path), AppLock(tmp_path)
    assert first.acquire()
    assert not second.acquire()
    first.announce("http://127.0.0.1:1", "")
    announced = read_announced(tmp_path)
    assert announced is not None
    assert (announced.url, announced.pid) == ("http://127.0.0.1:1", os.getpid())
    first.release()
    assert read_announced(tmp_path) is None
    assert second.acquire()
    second.release()


def test_a_crash_leaves_the_lock_free_and_the_port_file_stale(tmp_path: Path) -> None:
    crash = (
        "import os, sys, pathlib; from together.desktop.client import AppLock\n"
        "lock = AppLock(pathlib.Path(sys.argv[1]))\n"
        "assert lock.acquire()\nlock.announce('http://127.0.0.1:9', '')\nos._exit(1)"
    )
    subprocess.run([sys.executable, "-c", crash, str(tmp_path)], cwd=ROOT, check=False, timeout=PATIENCE)
    assert read_announced(tmp_path) is not None
    assert find_running(tmp_path) is None
    lock = AppLock(tmp_path)
    assert lock.acquire()
    assert read_announced(tmp_path) is None
    lock.release()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": "x", "url": "u", "version": "v"}', "\x00"])
def test_a_broken_port_file_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "app.json").write_text(text)
    assert read_announced(tmp_path) is None


# --- arguments --------------------------------------------------------------------------------------------------------


def test_layers_are_checked_against_the_model(tmp_path: Path) -> None:
    folder = str(make_checksum_model(tmp_path / "toy", layers=4))
    assert request_of(folder, "uniform").strategy == "uniform"
    for right in ("0:4", "0:1,1:3,3:4", "anna=0:1,berta=1:4", "0-0,1-3"):
        request = request_of(folder, "uniform", layers=right)
        assert (request.strategy, request.assignments) == ("custom", parse_layers(right))
    for wrong in ("0:2", "0:2,2:5", "0:2,3:4", "0:2,1:4", "1:4", "x", "2:0", ""):
        with pytest.raises(BadInput, match="--layers"):
            request_of(folder, "uniform", layers=wrong)


def test_a_folder_without_a_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"config\.json"):
        model_of(str(tmp_path), Settings(home=str(tmp_path)))


def test_a_saved_plan_is_what_layers_takes(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    stages = [{"node": "anna", "start": 0, "stop": 3}, {"node": "berta", "start": 3, "stop": 4}]
    file.write_text(json.dumps({"stages": stages, "context": 1024, "users": 2}))
    saved = saved_plan(file)
    assert (saved.layers, saved.context, saved.users) == ("anna=0:3,berta=3:4", 1024, 2)
    for wrong in ("", "[]", '{"error": "nothing fits"}', '{"stages": [{"node": "a"}]}'):
        file.write_text(wrong)
        with pytest.raises(BadSetting, match=r"is not what python3 launch\.py plan --json writes"):
            saved_plan(file)
    with pytest.raises(BadSetting, match=r"none\.json"):
        saved_plan(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status"], "not running"),
        (["stop"], "not running"),
        (["up", "--model", "nowhere/at/all"], "nowhere/at/all"),
        (["--model", "nowhere/at/all"], "nowhere/at/all"),  # up is the default
        (["node", "--peer", "x:"], "host:port"),
        (["node", "--host", "203.0.113.1"], "no address for '203.0.113.1'"),
        (["up", "--host", "203.0.113.1", "--no-browser"], "no address for '203.0.113.1'"),
        (["status", "--log-level", "LOUD"], "LOUD"),
    ],
)
def test_errors_are_one_sentence(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOGETHER_HOME", str(tmp_path))
    assert main(arguments) == (1 if said == "not running" else 2)
    error = capsys.readouterr().err
    assert error.startswith("together: ")
    assert said in error
    assert error.count("\n") == 1


def test_an_unknown_option_is_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--nonsense"]) == 2
    assert "--nonsense" in capsys.readouterr().err
