"""Downloads from a hub on loopback: only the bytes that are needed, resumed, checked, refused in a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.support.folders import SHAPES, write_model, write_tensors
from tests.support.hub import HubServer
from tests.support.patience import PATIENCE
from tests.support.pieces import flip, random_model, unit_bytes, with_template
from together.errors import BadSetting, BrokenModel, TogetherError, Unreachable, UnsupportedModel
from together.models.manifest import Manifest, describe
from together.models.names import TEMPLATES
from together.models.spec import read_spec
from together.models.units import SAMPLE_BYTES, Unit, units_for
from together.types import LayerRange, ModelRef
from together.weights.hub import describe_hub, fetch_units
from together.weights.hub_listing import NEAR
from together.weights.hub_ranges import RemoteFile, read_range
from together.weights.store import Store

REPO = "acme/tiny"
FIRST = LayerRange(0, 1)
BOTH = LayerRange(0, 2)
# Layers of 200 kB and 300 kB: long enough to be cut off in the middle.
LARGER = SHAPES | {"model.layers.0.mlp.up_proj.weight": (12500, 8), "model.layers.1.mlp.up_proj.weight": (18750, 8)}
SPLIT = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def publish(hub: HubServer, folder: Path, larger: bool = False, repo: str = REPO) -> Path:
    hub.add(repo, random_model(folder, LARGER if larger else SHAPES))
    return folder


def split(folder: Path) -> Path:
    """The model in two files and an index."""
    random_model(folder)
    (folder / "model.safetensors").unlink()
    places = {name: SPLIT["layers.1" in name or "norm" in name] for name in SHAPES}
    for file in SPLIT:
        write_tensors(folder / file, {name: shape for name, shape in SHAPES.items() if places[name] == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def ref_of(manifest: Manifest) -> ModelRef:
    return ModelRef(manifest.name, "", manifest.fingerprint, manifest.layers, manifest.revision)


def weight_bytes(units: tuple[Unit, ...]) -> int:
    return sum(unit.size - len(unit.header) for unit in units)


def fetched(store: Store, manifest: Manifest, unit: Unit) -> bytes:
    return (store.folder(manifest.fingerprint) / unit.name).read_bytes()


# --- describing -------------------------------------------------------------------------------------------------------


def test_a_description_costs_header_samples_and_small_files(hub: HubServer, store: Store, tmp_path: Path) -> None:
    folder = publish(hub, tmp_path / "tiny", larger=True)
    manifest = describe_hub(REPO, store)
    local = describe(folder)
    assert (manifest.name, manifest.revision) == (REPO, hub.commit(REPO))
    assert (manifest.fingerprint, manifest.files, manifest.small) == (local.fingerprint, local.files, local.small)
    header, samples = 8 + len(manifest.files[0].header), len(manifest.files[0].samples)
    assert samples == 4 * SAMPLE_BYTES + 16
    assert hub.weights_served() - header <= samples + NEAR
    assert hub.served.keys() == {"config.json", "tokenizer.json", "model.safetensors"}, "no code, nothing else"
    kept = read_spec(store.folder(manifest.fingerprint))
    assert kept.layer_weights == read_spec(folder).layer_weights


def test_further_templates_come_along_and_nothing_else_of_a_folder(
    hub: HubServer, store: Store, tmp_path: Path
) -> None:
    folder = with_template(publish(hub, tmp_path / "tiny"))
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    manifest = describe_hub(REPO, store)
    assert manifest.small == describe(folder).small
    template = f"{TEMPLATES}/tool_use.jinja"
    assert hub.served.keys() == {"config.json", "tokenizer.json", "model.safetensors", template}
    assert (store.folder(manifest.fingerprint) / template).read_bytes() == (folder / template).read_bytes()


def test_several_files_and_an_index(hub: HubServer, store: Store, tmp_path: Path) -> None:
    folder = split(tmp_path / "split")
    hub.add(REPO, folder)
    manifest = describe_hub(REPO, store)
    assert manifest.fingerprint == describe(folder).fingerprint
    assert fetch_units(ref_of(manifest), manifest.units.values(), store)
    for unit in manifest.units.values():
        assert fetched(store, manifest, unit) == unit_bytes(folder, unit)


def test_a_revision_that_is_named(hub: HubServer, store: Store, tmp_path: Path) -> None:
    publish(hub, tmp_path / "tiny")
    assert describe_hub(REPO, store, hub.commit(REPO)).revision == hub.commit(REPO)
    with pytest.raises(BadSetting, match="no such revision"):
        describe_hub(REPO, store, "v9")


def test_hub_modules_load_no_framework() -> None:
    code = "import sys, together.weights.hub; print({'torch', 'mlx', 'transformers'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert answer.stdout.strip() == "set()"


# --- fetching ---------------------------------------------------------------------------------------------------------


def test_only_the_bytes_of_the_units_travel(hub: HubServer, store: Store, tmp_path: Path) -> None:
    folder = publish(hub, tmp_path / "tiny", larger=True)
    manifest = describe_hub(REPO, store)
    units, seen = units_for(manifest, FIRST), list[tuple[int, int]]()
    hub.served.clear()
    assert fetch_units(ref_of(manifest), units, store, lambda done, total: seen.append((done, total)))
    assert hub.weights_served() == weight_bytes(units)
    size = sum(unit.size for unit in units)
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)
    assert all(fetched(store, manifest, unit) == unit_bytes(folder, unit) for unit in units)
    assert [unit.name for unit in store.missing(manifest.fingerprint, BOTH)] == [
        "layer-00001.safetensors",
        "norm.safetensors",
        "head.safetensors",
    ]


def test_what_is_here_asks_nobody(hub: HubServer, store: Store, tmp_path: Path) -> None:
    publish(hub, tmp_path / "tiny")
    manifest = describe_hub(REPO, store)
    assert fetch_units(ref_of(manifest), units_for(manifest, BOTH), store)
    hub.requests.clear()
    assert fetch_units(ref_of(manifest), units_for(manifest, BOTH), store)
    assert hub.requests == []


def test_a_fetch_without_a_skeleton_brings_it(hub: HubServer, store: Store, tmp_path: Path) -> None:
    """What a node has is the order's model alone."""
    folder = publish(hub, tmp_path / "tiny")
    local = describe(folder)
    model = ModelRef(REPO, "/elsewhere", local.fingerprint, 2, hub.commit(REPO))
    assert fetch_units(model, units_for(local, FIRST), store)
    assert not store.missing(local.fingerprint, FIRST)
    other = ModelRef(REPO, "", "0" * 64, 2)
    with pytest.raises(BrokenModel, match=f"another version of {REPO}: {local.fingerprint[:12]} there, 000000000000"):
        fetch_units(other, units_for(local, FIRST), store)


