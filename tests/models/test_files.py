"""Which tensors a range needs, and that no path leads out of the model's folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.folders import SHAPES, without, write_model, write_tensors
from together.errors import BrokenModel, UnsupportedModel
from together.models.folder import inside
from together.models.names import EMBED, HEAD, NORM, layer_of, shifted
from together.models.reading import read_into, tensors_for
from together.models.spec import read_spec
from together.types import LayerRange

FIRST, LAST = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"


def names(folder: Path, start: int, stop: int) -> set[str]:
    return {tensor.name for tensor in tensors_for(folder, LayerRange(start, stop), 2, folder.parent)}


def test_each_range_has_its_own_tensors(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    assert names(folder, 0, 1) == {EMBED, FIRST}
    assert names(folder, 1, 2) == {LAST, NORM, HEAD}
    assert names(folder, 0, 2) == {EMBED, FIRST, LAST, NORM, HEAD}


def test_a_tied_models_last_stage_reads_the_embedding(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", without(HEAD))
    assert names(folder, 1, 2) == {LAST, NORM, EMBED}
    assert len(tensors_for(folder, LayerRange(0, 2), 2, tmp_path)) == 4


def test_layer_numbers() -> None:
    assert layer_of(FIRST) == 0
    assert layer_of(EMBED) is None
    assert shifted("model.layers.12.self_attn.q_proj.bias", 10) == "model.layers.2.self_attn.q_proj.bias"
    assert shifted(NORM, 10) == NORM


def test_bytes_are_those_of_the_tensor(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    tensor = next(tensor for tensor in tensors_for(folder, LayerRange(1, 2), 2, tmp_path) if tensor.name == LAST)
    content = bytearray(tensor.file.read_bytes())
    content[tensor.start : tensor.stop] = bytes(i % 251 for i in range(tensor.nbytes))
    tensor.file.write_bytes(content)
    target = bytearray(tensor.nbytes)
    read_into(tensor, memoryview(target))
    assert target == content[tensor.start : tensor.stop]
    tensor.file.write_bytes(content[: tensor.stop - 1])
    with pytest.raises(BrokenModel, match="ends within"):
        read_into(tensor, memoryview(target))


# --- several files ----------------------------------------------------------------------------------------------------


def sharded(folder: Path, places: dict[str, str] | None = None) -> Path:
    """The same model in two files; `places` replaces the index's weight_map."""
    write_model(folder)
    (folder / "model.safetensors").unlink()
    halves = {"a.safetensors": list(SHAPES)[:3], "b.safetensors": list(SHAPES)[3:]}
    for file, half in halves.items():
        write_tensors(folder / file, {name: SHAPES[name] for name in half})
    found = {name: file for file, half in halves.items() for name in half}
    index = {"weight_map": found if places is None else places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_sharded_checkpoints_are_one_model(tmp_path: Path) -> None:
    whole, parts = read_spec(write_model(tmp_path / "m")), read_spec(sharded(tmp_path / "s" / "m"))
    assert parts.layer_weights == whole.layer_weights
    assert parts.fingerprint != whole.fingerprint  # other files: not what the other machine has
    assert {tensor.file.name for tensor in tensors_for(tmp_path / "s" / "m", LayerRange(1, 2), 2, tmp_path)} == {
        "a.safetensors",
        "b.safetensors",
    }


@pytest.mark.parametrize("bad", ["../a.safetensors", "/etc/passwd", "..", "", "x/y", "x\\y", "C:x", "a\0b"])
def test_an_index_leads_nowhere_else(tmp_path: Path, bad: str) -> None:
    with pytest.raises(BrokenModel, match="plain file name"):
        read_spec(sharded(tmp_path / "m", {EMBED: bad}))


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        ({}, r"index\.json"),
        ({EMBED: 3}, r"index\.json"),
        ({"model.other": "a.safetensors"}, NORM),
        ({NORM: "a.safetensors"}, NORM),
        ({EMBED: "a.safetensors", NORM: "c.safetensors"}, r"c\.safetensors"),
    ],
)
def test_an_index_that_lies(tmp_path: Path, places: dict[str, str], reason: str) -> None:
    with pytest.raises(BrokenModel, match=reason):
        read_spec(sharded(tmp_path / "m", places))


def test_what_an_index_says_of_tensors_is_not_needed(tmp_path: Path) -> None:
    """It may name tensors that no file has, or the wrong file: the headers are the truth."""
    places = {EMBED: "b.safetensors", NORM: "a.safetensors", "model.other": "a.safetensors"}
    assert read_spec(sharded(tmp_path / "a" / "m", places)) == read_spec(sharded(tmp_path / "b" / "m"))


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    write_tensors(folder / "b.safetensors", {name: SHAPES[name] for name in list(SHAPES)[2:]})
    with pytest.raises(BrokenModel, match="as well"):
        read_spec(folder)


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="making links needs rights there")
def test_links_must_stay_inside(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(BrokenModel, match="outside"):
        read_spec(folder)


@pytest.mark.skipif(os.name == "nt", reason="making links needs rights there")
def test_the_hubs_cache_links_to_its_blobs(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "models--a--b" / "snapshots" / "0123")
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    for file in list(folder.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(Path("..", "..", "blobs", file.name))
    templates = folder / "additional_chat_templates"
    templates.mkdir()
    (templates / "x.jinja").symlink_to(Path("..", "..", "..", "blobs", "config.json"))
    assert read_spec(folder).layers == 2
    assert inside(folder, "config.json").is_file()
    assert inside(folder, "additional_chat_templates/x.jinja").is_file()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(UnsupportedModel, match="pickle"):
        read_spec(folder)


def test_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(BrokenModel, match=r"config\.json"):
        read_spec(tmp_path)
    write_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(BrokenModel, match=r"model\.safetensors"):
        read_spec(tmp_path)
