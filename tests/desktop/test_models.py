"""`launch.py models`: list, pull, rm, export; all of it offline but pull."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, RealApp, until
from tests.support.folders import SHAPES
from tests.support.gguf_models import make_gguf
from tests.support.hub_home import own_home, own_hub
from tests.support.mlx_folders import make_plain
from tests.support.patience import PATIENCE
from tests.support.pieces import carry, flip, random_model
from together.desktop.cli import main
from together.desktop.models import remove
from together.errors import BadSetting
from together.models.form import asked_form
from together.models.manifest import describe, read_manifest
from together.weights.converting import make_units
from together.weights.imports import imported, imports
from together.weights.store import Store, begin_form

REPO = "acme/tiny"
LARGER = SHAPES | {"model.layers.0.mlp.up_proj.weight": (50_000, 8)}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_home(tmp_path, monkeypatch)


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    assert main(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["nodes"] == {}
    return {model["name"]: model for model in found["models"]}


# --- list -------------------------------------------------------------------------------------------------------------


def test_the_list(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = random_model(home / "models" / "mine")
    random_model(home / "models" / "org" / "deep")
    manifest = carry(Store(home), random_model(tmp_path / "part", initializer_range=1), "layer-00001.safetensors")
    broken = random_model(home / "models" / "broken")
    (broken / "model.safetensors").write_bytes(b"x")
    found = listed(capsys)
    assert found.keys() == {"demo_model", "mine", "org/deep", "part", "broken"}
    assert found["demo_model"]["whole"]
    assert (found["mine"]["path"], found["mine"]["held"], found["mine"]["whole"]) == (str(own), [[0, 2]], True)
    part = found["part"]
    assert (part["held"], part["units"], part["layers"]) == ([[1, 2]], ["layer-00001.safetensors"], 2)
    assert (part["whole"], part["fingerprint"], part["fault"]) == (False, manifest.fingerprint, None)
    assert part["bytes"] > manifest.units["layer-00001.safetensors"].size
    assert "model.safetensors is broken" in found["broken"]["fault"]
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "layers 1:2 of 2" in out
    assert "all 8 layers" in out
    assert "broken: " in out


def test_what_nodes_of_the_running_app_hold(real_app: RealApp) -> None:
    found = json.loads(real_app.command("models", "--json").stdout)
    held = found["nodes"]["toy"]
    assert sorted(ranges for node in held.values() for ranges in node) == ["0:2", "2:4"]
    shown = real_app.command("models").stdout
    assert "holds layers 0:2" in shown


# --- pull -------------------------------------------------------------------------------------------------------------


def test_pull_some_layers_then_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with own_hub(monkeypatch) as hub:
        hub.add(REPO, random_model(tmp_path / "tiny"))
        assert main(["models", "pull", REPO, "--layers", "0:1"]) == 0
        assert f"{REPO}: embed, layers 0:1 are in " in capsys.readouterr().out
        assert listed(capsys)[REPO]["held"] == [[0, 1]]
        assert main(["models", "pull", REPO]) == 0
        assert listed(capsys)[REPO]["whole"]
        hub.served.clear()
        assert main(["models", "pull", REPO]) == 0
        assert hub.weights_served() < 1200, "a header to see whether it is still the same; no weights"
    assert listed(capsys)[REPO]["revision"] == hub.commit(REPO)


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is a signal")
def test_ctrl_c_leaves_a_part_that_goes_on(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = random_model(tmp_path / "tiny", LARGER)
    with own_hub(monkeypatch) as hub:
        hub.add(REPO, folder)
        hub.bytes_per_s = 100_000
        command = [sys.executable, "-m", "together", "models", "pull", REPO]
        pulling = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            parts = Store(home).folder(describe(folder).fingerprint)
            part = parts / "layer-00000.safetensors.part"
            until(lambda: part.exists() and part.stat().st_size > 20_000, PATIENCE, "bytes arrive")
            pulling.send_signal(signal.SIGINT)
            out, error = pulling.communicate(timeout=PATIENCE)
        finally:
            pulling.kill()
        assert pulling.returncode == 130
        assert f"stopped; python3 launch.py pull {REPO} resumes it" in out
        assert "Traceback" not in error
        left = part.stat().st_size
        hub.bytes_per_s = 0
        hub.asked.clear()
        assert main(["models", "pull", REPO]) == 0
        unit = describe(folder).units["layer-00000.safetensors"]
        (piece,) = unit.pieces
        assert (piece.file, piece.stop - (unit.size - left), piece.stop) in hub.asked
    assert listed(capsys)[REPO]["whole"]


def test_pull_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def error_of(code: int, *arguments: str) -> str:
        assert main(["models", "pull", *arguments]) == code
        return capsys.readouterr().err

    assert "not the name of a model on the hub" in error_of(2, "tiny")
    assert "not the name of a model on the hub" in error_of(2, "../tiny")
    assert "does not answer" in error_of(1, REPO)
    with own_hub(monkeypatch) as hub:
        folder = random_model(tmp_path / "tiny")
        hub.add(REPO, folder)
        assert "has no model acme/none" in error_of(2, "acme/none")
        assert "--layers: a layer range is written start:stop" in error_of(2, REPO, "--layers", "1-2")
        assert "has 2 layers, not 1:9" in error_of(2, REPO, "--layers", "1:9")
        flip(folder / "model.safetensors")
        hub.falsified["model.safetensors"] = (folder / "model.safetensors").read_bytes()
        flip(folder / "model.safetensors")
        assert "model.safetensors of acme/tiny is broken" in error_of(2, REPO)


# --- rm ---------------------------------------------------------------------------------------------------------------


def test_rm_asks_and_deletes_what_is_the_apps(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = random_model(home / "models" / "mine")
    carry(Store(home), random_model(tmp_path / "part", initializer_range=1), "layer-00001.safetensors")
    asked: list[str] = []

    def no(question: str) -> bool:
        asked.append(question)
        return False

    assert not remove("mine", home, no)
    assert asked == [f"Delete mine, {asked[0].split(', ')[1]}, from {own}?"]
    assert own.exists()
    assert main(["models", "rm", "mine", "--yes"]) == 0
    assert main(["models", "rm", "part", "--yes"]) == 0
    assert not own.exists()
    assert listed(capsys).keys() == {"demo_model"}
    assert (tmp_path / "part" / "model.safetensors").exists(), "where it came from is not the app's"


def test_rm_without_a_terminal_deletes_nothing(real_app: RealApp) -> None:
    own = random_model(real_app.home / "models" / "kept")
    said = real_app.command("models", "rm", "kept")
    assert said.returncode == 1
    assert own.exists()
    assert real_app.command("models", "rm", "kept", "--yes").returncode == 0
    assert not own.exists()


def test_rm_never_touches_other_folders(home: Path, tmp_path: Path) -> None:
    def never(question: str) -> bool:
        raise AssertionError(question)

    elsewhere = random_model(tmp_path / "elsewhere")
    (home / "models").mkdir(parents=True)
    links = [home / "models" / "linked", home / "models" / "org"]
    random_model(tmp_path / "org" / "deep")
    try:
        for link, target in zip(links, (elsewhere, tmp_path / "org"), strict=True):
            link.symlink_to(target, target_is_directory=True)
    except OSError:
        pytest.skip("this user may not make links")
    for name in ("demo_model", "linked", "org/deep"):
        with pytest.raises(BadSetting, match="not this app's own folder"):
            remove(name, home, never)
    for name in ("nothing", "..", str(elsewhere)):
        with pytest.raises(BadSetting, match="there is no model"):
            remove(name, home, never)
    assert (elsewhere / "model.safetensors").exists()
    assert (tmp_path / "org" / "deep" / "model.safetensors").exists()


def test_forms_are_listed_and_deleted_one_by_one(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, store = make_plain(home / "models" / "mine", "llama", "bf16", num_hidden_layers=1), Store(home)
    units = {}
    for quantize in ("4", "mxfp4"):
        form = asked_form(quantize)
        assert form is not None
        begun = begin_form(folder, describe(folder), form, store)
        units[form] = read_manifest(begun).units
        make_units(store, folder, begun.name, ["norm.safetensors", "layer-00000.safetensors"], lambda done: None)
    begin_form(folder, describe(folder), "mlx-affine-8-g64@1", store)  # only planned for

    assert main(["models", "--json"]) == 0
    found = [model for model in json.loads(capsys.readouterr().out)["models"] if model["name"] == "mine"]
    assert {model["form"] for model in found} == {"", "mlx-affine-8-g64@1", *units}
    for form, made in units.items():
        (model,) = (model for model in found if model["form"] == form)
        assert model["units"] == ["layer-00000.safetensors", "norm.safetensors"]
        assert model["bytes"] > sum(made[name].size for name in model["units"])
    assert main(["models"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("mine")]
    assert [words[1:3] for words in shown] == [["as", "published"], ["4", "bit"], [shown[2][1], shown[2][2]]]
    assert shown[2][1] == "mxfp4"

    assert main(["models", "rm", "mine", "--quantize", "mxfp4", "--yes"]) == 0
    assert {path.name.partition(".")[2] for path in (home / "shards").glob("[0-9a-f]*")} == {
        "mlx-affine-4-g64@1",
        "mlx-affine-8-g64@1",
    }
    assert main(["models", "rm", "mine", "--quantize", "mxfp4", "--yes"]) == 2
    assert "it is here: as published, 4 bit" in capsys.readouterr().err
    assert main(["models", "rm", "mine", "--yes"]) == 0
    assert list((home / "shards").glob("[0-9a-f]*")) == []
    assert not folder.exists()


# --- export -----------------------------------------------------------------------------------------------------------


def test_export_makes_a_folder_that_is_a_model(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_model(home / "models" / "mine")
    target = tmp_path / "usb" / "first"
    target.parent.mkdir()
    assert main(["models", "export", "mine", "--layers", "0:1", str(target)]) == 0
    assert "mine: embed, layers 0:1 of 2 layers, " in capsys.readouterr().out
    assert sorted(file.name for file in target.iterdir()) == [
        "config.json",
        "embed.safetensors",
        "layer-00000.safetensors",
        "manifest.json",
        "tokenizer.json",
    ]
    assert main(["inspect", str(target), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == 2
    assert main(["models", "export", str(home / "models" / "mine"), str(tmp_path / "all")]) == 0
    assert (tmp_path / "all" / "head.safetensors").is_file()


def test_export_says_what_is_wrong(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error_of(*arguments: object) -> str:
        assert main(["models", "export", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    random_model(home / "models" / "mine")
    assert "exists already" in error_of("mine", home / "models")
    assert "has 2 layers, not 0:3" in error_of("mine", "--layers", "0:3", tmp_path / "x")
    assert "python3 launch.py pull acme/tiny" in error_of(REPO, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_gguf_file_is_listed_where_it_lies_and_never_deleted(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = make_gguf(tmp_path / "files")
    folder = imported(file, home)
    found = listed(capsys)["tiny"]
    assert (found["path"], found["file"], found["whole"]) == (str(folder), str(file), True)
    assert main(["models"]) == 0
    assert str(file) in capsys.readouterr().out.replace("\n", "")
    question = f"Forget tiny, which was read from {file}, in {folder}? The file stays."
    assert not remove("tiny", home, lambda asked: asked != question)
    assert main(["models", "rm", "tiny", "--yes"]) == 0
    assert f"{file} stays" in capsys.readouterr().out.replace("\n", "")
    assert file.is_file()
    assert imports(home) == []
    assert "tiny" not in listed(capsys)