def test_cut_connections_go_on_where_they_ended(hub: HubServer, store: Store, tmp_path: Path) -> None:
    folder = publish(hub, tmp_path / "tiny", larger=True)
    manifest = describe_hub(REPO, store)
    hub.served.clear()
    hub.cuts = [100_000, 1, 0, 30_000]
    hub.broken = 2
    units = units_for(manifest, BOTH)
    assert fetch_units(ref_of(manifest), units, store)
    assert hub.cuts == []
    assert all(fetched(store, manifest, unit) == unit_bytes(folder, unit) for unit in units)
    gaps = 4  # inv_freq of two bf16 elements is in no unit; it is read to compare the file's sha256
    assert hub.weights_served() == weight_bytes(units) + gaps


def test_a_stopped_fetch_resumes(hub: HubServer, store: Store, tmp_path: Path) -> None:
    folder = publish(hub, tmp_path / "tiny", larger=True)
    manifest = describe_hub(REPO, store)
    unit = manifest.units["layer-00001.safetensors"]
    hub.bytes_per_s = 200_000
    seen = [0]
    model = ref_of(manifest)
    assert not fetch_units(model, [unit], store, lambda done, total: seen.append(done), lambda: seen[-1] > 20_000)
    part = store.folder(manifest.fingerprint) / f"{unit.name}.part"
    left = part.stat().st_size
    assert 20_000 < left < unit.size
    hub.bytes_per_s = 0
    hub.asked.clear()
    assert fetch_units(model, [unit], store)
    (piece,) = unit.pieces
    assert hub.asked == [(piece.file, piece.stop - (unit.size - left), piece.stop)]
    assert fetched(store, manifest, unit) == unit_bytes(folder, unit)


def test_progress_may_end_it(hub: HubServer, store: Store, tmp_path: Path) -> None:
    publish(hub, tmp_path / "tiny", larger=True)
    manifest = describe_hub(REPO, store)

    def cancel(done: int, total: int) -> None:
        if done > 1000:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fetch_units(ref_of(manifest), units_for(manifest, BOTH), store, cancel)
    assert fetch_units(ref_of(manifest), units_for(manifest, BOTH), store)


