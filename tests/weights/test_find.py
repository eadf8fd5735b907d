"""Where models are found on this machine, which pieces of them, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.folders import write_model
from tests.support.pieces import carry, exported, flip, random_model
from together.errors import BrokenModel
from together.models.spec import read_spec
from together.types import LayerRange, ModelRef
from together.weights.find import BUNDLED, find_units, known_models, not_here
from together.weights.store import Store

FIRST = ("embed.safetensors", "layer-00000.safetensors")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOGETHER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "home"


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return random_model(tmp_path / "elsewhere" / "tiny")


def asked(original: Path, **changes: Any) -> ModelRef:
    """What a head on another machine asks for: its path is nothing here."""
    return replace(read_spec(original).ref(original.parent / "of-another-machine"), **changes)


def snapshot(cache: Path, name: str, revision: str = "0123") -> Path:
    return random_model(cache / f"models--{name.replace('/', '--')}" / "snapshots" / revision)


def _whole(model: ModelRef, home: Path) -> Path:
    """The folder that has all of it."""
    found = find_units(model, home)
    assert found.folder is not None
    assert found.manifest is not None
    assert found.units == found.manifest.units.keys()
    return found.folder


def test_by_the_heads_path(original: Path, home: Path) -> None:
    assert _whole(asked(original, path=str(original)), home) == original


def test_the_bundled_model_is_everywhere(home: Path) -> None:
    spec = read_spec(BUNDLED)
    assert _whole(replace(spec.ref(BUNDLED), path="/nowhere"), home) == BUNDLED


@pytest.mark.parametrize("name", ["tiny", "org/tiny"])
def test_in_the_models_folder(original: Path, home: Path, name: str) -> None:
    folder = random_model(home / "models" / name)
    found = find_units(asked(original, name=name), home)
    assert found.folder == folder
    assert len(found.units) == 5
    assert _whole(asked(original, name=name), home) == folder


def test_in_the_hubs_cache(original: Path, home: Path, tmp_path: Path) -> None:
    old, new = (snapshot(tmp_path / "hub", "org/tiny", revision) for revision in ("0000", "ffff"))
    model = asked(original, name="org/tiny", revision="ffff")
    assert _whole(model, home) == new
    (old.parents[1] / "refs").mkdir()
    (old.parents[1] / "refs" / "main").write_text("ffff\n")
    assert _whole(replace(model, revision=""), home) == new
    assert _whole(replace(model, revision="0000"), home) == old
    (new / "model.safetensors").unlink()  # as a download that was stopped
    assert _whole(model, home) == old


def test_pieces_in_the_apps_cache(original: Path, home: Path) -> None:
    manifest = carry(Store(home), original, *FIRST)
    found = find_units(asked(original), home)
    assert (found.folder, found.units) == (Store(home).folder(manifest.fingerprint), frozenset(FIRST))
    carry(Store(home), original)
    assert _whole(asked(original), home) == found.folder


def test_the_folder_with_most_of_it(original: Path, home: Path) -> None:
    exported(original, LayerRange(0, 1), home / "models" / "tiny")
    assert find_units(asked(original), home).folder == home / "models" / "tiny"
    manifest = carry(Store(home), original, "norm.safetensors")
    assert find_units(asked(original), home).folder == home / "models" / "tiny"
    carry(Store(home), original)
    assert find_units(asked(original), home).folder == Store(home).folder(manifest.fingerprint)


def test_nothing_here(original: Path, home: Path) -> None:
    assert find_units(asked(original), home).folder is None
    assert "node studio does not have tiny; put its folder at" in str(not_here(asked(original), home, "studio"))


def test_another_version_names_both(original: Path, home: Path) -> None:
    other = write_model(home / "models" / "tiny", vocab_size=16, max_position_embeddings=128)
    wrong = f"another version of tiny: {read_spec(other).fingerprint[:12]} there"
    assert wrong in str(not_here(asked(original), home, "studio"))


def test_another_fine_tune_of_the_same_name_is_another_version(original: Path, home: Path) -> None:
    """The same config and headers, other weights: its layers must not stand in for those of the model."""
    other = random_model(home / "models" / "tiny", seed=1)
    model = asked(original)
    assert find_units(model, home).folder is None
    both = f"another version of tiny: {read_spec(other).fingerprint[:12]} there, {model.fingerprint[:12]} at the head"
    assert both in str(not_here(model, home, "studio"))


def test_a_broken_folder_is_passed_over(original: Path, home: Path) -> None:
    folder = random_model(home / "models" / "tiny")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    carry(Store(home), original)
    assert _whole(asked(original), home).parent.name == "shards"


@pytest.mark.parametrize("name", ["../tiny", "..", "a/../tiny", "a/b/c", "", "a\0b", "/tiny"])
def test_a_name_leads_nowhere_else(original: Path, home: Path, tmp_path: Path, name: str) -> None:
    random_model(tmp_path / "home" / "tiny")
    random_model(home / "models" / "a" / "b" / "c")
    assert find_units(asked(original, name=name), home).folder is None


def test_a_fingerprint_that_is_none(original: Path, home: Path) -> None:
    with pytest.raises(BrokenModel, match="fingerprint"):
        find_units(asked(original, fingerprint="../models"), home)


def test_all_models_of_this_machine(original: Path, home: Path, tmp_path: Path) -> None:
    random_model(home / "models" / "own", seed=1, max_position_embeddings=32)
    random_model(home / "models" / "org" / "nested", max_position_embeddings=16)
    snapshot(tmp_path / "hub", "org/hubbed")
    write_model(tmp_path / "hub" / "models--org--bert" / "snapshots" / "1", model_type="bert")
    carry(Store(home), original, *FIRST)
    broken = random_model(home / "models" / "torn")
    (broken / "model.safetensors").write_bytes(b"short")
    known = {model.name: model for model in known_models(home)}
    assert list(known) == ["demo_model", "org/hubbed", "org/nested", "own", "tiny", "torn"]
    assert (known["tiny"].held, known["tiny"].whole) == ("embed, layers 0:1", False)
    assert (known["own"].held, known["own"].whole, known["own"].layers) == ("all 2 layers", True, 2)
    assert known["own"].bytes == sum(
        (home / "models" / "own" / name).stat().st_size
        for name in ("config.json", "tokenizer.json", "model.safetensors")
    )
    assert known["org/hubbed"].revision == "0123"
    assert "too few" in known["torn"].fault


def test_an_export_in_the_models_folder_is_listed(original: Path, home: Path) -> None:
    exported(original, LayerRange(1, 2), home / "models" / "half")
    flip(home / "models" / "half" / "norm.safetensors")  # a list reads no weights
    (half,) = (model for model in known_models(home) if model.folder.name == "half")
    assert (half.name, half.held) == ("tiny", "layers 1:2, norm, head")
