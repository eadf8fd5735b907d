"""What a person types for a model: folders first, then names of this machine, then ids of the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.pieces import carry, random_model
from together.errors import BadSetting
from together.models.manifest import compose, describe, small_files
from together.models.reading import read_unit
from together.weights.find import BUNDLED, resolve_model
from together.weights.store import Store


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("TOGETHER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = random_model(tmp_path / "org" / "tiny")
    assert resolve_model(str(folder), home) == folder
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/tiny", home) == Path("org/tiny"), "a folder that is there, not the hub"


def test_a_shard_folder(home: Path, tmp_path: Path) -> None:
    manifest = carry(Store(home), random_model(tmp_path / "tiny"), "layer-00000.safetensors")
    folder = Store(home).folder(manifest.fingerprint)
    assert resolve_model(str(folder), home) == folder


def test_names_of_this_machine(home: Path, tmp_path: Path) -> None:
    assert resolve_model("demo_model", home) == BUNDLED
    own = random_model(home / "models" / "mine")
    deep = random_model(home / "models" / "org" / "deep", seed=1)
    assert resolve_model("mine", home) == own
    assert resolve_model("org/deep", home) == deep


def test_the_most_complete_of_one_name(home: Path, tmp_path: Path) -> None:
    """Two versions of one model of the hub: some layers of the old one, all of the new one."""
    store = Store(home)
    for seed, count in ((1, 2), (2, 5), (3, 3)):
        folder = random_model(tmp_path / f"{seed}", initializer_range=seed)
        small = small_files(folder)
        manifest = compose("org/tiny", describe(folder).files, small, "a" * 40)
        store.begin(manifest, small)
        for unit in list(manifest.units)[:count]:
            with store.part(manifest.fingerprint, unit) as part:
                part.write(b"".join(read_unit(folder, part.unit)))
                part.finish()
        if seed == 2:
            best = store.folder(manifest.fingerprint)
    assert resolve_model("org/tiny", home) == best


def test_an_id_of_the_hub(home: Path) -> None:
    assert resolve_model("org/unknown-1.5B", home) == "org/unknown-1.5B"


@pytest.mark.parametrize(
    "address",
    [
        "https://huggingface.co/org/unknown-1.5B",
        "https://huggingface.co/org/unknown-1.5B/tree/main",
        "huggingface.co/org/unknown-1.5B/",
        " https://hf.co/org/unknown-1.5B?library=transformers",
    ],
)
def test_the_address_of_a_page_of_the_hub(home: Path, address: str) -> None:
    assert resolve_model(address, home) == "org/unknown-1.5B"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://huggingface.co/org",
        "https://huggingface.co/org/x/tree/v2",
        "https://else.where/org/x",
        "unknown",
        "a/b/c",
        "../x",
        "x/..",
        "/no/such",
        "~/no-such-folder",
        "a b/c",
        "a/b\0",
        "a/" + "b" * 5000,
    ],
)
def test_what_is_nothing(home: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # nothing of these names is beside it
    with pytest.raises(BadSetting, match=r"no model .*demo_model.*or a model of the hub as org/name") as refused:
        resolve_model(text, home)
    assert len(str(refused.value)) < 500


def test_a_folder_without_a_model(home: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"neither config\.json nor manifest\.json"):
        resolve_model(str(tmp_path), home)
