"""Folders and files that hold no model for us are told by what they are, with the next step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.folders import write_model
from together.errors import BadSetting, BrokenModel, TogetherError, UnsupportedModel
from together.models.folder import require_whole
from together.models.spec import read_runnable, read_shape
from together.weights.find import resolve_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4206608\n"


def refusal(path: Path, home: Path) -> str:
    """What a person reads who names this path."""
    try:
        found = resolve_model(str(path), home)
        assert isinstance(found, Path)
        read_runnable(found)
    except TogetherError as error:
        return str(error)
    raise AssertionError(f"{path} was not refused")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"adapter_config.json": '{"base_model_name_or_path": "org/base"}', "adapter_model.safetensors": ""},
            "org/base",
        ),
        ({"adapter_config.json": "[]"}, "adapter"),
        ({"pytorch_model.bin": "x"}, "safetensors version"),
        ({"model.pth": "x"}, "pickle"),
        ({"model.safetensors.incomplete": "x"}, "download that did not end"),
        ({"model.safetensors.aria2": "x"}, "run it again"),
        ({"a.safetensors": "", "b.safetensors": ""}, "index.json"),
    ],
)
@pytest.mark.parametrize("config", [True, False])
def test_folders_without_weights(tmp_path: Path, files: dict[str, str], words: str, config: bool) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    if not config:
        (folder / "config.json").unlink()
    for name, text in files.items():
        (folder / name).write_text(text)
    said = refusal(folder, tmp_path)
    assert "get this model again" not in said
    if config or "index.json" not in words:
        assert words in said


def test_the_librarys_unfinished_download(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    rest = folder / ".cache" / "huggingface" / "download"
    rest.mkdir(parents=True)
    (rest / "abc.incomplete").write_text("")
    assert "did not end" in refusal(folder, tmp_path)


@pytest.mark.parametrize("name", ["model.gguf", "MODEL.GGUF", "model.safetensors", "config.json", "notes.txt"])
def test_a_file_in_the_place_of_a_folder(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text("x")
    said = refusal(file, tmp_path)
    assert name in said
    assert ("GGUF" if name.lower().endswith("gguf") else "folder") in said


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_pointers_of_git_lfs_in_what_is_read(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "m")
    (folder / name).write_text(POINTER)
    assert "git lfs pull" in refusal(folder, tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "chat_template.jinja"])
def test_pointers_of_git_lfs_beside_the_weights(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(BrokenModel, match=rf"{name} is a pointer of Git LFS.*git lfs pull"):
        require_whole(tmp_path, ["config.json", name])


@pytest.mark.parametrize(("name", "word"), [("tokenizer.model", "tokenizer.json"), ("modules.json", "embedding")])
def test_folders_with_other_words_or_another_purpose(tmp_path: Path, name: str, word: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(UnsupportedModel, match=word):
        require_whole(tmp_path, [])


# --- the hub's cache --------------------------------------------------------------------------------------------------


def cached(root: Path, *commits: str, main: str | None = None) -> Path:
    """`models--org--name` with these snapshots; each has as many layers as its place in the list."""
    top = root / "models--org--name"
    for i, commit in enumerate(commits):
        write_model(top / "snapshots" / commit, num_hidden_layers=i + 1)
    if main is not None:
        (top / "refs").mkdir()
        (top / "refs" / "main").write_text(f"{main}\n")
    return top


@pytest.mark.parametrize("part", ["", "snapshots"])
def test_a_folder_above_the_snapshot_takes_refs_main(tmp_path: Path, part: str) -> None:
    top = cached(tmp_path, "a1", "b2", main="b2")
    assert resolve_model(str(top / part), tmp_path) == top / "snapshots" / "b2"
    assert read_shape(top / "snapshots" / "b2").layers == 2


@pytest.mark.parametrize("main", [None, "gone", "../../x"])
def test_the_only_snapshot_needs_no_ref(tmp_path: Path, main: str | None) -> None:
    top = cached(tmp_path, "a1", main=main)
    assert resolve_model(str(top), tmp_path) == top / "snapshots" / "a1"


def test_several_snapshots_or_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="a1, b2"):
        resolve_model(str(cached(tmp_path, "a1", "b2")), tmp_path)
    empty = tmp_path / "x" / "models--org--name" / "snapshots"
    empty.mkdir(parents=True)
    with pytest.raises(BadSetting, match="no snapshot"):
        resolve_model(str(empty), tmp_path)
    with pytest.raises(BadSetting, match="models--org--name"):
        resolve_model(str(tmp_path), tmp_path)


def test_a_snapshot_itself_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = cached(tmp_path, "a1", "b2", main="b2") / "snapshots" / "a1"
    assert resolve_model(str(folder), tmp_path) == folder
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 1
