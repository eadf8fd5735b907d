"""Models of other programs at the command line: listed with whose they are, run by their names, never deleted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_up
from tests.support.gguf_models import make_gguf
from tests.support.hub_home import own_home
from tests.support.lightest import LIGHTEST
from tests.support.other_programs import LIBRARY, OllamaFolder, put
from together.desktop.cli import main

TAG = "llama3.2:3b"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("LMSTUDIO_HOME", str(tmp_path / "studio"))
    return own_home(tmp_path, monkeypatch)


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    """Ollama's file."""
    file = make_gguf(tmp_path / "made")
    return OllamaFolder(tmp_path / "ollama").add(f"{LIBRARY}/llama3.2/3b", file.read_bytes())


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """What a command prints, or says where it fails."""
    capsys.readouterr()
    assert main(list(arguments)) == code
    said = capsys.readouterr()
    return said.err if code else said.out


def test_the_list_says_whose_they_are(blob: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "studio" / "models" / "acme" / "tiny-GGUF" / "tiny-Q8_0.gguf", b"GGUF" * 1000)
    lines = run(capsys, "models").splitlines()
    (ollama,) = (line for line in lines if line.startswith(TAG))
    assert "all layers" in ollama
    assert "Ollama: " in ollama
    (studio,) = (line for line in lines if line.startswith("acme/tiny-GGUF/tiny-Q8_0.gguf"))
    assert "4 kB" in studio
    assert "LM Studio: " in studio
    found = {model["name"]: model for model in json.loads(run(capsys, "models", "--json"))["models"]}
    assert (found[TAG]["program"], found[TAG]["file"]) == ("Ollama", str(blob))
    assert (found[TAG]["fingerprint"], found[TAG]["whole"], found[TAG]["bytes"]) == ("", True, blob.stat().st_size)
    assert found["demo_model"]["program"] is None


def test_inspect_reads_it_where_it_lies(blob: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(blob) in run(capsys, "inspect", TAG)
    row = next(line for line in run(capsys, "models").splitlines() if line.startswith("llama3.2-3b"))
    assert "all 4 layers" in row
    assert "Ollama: " in row


def test_rm_never_deletes_it(blob: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifests = sorted(path for path in blob.parents[1].rglob("*") if path.is_file())
    said = run(capsys, "models", "rm", TAG, "--yes", code=2)
    assert f"{TAG} is in {blob}, which is not this app's own folder; delete it with Ollama" in said
    run(capsys, "inspect", TAG)
    assert f"{blob} stays" in run(capsys, "models", "rm", TAG, "--yes"), "what was read of it is forgotten"
    assert not list((home / "imports").glob("*/*/gguf.json"))
    assert sorted(path for path in blob.parents[1].rglob("*") if path.is_file()) == manifests


def test_rm_leaves_what_lies_beside_a_copied_import(blob: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder in the models folder may be what a file was read as; it is deleted alone."""
    run(capsys, "inspect", TAG)
    (folder,) = (path.parent for path in (home / "imports").glob("*/*/gguf.json"))
    other = put(home / "models" / "other" / "notes.txt")
    os.renames(folder, home / "models" / "moved")
    assert "deleted" in run(capsys, "models", "rm", "moved", "--yes")
    assert other.exists()
    assert blob.exists()


def test_a_file_in_the_models_folder_is_no_download(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = put(home / "models" / "mine.gguf")
    for name in ("mine.gguf", "mine"):
        said = run(capsys, "models", "rm", name, "--yes", code=2)
        assert f"{name} is a file that was not loaded yet, {file}: there is nothing of it to forget" in said
        assert "own folder" not in said
    assert file.exists()


@pytest.mark.full  # tests/scripting/test_gguf.py runs one by its tag
def test_an_app_runs_it_by_its_name(blob: Path, tmp_path: Path) -> None:
    app_folder = tmp_path / "app"
    app_folder.mkdir()
    more = ("--local-nodes", "1", "--layers", "0:4", "--backend", LIGHTEST)  # what is planned is measured on every node
    with run_up(app_folder, "--model", TAG, *more, OLLAMA_MODELS=str(tmp_path / "ollama")) as app:
        assert app.serving()["model"] == "llama3.2-3b"
        answer = app.command("chat", "the", "--max-tokens", "4")
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.strip()
        ring = app.serving()["ring"]
        for named in (TAG, str(blob), os.path.relpath(blob, ROOT)):
            again = app.command("up", "--no-browser", "--model", named)
            assert again.stdout.splitlines()[1:] == ["llama3.2-3b is served there already"], again.stderr
        assert app.serving()["ring"] == ring
        again = app.command("load", str(blob))
        assert again.returncode == 0, again.stderr
        assert app.command("plan", "--model", TAG).returncode == 0
        assert app.command("models", "rm", "llama3.2-3b", "--yes").returncode == 0
    assert blob.exists()
