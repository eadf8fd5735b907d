"""Models of other programs are chosen by the names that people know, and run from where they lie."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.gguf_models import make_gguf
from tests.support.other_programs import LIBRARY, MODEL, OllamaFolder, hub_file
from tests.support.pieces import random_model
from together.errors import BadSetting, BrokenModel
from together.models.manifest import describe
from together.models.spec import read_runnable
from together.weights.find import find_units, known_models, resolve_model
from together.weights.imports import imports
from together.weights.part import size_of


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("gguf") / "files")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOGETHER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LMSTUDIO_HOME", str(tmp_path / "studio"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "llama"))
    return tmp_path / "home"


@pytest.fixture
def ollama(tmp_path: Path, original: Path) -> Path:
    """The folder of Ollama with two tags of one blob."""
    folder = OllamaFolder(tmp_path / "ollama")
    for tag in ("3b", "latest"):
        folder.add(f"{LIBRARY}/llama3.2/{tag}", original.read_bytes())
    return folder.root


def place(original: Path, file: Path) -> Path:
    file.parent.mkdir(parents=True)
    shutil.copyfile(original, file)
    return file


def files_below(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every file, with its size and time of change."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


@pytest.mark.parametrize("text", ["llama3.2:3b", "LLAMA3.2:3B", "llama3.2-3b"])
def test_a_tag_of_ollama(home: Path, ollama: Path, text: str) -> None:
    before = files_below(ollama)
    folder = resolve_model(text, home)
    assert isinstance(folder, Path)
    assert describe(folder).name == "llama3.2-3b"
    assert read_runnable(folder).packings
    assert files_below(ollama) == before, "it is only read"
    assert sum(map(size_of, home.rglob("*"))) < sum(size for size, _ in before.values()) / 10, "nor is it copied"


def test_a_tag_that_is_left_out(home: Path, ollama: Path) -> None:
    folder = resolve_model("llama3.2", home)
    assert isinstance(folder, Path)
    assert describe(folder).name == "llama3.2"
    other = resolve_model("llama3.2:3b", home)
    assert other != folder, "each tag has its name"
    assert resolve_model("llama3.2", home) == folder
    assert isinstance(other, Path)
    assert describe(folder).key == describe(other).key


def test_a_manifest_or_a_blob_by_its_path(home: Path, ollama: Path) -> None:
    """The page and the menu choose by these."""
    manifest = ollama / "manifests" / LIBRARY / "llama3.2" / "3b"
    folder = resolve_model(str(manifest), home)
    assert isinstance(folder, Path)
    assert describe(folder).name == "llama3.2-3b"
    (blob,) = (path for path in (ollama / "blobs").iterdir() if path.stat().st_size > 10_000)
    assert resolve_model(str(blob), home) == folder


def test_a_hashed_file_of_no_program(home: Path, original: Path, tmp_path: Path) -> None:
    file = place(original, tmp_path / "away" / "sha256-0123")
    folder = resolve_model(str(file), home)
    assert isinstance(folder, Path)
    assert describe(folder).name == "sha256-0123"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("studio/models/acme/tiny-GGUF/tiny-Q4_K_M.gguf", "acme/tiny-GGUF/tiny-Q4_K_M.gguf"),
        ("studio/models/acme/tiny-GGUF/tiny-Q4_K_M.gguf", "acme/tiny-GGUF"),
        ("llama/acme_tiny-GGUF_tiny-Q4_K_M.gguf", "acme_tiny-GGUF_tiny-Q4_K_M"),
        ("home/models/tiny-Q4_K_M.gguf", "tiny-Q4_K_M"),
    ],
)
def test_files_of_other_programs(home: Path, original: Path, tmp_path: Path, file: str, text: str) -> None:
    place(original, tmp_path / file)
    folder = resolve_model(text, home)
    assert isinstance(folder, Path)
    assert describe(folder).name == Path(file).stem


def test_a_file_of_the_hubs_cache(home: Path, original: Path, tmp_path: Path) -> None:
    hub_file(tmp_path / "hub", "acme/tiny-GGUF", "Q4/tiny-Q4_K_M.gguf", original.read_bytes())
    folder = resolve_model("acme/tiny-GGUF/tiny-Q4_K_M.gguf", home)
    assert isinstance(folder, Path)
    assert describe(folder).name == "tiny-Q4_K_M"


def test_a_folder_of_safetensors(home: Path, tmp_path: Path) -> None:
    folder = random_model(tmp_path / "studio" / "models" / "mlx-community" / "tiny-4bit")
    assert resolve_model("mlx-community/tiny-4bit", home) == folder
    assert resolve_model("tiny-4bit", home) == folder
    (folder / "model.safetensors").write_bytes(b"a download that goes on")
    assert resolve_model("mlx-community/tiny-4bit", home) == "mlx-community/tiny-4bit", "the hub has it whole"


def test_what_was_loaded_has_its_name_too(home: Path, original: Path, tmp_path: Path) -> None:
    file = place(original, tmp_path / "away" / "mine.gguf")
    folder = resolve_model(str(file), home)
    assert resolve_model("mine", home) == folder
    again = place(original, tmp_path / "llama" / "mine.gguf")
    with pytest.raises(BadSetting, match=r"'mine' is the name of 2 models here") as refused:
        resolve_model("mine", home)
    assert all(str(path) in str(refused.value) for path in (file, again))
    file.unlink()
    assert resolve_model("mine", home) == resolve_model(str(again), home)


def test_once_chosen_it_is_listed_as_read(home: Path, ollama: Path) -> None:
    resolve_model("llama3.2:3b", home)
    found = {model.name: model for model in known_models(home) if model.program}
    assert found.keys() == {"llama3.2-3b", "llama3.2:latest"}
    read = found["llama3.2-3b"]
    assert (read.program, read.whole, read.layers, read.unread) == ("Ollama", True, 4, False)
    assert read.where.startswith(f"Ollama: {ollama}{os.sep}blobs")
    assert found["llama3.2:latest"].unread


def test_what_is_no_gguf_file_says_so(home: Path, tmp_path: Path) -> None:
    folder = OllamaFolder(tmp_path / "ollama")
    folder.tag(f"{LIBRARY}/bad/1b", folder.manifest((MODEL, folder.blob(b"no such thing"))))
    with pytest.raises(BrokenModel, match="it is no GGUF file"):
        resolve_model("bad:1b", home)
    assert imports(home) == []


def test_another_machines_order_finds_it_here(home: Path, ollama: Path, original: Path, tmp_path: Path) -> None:
    """Two machines have one model, each from a program of its own: no byte of it travels."""
    elsewhere = resolve_model(str(original), tmp_path / "head")
    assert isinstance(elsewhere, Path)
    model = describe(elsewhere).ref("/of/another/machine")
    assert find_units(model, home).folder is None, "called otherwise, and not loaded before"
    resolve_model("llama3.2:3b", home)
    assert len(find_units(model, home).units) == len(describe(elsewhere).units)
