"""The `doctor` command on a real machine and app."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from tests.conftest import RealApp
from tests.support.checksum import make_checksum_model
from tests.support.cluster import cluster_settings
from together.checkout import own_version
from together.desktop.cli import main


def doctor(home: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    settings = cluster_settings(home)
    monkeypatch.setenv("TOGETHER_HOME", str(home))
    monkeypatch.setenv("TOGETHER_NODE_PORT", str(settings.node_port))
    monkeypatch.setenv("TOGETHER_CLUSTER", settings.cluster)
    monkeypatch.setenv("TOGETHER_MEMORY", "4GB")
    return main(["doctor", "--backend", "checksum", *arguments])


@pytest.mark.full  # the command has two more here, its sentences are in test_doctor.py
def test_the_command_says_all_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = make_checksum_model(tmp_path / "toy", step_ms=1)
    code = doctor(tmp_path / "home", monkeypatch, "--model", str(toy), "--json")
    answer = json.loads(capsys.readouterr().out)
    wrong = [problem["what"] for problem in answer["problems"] if "free on the disk" not in problem["what"]]
    assert wrong == []
    assert code == (0 if answer["ok"] else 1)
    (measured,) = answer["facts"]["measured"]
    assert measured["device"] == "checksum/cpu"
    assert measured["profile"]["ms_per_layer"] > 0.5
    assert kept_profiles(tmp_path / "home") == [measured["profile"]]
    assert answer["facts"]["system"] == platform.system()


def kept_profiles(home: Path) -> list[dict[str, float]]:
    """What plans go by, with and without an app."""
    files = (home / "profiles").glob("*.json")
    return [json.loads(file.read_text())["found"]["profile"] for file in files]


def test_the_command_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(tmp_path / "home", monkeypatch) == 1  # the toy's backend does not run the usual shape
    text = capsys.readouterr().out
    assert "- checksum/cpu was not measured (node" in text
    assert "runs only its toy" in text


def test_a_model_that_is_not_here_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(tmp_path, monkeypatch, "--model", "org/name") == 2
    assert "org/name is not on this machine" in capsys.readouterr().err


def test_a_home_that_cannot_be_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert doctor(tmp_path / "file" / "home", monkeypatch) == 1
    assert "set TOGETHER_HOME to another one" in capsys.readouterr().err


def test_a_running_app_is_looked_at(real_app: RealApp) -> None:
    toy = real_app.home.parent / "toy"
    answer = real_app.command("doctor", "--backend", "checksum", "--model", str(toy), "--json")
    facts = json.loads(answer.stdout)["facts"]
    assert facts["measured"][0]["profile"] in kept_profiles(real_app.home)
    found = facts["app"]
    assert found["trouble"] == ""
    assert [node["version"] for node in found["nodes"]] == [own_version()] * 2
    assert [stage["layers"] for stage in found["ring"]] == ["0:2", "2:4"]
    assert all(stage["ms"] > 2 for stage in found["ring"])  # the toy waits 2 ms in each layer
    (link,) = found["links"]
    assert link["ms"] > 0
    assert {stage["place"] for stage in found["ring"]} == {link["a"], link["b"]}
