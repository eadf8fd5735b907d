"""What a model in a folder is called, and that errors call it so: nobody knows a model by its fingerprint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.pieces import carry, exported, random_model
from together.errors import BrokenModel, UnsupportedModel
from together.models.folder import broken, title
from together.models.manifest import describe, read_manifest
from together.models.reading import read_unit
from together.models.spec import read_shape, read_spec
from together.types import LayerRange
from together.weights.store import Store, known_model, local_name

FIRST = "layer-00000.safetensors"


@pytest.mark.parametrize(
    ("place", "name"),
    [("tiny", "tiny"), ("org/tiny", "org/tiny"), ("my org/my tiny", "my-org/my-tiny"), ("a/b/tiny", "tiny")],
)
def test_the_models_folder_names_models_by_their_place(home: Path, tmp_path: Path, place: str, name: str) -> None:
    folder = random_model(home / "models" / place)
    assert local_name(folder, home) == known_model(folder, home).name == describe(folder, name).name == name
    assert describe(folder).name == read_shape(folder).name == read_spec(folder).name == name.rpartition("/")[2]
    other = tmp_path / "other home"
    assert local_name(random_model(other / "models" / place), other) == name
    assert local_name(other / "models" / place, home) == name.rpartition("/")[2]
    (folder / "model.safetensors").write_bytes(b"x")
    assert (known_model(folder, home).name, known_model(folder, home).whole) == (name, False)


@pytest.mark.skipif(os.name == "nt", reason="making links needs rights there")
def test_a_link_in_the_models_folder_has_the_links_name(home: Path, tmp_path: Path) -> None:
    folder = random_model(tmp_path / "nfs" / "0123")
    (home / "models" / "org").mkdir(parents=True)
    (home / "models" / "org" / "tiny").symlink_to(folder)
    assert local_name(home / "models" / "org" / "tiny", home) == "org/tiny"
    assert local_name(folder, home) == "0123"


def test_a_path_that_leaves_the_models_folder(home: Path) -> None:
    (home / "models").mkdir(parents=True)
    folder = random_model(home / "tiny")
    assert local_name(home / "models" / ".." / "tiny", home) == local_name(folder, home) == "tiny"


def test_errors_about_cached_pieces_name_the_model(home: Path) -> None:
    original = random_model(home / "models" / "org" / "tiny")
    folder = Store(home).folder(carry(Store(home), original).fingerprint)
    unit = read_manifest(folder).units[FIRST]
    (folder / FIRST).write_bytes(b"x")
    with pytest.raises(BrokenModel, match=rf"^org/tiny/{FIRST} is broken"):
        read_unit(folder, unit)
    with pytest.raises(BrokenModel, match=rf"^{FIRST} of org/tiny has"):
        read_unit(folder, unit, 10**9)
    (folder / "config.json").write_text("[")
    with pytest.raises(BrokenModel, match=r"^org/tiny/config.json is broken: it is not JSON"):
        read_shape(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"name": 3}', b'{"name": "../x"}', b"[" * 100_000])
def test_a_title_never_fails(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / ("f00d" * 16)
    assert title(folder) == folder.name
    folder.mkdir()
    (folder / "manifest.json").write_bytes(content)
    assert str(broken(folder / "x", "why")) == f"{folder.name}/x is broken: why; get this model again"


def test_errors_about_other_folders(tmp_path: Path) -> None:
    snapshot = random_model(tmp_path / "models--org--tiny" / "snapshots" / "0123")
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match=r"^org/tiny has only pickle weights"):
        describe(snapshot)
    exported(random_model(tmp_path / "tiny"), LayerRange(0, 2), tmp_path / "stick")
    (tmp_path / "stick" / FIRST).write_bytes(b"x")
    with pytest.raises(BrokenModel, match=rf"^stick/{FIRST} is broken"):
        read_unit(tmp_path / "stick", read_manifest(tmp_path / "stick").units[FIRST])
