"""Tensors have one name, whatever prefix they were saved under; units follow from that name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.folders import SHAPES, write_model
from tests.support.pieces import exported
from together.models.manifest import describe
from together.models.names import EMBED, HEAD, NORM, canonical_names
from together.models.reading import all_tensors, tensors_for
from together.models.spec import read_spec
from together.types import LayerRange

PLAIN = (EMBED, "model.layers.0.mlp.up_proj.weight", "model.layers.11.self_attn.q_proj.bias", NORM, HEAD)


def stored(name: str, start: str, head: str) -> str:
    return head + name.removeprefix("lm_head.") if name == HEAD else start + name.removeprefix("model.")


@pytest.mark.parametrize(
    ("start", "head"),
    [
        ("model.", "lm_head."),
        ("", "lm_head."),
        ("language_model.model.", "language_model.lm_head."),
        ("model.language_model.", "lm_head."),
        ("language_model.", "lm_head."),
        ("model.language_model.model.", "model.language_model.lm_head."),
        ("module.model.", "module.lm_head."),
    ],
)
def test_every_prefix(start: str, head: str) -> None:
    towers = ["vision_tower.layers.0.norm.weight", "model.visual.norm.weight", "mtp.layers.0.x", "score.weight"]
    names = [stored(name, start, head) for name in PLAIN]
    assert canonical_names([*towers, *names]) == dict(zip(names, PLAIN, strict=True))


def test_a_model_in_canonical_names_keeps_them() -> None:
    others = ["norm.weight", "layers.0.mlp.up_proj.weight", "language_model.model.norm.weight", "embed_tokens.weight"]
    names = canonical_names([*others, *PLAIN])
    assert {name: names[name] for name in PLAIN} == {name: name for name in PLAIN}
    assert not names.keys() & set(others)


def test_part_of_a_model_has_a_prefix_too() -> None:
    assert canonical_names(["language_model.model.layers.3.mlp.x"]) == {
        "language_model.model.layers.3.mlp.x": "model.layers.3.mlp.x"
    }
    assert canonical_names(["encoder.layers.0.x", "wte.weight"]) == {}


def test_units_have_canonical_names_and_the_fingerprint_is_of_the_published_files(tmp_path: Path) -> None:
    plain = write_model(tmp_path / "a" / "m")
    odd = {stored(name, "language_model.model.", "language_model.lm_head."): s for name, s in SHAPES.items()}
    renamed = write_model(tmp_path / "b" / "m", odd | {"vision_tower.patch.weight": (3, 3)})
    ours, theirs = describe(renamed), describe(plain)
    assert ours.fingerprint != theirs.fingerprint
    assert {n: u.header for n, u in ours.units.items()} == {n: u.header for n, u in theirs.units.items()}
    assert read_spec(renamed).layer_weights == read_spec(plain).layer_weights
    shard = tmp_path / "shard"
    exported(renamed, LayerRange(1, 2), shard)
    names = {tensor.name for tensor in tensors_for(plain, LayerRange(1, 2), 2, tmp_path / "home")}
    assert {tensor.name for tensor in tensors_for(renamed, LayerRange(1, 2), 2, tmp_path / "home")} == names
    assert {tensor.name for tensor in tensors_for(shard, LayerRange(1, 2), 2, tmp_path / "home")} == names
    assert {tensor.key for tensor in all_tensors(renamed)} == odd.keys() - {
        "language_model.model.layers.1.self_attn.rotary_emb.inv_freq"
    } | {"vision_tower.patch.weight"}
