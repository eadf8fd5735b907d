"""GGUF files in the commands: inspect, plan and pull tell what they are, from a disk and from the hub alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.gguf_models import make_gguf
from tests.support.hub_home import own_home, own_hub
from together.desktop.cli import main
from together.desktop.planned import planned_model
from together.errors import UnsupportedModel
from together.head.plan import open_model
from together.models.form import asked_form
from together.models.spec import read_spec
from together.planning.memory import quantized_sizes
from together.settings import Settings
from together.types import LayerRange
from together.weights.imports import imported

WHOLE = LayerRange(0, 4)
REPO, FILE = "acme/tiny-GGUF", "tiny.Q4_K_M.gguf"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_home(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("gguf") / "files", FILE)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("gguf") / "files", "plain.gguf", plain=True)


def inspect(capsys: pytest.CaptureFixture[str], model: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["inspect", str(model), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_inspect_tells_what_each_backend_holds(file: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(capsys, file)
    assert found["supported"]
    weights = read_spec(imported(file, home)).stage_weights
    sixes = sum(count for packing, count in weights(WHOLE).packed if packing.group == 16)
    fours = sum(count for packing, count in weights(WHOLE).packed if packing.group == 32)
    assert sixes > fours / 10
    assert found["held_bytes"]["mlx"] > 2 * (sixes - 320 * 256) + fours / 2, "groups of 16 are plain there"
    assert main(["inspect", str(file)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "GGUF Q4_K, Q6_K: affine 4 bit" in said
    assert "bits per weight" in said
    assert "are weights in groups of 16, which it holds plain" in said
    assert str(file) in said.replace(" ", "")


def test_inspect_and_pull_from_the_hub(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    local = inspect(capsys, file)
    with own_hub(monkeypatch) as hub:
        hub.add(REPO, file.parent)
        there = inspect(capsys, f"{REPO}/{FILE}")
        other = ("name", "path", "revision")
        assert {key: value for key, value in there.items() if key not in other} == {
            key: value for key, value in local.items() if key not in other
        }
        assert (there["name"], there["path"]) == (f"{REPO}/{FILE}", None)
        assert main(["pull", REPO, "--layers", "0:1"]) == 0
        assert f"{REPO}/{FILE}: embed, layers 0:1 are in" in " ".join(capsys.readouterr().out.split())


def test_a_plan_counts_the_files_bytes(file: Path, home: Path) -> None:
    summary = planned_model(str(file), home).summary
    assert sum(part.bytes for part in summary.parts) < file.stat().st_size
    assert summary.layers[0].bytes < 0.4 * 2 * summary.layers[0].params


def test_no_quantization_of_a_gguf_file_is_offered_or_made(file: Path, plain: Path, home: Path) -> None:
    for each in (file, plain):
        spec = read_spec(imported(each, home))
        assert quantized_sizes(spec, spec.dtype, ("torch", "mlx")) == ()


@pytest.mark.parametrize("packed", [True, False])
async def test_quantize_is_refused_in_words(file: Path, plain: Path, home: Path, packed: bool) -> None:
    said = "is quantized already" if packed else "is GGUF and not quantized again; load it as it is"
    with pytest.raises(UnsupportedModel, match=said):
        await open_model(file if packed else plain, Settings(home=str(home)), asked_form("4", None))
