"""What other programs keep is found by names and sizes, within their folders, and named as they name it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.other_programs import ADAPTER, LIBRARY, MODEL, OllamaFolder, hub_file, put
from together.errors import BadSetting
from together.weights.find import known_models, resolve_model
from together.weights.listing import Reach, folders_in
from together.weights.offers import Offer, offer_at, offers, offers_named


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LMSTUDIO_HOME", str(tmp_path / "studio"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "llama"))
    return tmp_path / "home"


@pytest.fixture
def studio(tmp_path: Path) -> Path:
    return tmp_path / "studio" / "models"


@pytest.fixture
def ollama(tmp_path: Path) -> OllamaFolder:
    return OllamaFolder(tmp_path / "ollama")


def names(home: Path) -> list[str]:
    return [f"{offer.program}: {offer.name}" for offer in offers(home)]


def test_nothing_is_there(home: Path) -> None:
    assert offers(home) == []


def test_files_of_every_program(home: Path, studio: Path, ollama: OllamaFolder, tmp_path: Path) -> None:
    put(studio / "acme" / "tiny-GGUF" / "tiny-Q4_K_M.gguf", b"GGUF" * 5)
    put(studio / "acme" / "tiny-4bit" / "model.safetensors", b"x" * 7)
    put(studio / "acme" / "tiny-4bit" / "config.json", b"{}")
    blob = ollama.add(f"{LIBRARY}/llama3.2/3b", b"GGUF!")
    put(tmp_path / "llama" / "ggml-org_tiny_tiny-Q8_0.gguf")
    link = hub_file(tmp_path / "hub", "acme/hubbed-GGUF", "Q8_0/hubbed-Q8_0.gguf", b"GGUF12")
    put(home / "models" / "mine.gguf")
    found = {offer.name: offer for offer in offers(home)}
    assert found == {
        "acme/tiny-GGUF/tiny-Q4_K_M.gguf": Offer(
            "LM Studio", "acme/tiny-GGUF/tiny-Q4_K_M.gguf", *twice(studio / "acme/tiny-GGUF/tiny-Q4_K_M.gguf"), 20,
            "tiny-Q4_K_M",
        ),
        "acme/tiny-4bit": Offer("LM Studio", "acme/tiny-4bit", *twice(studio / "acme" / "tiny-4bit"), 7),
        "llama3.2:3b": Offer("Ollama", "llama3.2:3b", found["llama3.2:3b"].path, blob, 5, "llama3.2-3b"),
        "ggml-org_tiny_tiny-Q8_0.gguf": Offer(
            "llama.cpp", "ggml-org_tiny_tiny-Q8_0.gguf", *twice(tmp_path / "llama" / "ggml-org_tiny_tiny-Q8_0.gguf"), 4,
            "ggml-org_tiny_tiny-Q8_0",
        ),
        "acme/hubbed-GGUF/hubbed-Q8_0.gguf": Offer(
            "Hugging Face", "acme/hubbed-GGUF/hubbed-Q8_0.gguf", *twice(link), 6, "hubbed-Q8_0"
        ),
        "mine.gguf": Offer("", "mine.gguf", *twice(home / "models" / "mine.gguf"), 4, "mine"),
    }  # fmt: skip
    assert found["llama3.2:3b"].path == ollama.root / "manifests" / LIBRARY / "llama3.2" / "3b"


def twice(path: Path) -> tuple[Path, Path]:
    return path, path


def test_what_is_no_model_is_passed_over(home: Path, studio: Path) -> None:
    for name in ("mmproj-tiny-f16.gguf", "tiny-mmproj.gguf", "imatrix.gguf", "._tiny.gguf", "x.part", "x.gguf.part"):
        put(studio / "acme" / "tiny" / name)
    put(studio / "acme" / ".hidden" / "x.gguf")
    put(studio / "acme" / "config" / "config.json")
    put(studio / "acme" / "weights" / "model.safetensors")
    (studio / "acme" / "tiny" / "folder.gguf").mkdir()
    assert offers(home) == []


def test_a_split_file_is_one_model_once_all_parts_are_there(home: Path, studio: Path) -> None:
    for number in (1, 3):
        put(studio / "acme" / "big" / f"big-{number:05d}-of-00003.gguf", b"12")
    put(studio / "acme" / "odd" / "odd-00001-of-00000.gguf")
    put(studio / "acme" / "odd" / "odd-00001-of-99999.gguf")
    assert offers(home) == []
    put(studio / "acme" / "big" / "big-00002-of-00003.gguf", b"12")
    (offer,) = offers(home)
    assert (offer.name, offer.title, offer.bytes) == ("acme/big/big-00001-of-00003.gguf", "big", 6)


# --- links ------------------------------------------------------------------------------------------------------------


def test_links_that_lead_out_or_nowhere_are_passed_over(home: Path, studio: Path, tmp_path: Path) -> None:
    outside = put(tmp_path / "outside" / "repo" / "secret.gguf")
    (studio / "acme" / "repo").mkdir(parents=True)
    (studio / "acme" / "repo" / "secret.gguf").symlink_to(outside)
    (studio / "acme" / "linked").symlink_to(outside.parent, target_is_directory=True)
    (studio / "acme" / "broken.gguf").symlink_to(tmp_path / "gone")
    (studio / "acme" / "round.gguf").symlink_to(studio / "acme" / "round.gguf")
    (studio / "acme" / "round").symlink_to(studio, target_is_directory=True)
    hub_file(tmp_path / "hub", "acme/x", "x.gguf").resolve().unlink()
    assert offers(home) == []


def test_the_folder_itself_may_be_a_link(home: Path, studio: Path, tmp_path: Path) -> None:
    file = put(tmp_path / "disk" / "acme" / "tiny" / "tiny.gguf")
    studio.parent.mkdir()
    studio.symlink_to(tmp_path / "disk", target_is_directory=True)
    (offer,) = offers(home)
    assert (offer.name, offer.weights) == ("acme/tiny/tiny.gguf", file)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="may read everything")
def test_folders_that_may_not_be_read(home: Path, studio: Path) -> None:
    put(studio / "acme" / "shut" / "x.gguf")
    put(studio / "acme" / "tiny" / "tiny.gguf")
    (studio / "acme" / "shut").chmod(0)
    try:
        assert names(home) == ["LM Studio: acme/tiny/tiny.gguf"]
    finally:
        (studio / "acme" / "shut").chmod(0o700)


def test_a_place_with_too_much_ends(studio: Path) -> None:
    for number in range(20):
        put(studio / "acme" / f"{number:02d}" / "x.gguf")
    assert len(list(folders_in(studio, 4, Reach()))) == 22
    assert len(list(folders_in(studio, 4, Reach(entries=10)))) < 12
    assert list(folders_in(studio, 4, Reach(until=0.0))) == [(studio, [])]


# --- Ollama -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (f"{LIBRARY}/llama3.2/latest", "llama3.2:latest"),
        ("ollama.com/library/llama3.2/1b", "llama3.2:1b"),
        ("registry.ollama.ai/someone/tiny/q4", "someone/tiny:q4"),
        ("hf.co/acme/tiny-GGUF/Q4_K_M", "hf.co/acme/tiny-GGUF:Q4_K_M"),
    ],
)
def test_tags_are_called_as_ollama_does(home: Path, ollama: OllamaFolder, place: str, name: str) -> None:
    ollama.add(place)
    assert names(home) == [f"Ollama: {name}"]


def test_manifests_of_newer_versions(home: Path, ollama: OllamaFolder) -> None:
    """A tag may list a manifest for each runner, by itself or by digest; the old tag of that name does not count."""
    old = ollama.add(f"{LIBRARY}/tiny/4b", b"GGUF old")
    on_mlx = ollama.manifest(("application/vnd.ollama.image.tensor", ollama.blob(b"t")), runner="mlx")
    inside = ollama.manifest((MODEL, ollama.blob(b"GGUF in")), runner="llamacpp")
    ollama.add_list("ollama.com/library/tiny/4b", on_mlx, inside)
    apart = ollama.blob(json.dumps(ollama.manifest((MODEL, ollama.blob(b"GGUF apart")))).encode())
    ollama.add_list("ollama.com/library/tiny/8b", {"runner": "ollama", "digest": apart, "mediaType": "x"})
    ollama.add_list("ollama.com/library/tiny/mlx", on_mlx)
    found = {offer.name: offer for offer in offers(home)}
    assert found.keys() == {"tiny:4b", "tiny:8b"}
    assert found["tiny:4b"].weights.read_bytes() == b"GGUF in"
    assert found["tiny:8b"].weights.read_bytes() == b"GGUF apart"
    assert old.exists()


def hostile(folder: OllamaFolder) -> dict[str, object]:
    """Manifests that stand for nothing, by what is wrong."""
    good = folder.blob(b"GGUF")
    (folder.root / "blobs" / f"sha256-{'e' * 64}").symlink_to(folder.root.parent / "secret.gguf")
    nested: object = folder.manifest((MODEL, good))
    for _ in range(3):
        nested = {"mediaType": "application/vnd.ollama.manifest.list.v2+json", "manifests": [nested]}
    return {
        "list": [],
        "none": None,
        "layers": folder.manifest() | {"layers": {"a": 1}},
        "layer": folder.manifest() | {"layers": [1, None, "x"]},
        "no-model": folder.manifest(("application/vnd.ollama.image.template", good)),
        "adapter": folder.manifest((MODEL, good), (ADAPTER, good)),
        "twice": folder.manifest((MODEL, good), (MODEL, good)),
        "number": folder.manifest() | {"layers": [{"mediaType": MODEL, "digest": 3}]},
        "kinds": folder.manifest() | {"layers": [{"mediaType": {}, "digest": good}]},
        "path": folder.manifest((MODEL, "sha256:../../secret.gguf")),
        "short": folder.manifest((MODEL, "sha256:abc")),
        "gone": folder.manifest((MODEL, f"sha256:{'f' * 64}")),
        "link": folder.manifest((MODEL, f"sha256:{'e' * 64}")),
        "empty": folder.manifest((MODEL, folder.blob(b""))),
        "nested": nested,
        "children": {"mediaType": "application/vnd.ollama.manifest.list.v2+json", "manifests": {"a": nested}},
        "child": {"mediaType": "application/vnd.ollama.manifest.list.v2+json", "manifests": [1, {"runner": {}}]},
        "large": folder.manifest((MODEL, good), x="x" * 2**20),
    }


def test_manifests_that_stand_for_nothing(home: Path, ollama: OllamaFolder, tmp_path: Path) -> None:
    put(tmp_path / "secret.gguf")
    for name, manifest in hostile(ollama).items():
        ollama.tag(f"{LIBRARY}/bad/{name}", manifest)
    for name, data in (("text", b"x"), ("deep", b"[" * 100_000), ("bytes", b"\xff\xfe"), ("nothing", b"")):
        put(ollama.root / "manifests" / LIBRARY / "bad" / name, data)
    good = ollama.manifest((MODEL, ollama.blob(b"GGUF")))
    outside = put(tmp_path / "outside", json.dumps(good).encode())
    (ollama.root / "manifests" / LIBRARY / "bad" / "outside").symlink_to(outside)
    ollama.tag(f"{LIBRARY}/tiny", good)  # three folders deep, as no tag is
    ollama.tag(f"{LIBRARY}/a/b/c/tiny", good)
    ollama.tag(f"{LIBRARY}/bad/na me", good)
    assert offers(home) == []
    ollama.tag(f"{LIBRARY}/good/1b", good)
    assert names(home) == ["Ollama: good:1b"]


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "acme/tiny-GGUF/tiny-Q4_K_M.gguf",
        "ACME/tiny-gguf/tiny-q4_k_m.gguf",
        "acme/tiny-GGUF/tiny-Q4_K_M",
        "acme/tiny-GGUF",
        "tiny-Q4_K_M.gguf",
        "tiny-q4_k_m",
    ],
)
def test_what_people_call_a_file(home: Path, studio: Path, text: str) -> None:
    put(studio / "acme" / "tiny-GGUF" / "tiny-Q4_K_M.gguf")
    put(studio / "acme" / "other-GGUF" / "other-Q4_K_M.gguf")
    assert [offer.name for offer in offers_named(text, offers(home))] == ["acme/tiny-GGUF/tiny-Q4_K_M.gguf"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("llama3.2", ["llama3.2:latest"]),
        ("llama3.2:latest", ["llama3.2:latest"]),
        ("Llama3.2:3B", ["llama3.2:3b"]),
        ("llama3.2-3b", ["llama3.2:3b"]),
        ("someone/tiny", ["someone/tiny:latest"]),
        ("tiny:latest", ["someone/tiny:latest"]),
        ("llama3", []),
        ("", []),
    ],
)
def test_what_people_call_a_tag(home: Path, ollama: OllamaFolder, text: str, wanted: list[str]) -> None:
    for place in (f"{LIBRARY}/llama3.2/latest", f"{LIBRARY}/llama3.2/3b", "registry.ollama.ai/someone/tiny/latest"):
        ollama.add(place, place.encode())
    assert [offer.name for offer in offers_named(text, offers(home))] == wanted


def test_what_a_path_stands_for(home: Path, ollama: OllamaFolder) -> None:
    blob = ollama.add(f"{LIBRARY}/tiny/1b")
    tag = ollama.root / "manifests" / LIBRARY / "tiny" / "1b"
    newer = ollama.add_list("ollama.com/library/tiny/2b", ollama.manifest((MODEL, ollama.blob(b"GGUF 2"))))
    found = offers(home)
    for path, name in ((tag, "tiny:1b"), (blob, "tiny:1b"), (newer, "tiny:2b")):
        offer = offer_at(path, found)
        assert offer is not None
        assert offer.name == name
    assert offer_at(ollama.root, found) is None


def test_a_name_of_several_places_lists_them(home: Path, studio: Path, tmp_path: Path) -> None:
    first = put(studio / "acme" / "tiny-GGUF" / "tiny.gguf")
    second = put(tmp_path / "llama" / "tiny.gguf")
    with pytest.raises(BadSetting, match=r"'tiny' is the name of 2 models here; choose one of these") as refused:
        resolve_model("tiny", home)
    assert str(first) in str(refused.value)
    assert str(second) in str(refused.value)


# --- the list ---------------------------------------------------------------------------------------------------------


def test_offers_stand_in_the_list_unread(home: Path, ollama: OllamaFolder) -> None:
    blob = ollama.add(f"{LIBRARY}/tiny/1b", b"no GGUF at all")
    (tag,) = (model for model in known_models(home) if model.program)
    assert (tag.name, tag.program, tag.bytes, tag.file) == ("tiny:1b", "Ollama", 14, str(blob))
    assert (tag.held, tag.fault, tag.fingerprint, tag.whole) == ("all layers", "", "", True)


def test_files_of_one_name_in_two_folders_of_a_repository_are_two(tmp_path: Path, home: Path) -> None:
    for folder in ("Q4_0", "Q8_0"):
        hub_file(tmp_path / "hub", "acme/two-GGUF", f"{folder}/model.gguf", folder.encode())
    assert {offer.path.parent.name for offer in offers(home)} == {"Q4_0", "Q8_0"}
    with pytest.raises(BadSetting, match=r"the name of 2 models here; choose one of these: "):
        resolve_model("acme/two-GGUF/model.gguf", home)


def test_names_that_make_one_title_are_two_models(tmp_path: Path, home: Path, studio: Path) -> None:
    for name in ("my model.gguf", "my-model.gguf", "my-model-00001-of-00002.gguf", "my-model-00002-of-00002.gguf"):
        put(studio / "acme" / "repo" / name, b"GGUF")
    assert len(offers(home)) == 3
    with pytest.raises(BadSetting, match="has 3 GGUF models"):
        resolve_model(str(studio / "acme" / "repo"), home)