def test_a_hub_that_goes_away_leaves_a_part(hub: HubServer, store: Store, tmp_path: Path) -> None:
    publish(hub, tmp_path / "tiny", larger=True)
    manifest = describe_hub(REPO, store)
    unit = manifest.units["layer-00000.safetensors"]
    hub.cuts = [50_000]

    def away(done: int, total: int) -> None:
        hub.broken = 10**6 if done > 10_000 else 0

    with pytest.raises(Unreachable, match=r"stopped answering while model.safetensors of acme/tiny.*go on"):
        fetch_units(ref_of(manifest), [unit], store, away, patience=0.5)
    assert (store.folder(manifest.fingerprint) / f"{unit.name}.part").stat().st_size > 40_000
    hub.broken = 0
    assert fetch_units(ref_of(manifest), [unit], store)


def test_two_at_once_fetch_once(hub: HubServer, home: Path, tmp_path: Path) -> None:
    """As two stages of one machine do, each with a store of its own on the same home."""
    publish(hub, tmp_path / "tiny", larger=True)
    manifest = describe_hub(REPO, Store(home))
    units = units_for(manifest, FIRST)
    hub.served.clear()
    hub.bytes_per_s = 400_000
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(fetch_units, ref_of(manifest), units, Store(home)) for _ in range(2)]
        assert [one.result() for one in both] == [True, True]
    assert hub.weights_served() == weight_bytes(units)


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_refused_by_name_and_fetched_anew(hub: HubServer, store: Store, tmp_path: Path) -> None:
    folder = publish(hub, tmp_path / "tiny")
    manifest = describe_hub(REPO, store)
    wrong = tmp_path / "wrong"
    wrong.write_bytes((folder / "model.safetensors").read_bytes())
    flip(wrong)
    hub.falsified["model.safetensors"] = wrong.read_bytes()
    units = units_for(manifest, BOTH)
    assert fetch_units(ref_of(manifest), units_for(manifest, FIRST), store), "half a file cannot be compared"
    with pytest.raises(BrokenModel, match=r"model.safetensors of acme/tiny is broken.*the hub published.*layers 0:2"):
        fetch_units(ref_of(manifest), units, store)
    assert store.missing(manifest.fingerprint, BOTH) == units
    hub.falsified.clear()
    assert fetch_units(ref_of(manifest), units, store)
    assert all(fetched(store, manifest, unit) == unit_bytes(folder, unit) for unit in units)


def test_a_check_that_an_interrupted_run_left_is_done_later(hub: HubServer, store: Store, tmp_path: Path) -> None:
    folder = publish(hub, tmp_path / "tiny")
    manifest = describe_hub(REPO, store)
    units = units_for(manifest, BOTH)
    flip(folder / "model.safetensors")
    for unit in units:  # all that came is wrong, and nobody compared
        with store.part(manifest.fingerprint, unit.name) as part:
            part.write(unit_bytes(folder, unit))
            part.finish()
    flip(folder / "model.safetensors")
    with pytest.raises(BrokenModel, match="the hub published"):
        fetch_units(ref_of(manifest), units, store)


def test_a_file_with_much_beside_the_layers_is_left_alone(hub: HubServer, store: Store, tmp_path: Path) -> None:
    """A vision tower is not fetched for the sake of a hash; nor is the hub asked for it again."""
    tower = {"visual.blocks.0.weight": (1200, 8192)}
    hub.add(REPO, write_model(tmp_path / "vl", SHAPES | tower))
    manifest = describe_hub(REPO, store)
    hub.served.clear()
    assert fetch_units(ref_of(manifest), units_for(manifest, BOTH), store)
    assert hub.weights_served() == weight_bytes(units_for(manifest, BOTH))
    hub.requests.clear()
    assert fetch_units(ref_of(manifest), units_for(manifest, BOTH), store)
    assert hub.requests == []


def test_a_hub_that_lies_about_a_header(hub: HubServer, store: Store, tmp_path: Path) -> None:
    folder = publish(hub, tmp_path / "tiny")
    whole = (folder / "model.safetensors").read_bytes()
    hub.falsified["model.safetensors"] = b"\xff" * 8 + whole[8:]
    with pytest.raises(BrokenModel, match="header claims"):
        describe_hub(REPO, store)
    hub.falsified["model.safetensors"] = whole[:-1]
    with pytest.raises(BrokenModel, match="not what was published"):
        describe_hub(REPO, store)


