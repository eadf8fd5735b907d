"""GGUF files of the hub: the same models as on a disk, of which only headers and the layers that are needed travel."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.gguf_models import make_gguf, split_gguf
from tests.support.hub import HubServer
from tests.support.pieces import flip, random_model, unit_bytes
from together.errors import BadSetting, BrokenModel, TogetherError, UnsupportedModel
from together.models.manifest import Manifest, describe
from together.models.names import hub_id, is_gguf
from together.models.spec import read_runnable
from together.models.units import Unit, units_for
from together.types import LayerRange
from together.weights.find import find_units, resolve_model
from together.weights.hub import describe_hub, fetch_units
from together.weights.imports import imported
from together.weights.store import Store

REPO = "acme/tiny-GGUF"
FILE = "tiny.Q4_K_M.gguf"
NAME = f"{REPO}/{FILE}"
FIRST = LayerRange(0, 1)


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("hub-gguf") / "repo", FILE)


@pytest.fixture(scope="session")
def parts(file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return split_gguf(file, tmp_path_factory.mktemp("hub-split") / "Q4_K_M")


def weight_bytes(units: tuple[Unit, ...]) -> int:
    return sum(unit.size - len(unit.header) for unit in units)


def check_units(store: Store, manifest: Manifest, folder: Path, units: tuple[Unit, ...]) -> None:
    for unit in units:
        assert (store.folder(manifest.key) / unit.name).read_bytes() == unit_bytes(folder, unit)


def test_a_file_is_the_same_model_on_the_hub_and_here(hub: HubServer, store: Store, home: Path, file: Path) -> None:
    commit = hub.add(REPO, file.parent)
    there = describe_hub(NAME, store)
    here = describe(imported(file, home))
    assert (there.name, there.revision) == (NAME, commit)
    assert there.key == here.key
    assert there.files == here.files
    assert there.small == here.small
    assert there.units.keys() == here.units.keys()
    assert read_runnable(store.folder(there.key)).packings
    found = find_units(there.ref(), home)
    assert found.units == here.units.keys(), "a node that has the file asks nobody for layers"


def test_only_headers_and_the_asked_layers_travel(hub: HubServer, store: Store, tmp_path: Path, file: Path) -> None:
    hub.add(REPO, file.parent)
    manifest = describe_hub(NAME, store)
    begin = 2**20  # as much is read at first, whatever the header has
    assert begin <= hub.weights_served() < begin + 200 * 1024
    hub.served.clear()
    units = units_for(manifest, FIRST)
    assert fetch_units(manifest.ref(), units, store)
    assert hub.weights_served() == weight_bytes(units)
    local = imported(file, tmp_path / "other")
    check_units(store, manifest, local, units)
    assert fetch_units(manifest.ref(), units_for(manifest, LayerRange(0, 4)), store)
    check_units(store, manifest, local, tuple(manifest.units.values()))
    assert hub.weights_served() == file.stat().st_size, "and what is in no unit, to compare the whole file's sha256"


def test_a_known_commit_is_not_read_again(hub: HubServer, store: Store, file: Path) -> None:
    hub.add(REPO, file.parent)
    first = describe_hub(NAME, store)
    hub.served.clear()
    again = describe_hub(NAME, store)
    assert (again.key, again.files, again.small) == (first.key, first.files, first.small)
    assert not hub.served
    (store.folder(first.key) / "tokenizer.json").write_text("{}")
    assert describe_hub(NAME, store).small == first.small
    assert (store.folder(first.key) / "tokenizer.json").read_text() != "{}", "what is damaged is made again"
    assert hub.weights_served() > 0


def test_a_split_file_in_a_folder(hub: HubServer, store: Store, home: Path, file: Path, parts: list[Path]) -> None:
    hub.add(REPO, parts[0].parent.parent)
    manifest = describe_hub(f"{REPO}/{parts[1].name}", store)
    assert manifest.name == f"{REPO}/{parts[0].name}"
    local = imported(parts[2], home)
    assert manifest.key == describe(local).key
    assert len(manifest.files) == 3
    hub.served.clear()
    assert fetch_units(manifest.ref(), units_for(manifest, LayerRange(0, 4)), store)
    check_units(store, manifest, local, tuple(manifest.units.values()))
    assert describe_hub(REPO, store).key == manifest.key, "the only model of its repository"
    parts[1].rename(parts[1].with_suffix(".away"))
    try:
        with pytest.raises(BrokenModel, match=f"one of 3 parts, and {REPO} does not have {parts[1].name}"):
            describe_hub(f"{REPO}/{parts[0].name}", store)
    finally:
        parts[1].with_suffix(".away").rename(parts[1])


def test_cut_connections_go_on_where_they_ended(hub: HubServer, store: Store, home: Path, file: Path) -> None:
    hub.add(REPO, file.parent)
    hub.cuts, hub.broken = [1000, 0], 1
    manifest = describe_hub(NAME, store)
    assert not hub.cuts
    units = units_for(manifest, LayerRange(1, 3))
    hub.served.clear()
    hub.cuts = [50_000, 1]
    assert fetch_units(manifest.ref(), units, store)
    assert hub.weights_served() == weight_bytes(units)
    check_units(store, manifest, imported(file, home), units)


def test_a_repository_without_a_file_names_those_it_has(
    hub: HubServer, store: Store, tmp_path: Path, file: Path
) -> None:
    folder = tmp_path / "repo"
    folder.mkdir()
    for name in (FILE, "mmproj-F16.gguf", "imatrix.gguf", "._x.gguf"):
        (folder / name).write_bytes(file.read_bytes())
    hub.add(REPO, folder)
    assert describe_hub(REPO, store).name == NAME
    (folder / "tiny.Q8_0.gguf").write_bytes(file.read_bytes())
    with pytest.raises(BadSetting, match=rf"has 2 GGUF models; .*{NAME}\. It has {FILE}, tiny\.Q8_0\.gguf"):
        describe_hub(REPO, store)
    with pytest.raises(BadSetting, match=r"has no other\.gguf on the hub; it has"):
        describe_hub(f"{REPO}/other.gguf", store)
    (folder / "deep").mkdir()
    (folder / "deep" / FILE).write_bytes(file.read_bytes())
    with pytest.raises(BadSetting, match="several folders"):
        describe_hub(NAME, store)


def test_only_what_sees_pictures(hub: HubServer, store: Store, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "mmproj-F16.gguf").write_bytes(b"GGUF")
    hub.add(REPO, tmp_path / "repo")
    with pytest.raises(UnsupportedModel, match="none is a language model"):
        describe_hub(REPO, store)
    assert hub.weights_served() == 0


def test_what_is_no_model_is_refused_by_name(hub: HubServer, store: Store, tmp_path: Path, file: Path) -> None:
    (tmp_path / "repo").mkdir()
    bad = tmp_path / "repo" / FILE
    bad.write_bytes(b"GGUF" + b"\xff" * 100)
    hub.add(REPO, bad.parent)
    with pytest.raises(BrokenModel, match=FILE):
        describe_hub(NAME, store)
    bad.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(BrokenModel, match=f"{FILE} is broken: tensor .* ends behind"):
        describe_hub(NAME, store)
    assert list(store.home.glob("shards/*")) == []


def test_a_flipped_bit_is_refused_by_name(hub: HubServer, store: Store, tmp_path: Path, file: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_bytes(file.read_bytes())
    hub.add(REPO, file.parent)
    manifest = describe_hub(NAME, store)
    flip(wrong, describe(imported(file, tmp_path / "h")).units["layer-00001.safetensors"].pieces[0].start + 3)
    hub.falsified[FILE] = wrong.read_bytes()
    with pytest.raises(BrokenModel, match=f"{FILE.rpartition('.')[0]}.gguf of {NAME} is broken: its sha256"):
        fetch_units(manifest.ref(), manifest.units.values(), store)
    hub.falsified.clear()
    assert fetch_units(manifest.ref(), manifest.units.values(), store)


@pytest.mark.parametrize(
    "address",
    [
        "https://huggingface.co/acme/tiny-GGUF/blob/main/tiny.Q4_K_M.gguf",
        "https://huggingface.co/acme/tiny-GGUF/resolve/main/Q4/tiny.Q4_K_M.gguf?download=true",
        "hf.co/acme/tiny-GGUF/blob/main/tiny.Q4_K_M.gguf",
        NAME,
    ],
)
def test_a_files_page_is_its_name(hub: HubServer, store: Store, home: Path, file: Path, address: str) -> None:
    assert hub_id(address) == NAME
    assert resolve_model(address, home) == NAME
    hub.add(REPO, file.parent)
    manifest = describe_hub(NAME, store)
    assert resolve_model(address, home) == store.folder(manifest.key), "known here: nobody is asked"
    assert resolve_model(REPO, home) == store.folder(manifest.key)


@pytest.mark.parametrize("beside", ["model.safetensors", "tiny.Q8_0.gguf"])
def test_a_repository_is_no_file_of_several(
    hub: HubServer, store: Store, home: Path, tmp_path: Path, file: Path, beside: str
) -> None:
    """What was fetched by its own name stays what that name says alone."""
    repo = random_model(tmp_path / "repo") if beside == "model.safetensors" else tmp_path / "repo"
    repo.mkdir(exist_ok=True)
    shutil.copy(file, repo / FILE)
    if is_gguf(beside):
        shutil.copy(file, repo / beside)
    hub.add(REPO, repo)
    fetched = describe_hub(NAME, store)
    assert resolve_model(NAME, home) == store.folder(fetched.key)
    assert resolve_model(REPO, home) == REPO, "the hub is asked"
    if is_gguf(beside):
        with pytest.raises(BadSetting, match="has 2 GGUF models; choose one by its file"):
            describe_hub(REPO, store)
    else:
        whole = describe_hub(REPO, store)
        assert [each.name for each in whole.files] == [beside]
        assert resolve_model(REPO, home) == store.folder(whole.key)


def test_a_repository_that_got_more_is_no_file_any_more(
    hub: HubServer, store: Store, home: Path, tmp_path: Path, file: Path
) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    shutil.copy(file, repo / FILE)
    hub.add(REPO, repo)
    fetched = describe_hub(REPO, store)
    assert resolve_model(REPO, home) == store.folder(fetched.key)
    hub.add(REPO, random_model(repo))
    describe_hub(NAME, store)
    assert resolve_model(REPO, home) == REPO


@pytest.mark.parametrize(
    "text", ["a/b/c", "a/b/c.gguf/d", "a/../c.gguf", "a/b/.gguf/x", "/a/b.gguf", "a/b/c.safetensors"]
)
def test_other_names_are_none(home: Path, text: str) -> None:
    with pytest.raises(TogetherError):
        resolve_model(text, home)


def test_a_gated_file_names_its_repository(hub: HubServer, store: Store, file: Path) -> None:
    hub.add(REPO, file.parent)
    hub.gated.add(REPO)
    with pytest.raises(BadSetting, match=f"{REPO} is gated: accept its licence at {hub.url}/{REPO},"):
        describe_hub(NAME, store)


def test_a_file_of_the_hubs_own_tools_is_taken_from_their_cache(
    home: Path, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    snapshot = tmp_path / "cache" / "models--acme--tiny-GGUF" / "snapshots" / "0123" / "Q4"
    snapshot.mkdir(parents=True)
    (snapshot / FILE).write_bytes(file.read_bytes())
    found = resolve_model(NAME, home)
    assert isinstance(found, Path)
    assert describe(found).key == describe(imported(file, home)).key
