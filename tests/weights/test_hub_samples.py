"""Samples of a hub's weights: few bytes, fetched once, and enough to know another fine-tune by."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.folders import SHAPES
from tests.support.hub import HubServer
from tests.support.pieces import random_model
from tests.weights.test_hub import FIRST, LARGER, REPO, publish, ref_of
from together.errors import BrokenModel
from together.models.manifest import describe
from together.weights.hub import describe_hub, fetch_units
from together.weights.store import Store


def test_samples_are_fetched_once(hub: HubServer, store: Store, tmp_path: Path) -> None:
    publish(hub, tmp_path / "tiny", larger=True)
    manifest = describe_hub(REPO, store)
    header = 8 + len(manifest.files[0].header)
    hub.served.clear()
    assert describe_hub(REPO, store) == manifest
    assert hub.weights_served() == header
    (store.folder(manifest.fingerprint) / "manifest.json").write_text(f'"{hub.commit(REPO)}"')
    assert describe_hub(REPO, store) == manifest, "a damaged store is no help and no harm"


def test_near_samples_are_one_request(hub: HubServer, store: Store, tmp_path: Path) -> None:
    layers, near, far = 40, "model.layers.{}.self_attn.q_proj.weight", "model.layers.{}.mlp.up_proj.weight"
    shapes = SHAPES | {near.format(n): (8, 8) for n in range(layers)} | {far.format(n): (800, 8) for n in range(layers)}
    folder = random_model(tmp_path / "deep", shapes, num_hidden_layers=layers)
    hub.add(REPO, folder)
    assert describe_hub(REPO, store).fingerprint == describe(folder).fingerprint
    asked = len([item for item in hub.asked if item[0].endswith(".safetensors")]) - 2  # of the header
    assert asked == layers + 2, "the embedding, the up_proj, and in one the small ones that lie side by side"


def test_another_fine_tune_is_another_model_and_its_bytes_are_refused(
    hub: HubServer, store: Store, tmp_path: Path
) -> None:
    """One layer is no whole file, so no published sha256 can tell: the samples do."""
    publish(hub, tmp_path / "tiny", larger=True)
    tuned = random_model(tmp_path / "tuned", LARGER, seed=1)
    manifest = describe_hub(REPO, store)
    assert hub.add("acme/tuned", tuned)
    assert describe_hub("acme/tuned", store).fingerprint != manifest.fingerprint
    hub.falsified["model.safetensors"] = (tuned / "model.safetensors").read_bytes()
    unit = manifest.units["layer-00000.safetensors"]
    with pytest.raises(BrokenModel, match=f"{unit.name} of {REPO} has other weights .*{manifest.fingerprint[:12]}"):
        fetch_units(ref_of(manifest), [unit], store)
    assert unit in store.missing(manifest.fingerprint, FIRST)
    hub.falsified.clear()
    assert fetch_units(ref_of(manifest), [unit], store)