def test_an_index_that_leads_elsewhere(hub: HubServer, store: Store, tmp_path: Path) -> None:
    folder = split(tmp_path / "split")
    hub.add(REPO, folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../other/model.safetensors"}}))
    with pytest.raises(BrokenModel, match=r"names '\.\./other/model\.safetensors'"):
        describe_hub(REPO, store)
    index.write_text("{}")
    with pytest.raises(BrokenModel, match="no weight_map"):
        describe_hub(REPO, Store(tmp_path / "other"))


def test_pickles_are_refused(hub: HubServer, store: Store, tmp_path: Path) -> None:
    folder = publish(hub, tmp_path / "tiny")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match="only pickle weights"):
        describe_hub(REPO, store)
    (folder / "pytorch_model.bin").rename(folder / "model.gguf")
    with pytest.raises(BrokenModel, match="it is no GGUF file"):
        describe_hub(REPO, store)
    hub.served.clear()
    (folder / "model.gguf").rename(folder / "adapter_config.json")
    with pytest.raises(UnsupportedModel, match="adapter"):
        describe_hub(REPO, store)
    (folder / "adapter_config.json").rename(folder / "notes.txt")
    with pytest.raises(UnsupportedModel, match=r"no model\.safetensors"):
        describe_hub(REPO, store)
    (folder / "config.json").unlink()
    with pytest.raises(UnsupportedModel, match=r"no config\.json"):
        describe_hub(REPO, store)
    assert hub.weights_served() == 0


def test_gated_models_need_a_token(
    hub: HubServer, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, tmp_path / "tiny")
    hub.gated.add(REPO)
    with pytest.raises(BadSetting, match=rf"{REPO} is gated: accept its licence at {hub.url}/{REPO}.*HF_TOKEN"):
        describe_hub(REPO, store)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(BadSetting, match="gated"):
        describe_hub(REPO, store)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    manifest = describe_hub(REPO, store)
    assert fetch_units(ref_of(manifest), units_for(manifest, BOTH), store)
    assert hub.cdn_tokens == [], "the token must not leave the hub"


@pytest.mark.parametrize("token", [None, "hf_right"])
def test_an_unknown_model(hub: HubServer, store: Store, token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(TogetherError, match=r"no/such"):
        describe_hub("no/such", store)


@pytest.mark.parametrize(
    "name", ["", "..", "a/..", "../a", "a/b/c", "/etc", "a b", "a/b?x=1", "a\\b", "a/b\n", "x" * 300, "a--b/c", "-a/b"]
)
def test_names_that_are_none_ask_nobody(hub: HubServer, store: Store, name: str) -> None:
    with pytest.raises(BadSetting, match="not the name of a model"):
        describe_hub(name, store)
    assert hub.requests == []


def test_no_network(hub: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9 does not answer \(.*check the network"):
        describe_hub(REPO, store)


def test_offline_by_choice(hub: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Unreachable, match="HF_HUB_OFFLINE forbids the hub"):
        describe_hub(REPO, store)
    assert hub.requests == []


def test_an_endpoint_without_ranges_or_without_a_hub(
    hub: HubServer, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, tmp_path / "tiny")
    hub.ranges = False
    with pytest.raises(BadSetting, match="does not serve byte ranges"):
        describe_hub(REPO, store)
    monkeypatch.setenv("HF_ENDPOINT", hub.url + "/nothing")
    with pytest.raises(Unreachable, match="answers 404"):
        describe_hub(REPO, store)


def test_waiting_for_a_hub_can_be_stopped(hub: HubServer, store: Store, tmp_path: Path) -> None:
    publish(hub, tmp_path / "tiny")
    manifest = describe_hub(REPO, store)
    hub.broken = 10**6
    stop = threading.Event()
    timer = threading.Timer(0.5, stop.set)
    timer.start()
    assert not fetch_units(ref_of(manifest), units_for(manifest, BOTH), store, should_stop=stop.is_set)
    timer.join()


def test_a_range_is_what_was_asked(hub: HubServer, tmp_path: Path) -> None:
    whole = (publish(hub, tmp_path / "tiny") / "model.safetensors").read_bytes()
    file = RemoteFile(REPO, hub.commit(REPO), "model.safetensors", len(whole))
    for start, stop in [(0, 8), (5, 6), (7, 7), (0, len(whole)), (len(whole) - 1, len(whole))]:
        assert b"".join(read_range(file, start, stop)) == whole[start:stop]
