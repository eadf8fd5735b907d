"""Samples of the weights tell fine-tunes apart that share config and headers, and keep their layers from mixing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.test_files import sharded
from tests.support.folders import SHAPES, Shapes
from tests.support.pieces import carry, exported, random_model, unit_bytes
from tests.support.work import calls_of
from together.errors import BrokenModel
from together.models import checkpoint
from together.models.checkpoint import checkpoint_files, checkpoint_headers
from together.models.headers import FileHeader, Headers, TensorInfo
from together.models.manifest import describe, read_manifest, small_files
from together.models.names import MANIFEST, layer_of
from together.models.reading import require_samples, tensors_for, unit_digest
from together.models.spec import fingerprint, read_spec
from together.models.units import SAMPLE_BYTES, SAMPLES, sample_places
from together.types import LayerRange
from together.weights.store import Store

FIRST = "layer-00000.safetensors"
ALL = LayerRange(0, 2)
ENDS: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (16, 8),
    "model.norm.weight": (8,),
    "lm_head.weight": (16, 8),
}
DENSE = [f"self_attn.{m}_proj" for m in "qkvo"] + [f"mlp.{m}_proj" for m in ("gate", "up", "down")]


def dense(layers: int) -> dict[str, tuple[int, ...]]:
    matrices = {f"model.layers.{n}.{kind}.weight": (8, 8) for n in range(layers) for kind in DENSE}
    return ENDS | matrices | {f"model.layers.{n}.input_layernorm.weight": (8,) for n in range(layers)}


def experts(layers: int, each: int = 128) -> dict[str, tuple[int, ...]]:
    """Mixtral names its matrices w1 to w3: a number there is no layer and no expert."""
    beside = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "block_sparse_moe.gate"]
    found = {f"model.layers.{n}.{kind}.weight": (8, 8) for n in range(layers) for kind in beside}
    place = "model.layers.{}.block_sparse_moe.experts.{}.{}.weight"
    return ENDS | found | {place.format(n, e, w): (8, 8) for n in range(layers) for e in range(each) for w in WS}


WS = ("w1", "w2", "w3")


def header_of(shapes: Shapes, file: str = "model.safetensors", element: int = 2) -> FileHeader:
    """A header alone, of bf16 tensors: nothing is written."""
    entries, position = {}, 0
    for name, shape in shapes.items():
        size = element
        for number in shape:
            size *= number
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    raw = json.dumps(entries).encode()
    return Headers().check(Path("m", file), raw, 8 + len(raw) + position)


def sampled(*headers: FileHeader) -> list[TensorInfo]:
    """The tensors that samples are taken of, each as often as it is sampled."""
    places = sample_places(headers)
    pieces = [(piece, header) for header in headers for piece in places[header.file.name]]
    return [
        tensor
        for piece, header in pieces
        for tensor in header.tensors
        if tensor.start <= piece.start and piece.stop <= tensor.stop
    ]


def kind_of(name: str) -> str:
    return ".".join("#" if part.isdigit() else part for part in name.split("."))


def change(folder: Path, which: Callable[[str], bool]) -> Path:
    """Add one to every byte of some tensors, as a merged LoRA changes all of a matrix."""
    (header,) = checkpoint_headers(folder)
    content = bytearray(header.file.read_bytes())
    for tensor in header.tensors:
        if which(tensor.name):
            place = slice(tensor.start, tensor.stop)
            content[place] = bytes((byte + 1) % 256 for byte in content[place])
    header.file.write_bytes(content)
    return folder


# --- what is told apart -----------------------------------------------------------------------------------------------


def test_other_weights_are_another_model(tmp_path: Path) -> None:
    one, other = (random_model(tmp_path / str(seed) / "m", seed=seed) for seed in (0, 1))
    assert (one / "config.json").read_bytes() == (other / "config.json").read_bytes()
    assert checkpoint_headers(one)[0].raw == checkpoint_headers(other)[0].raw
    assert len({fingerprint(one), fingerprint(other)}) == 2
    assert fingerprint(one) == fingerprint(random_model(tmp_path / "again" / "m"))
    assert fingerprint(one) == describe(one).fingerprint == read_spec(one).fingerprint


@pytest.mark.parametrize("shapes", [dense(40), experts(6, each=24)], ids=["dense", "experts"])
def test_one_kind_of_matrix_changed_in_every_layer_is_seen(tmp_path: Path, shapes: Shapes) -> None:
    folder = random_model(tmp_path / "m", shapes, num_hidden_layers=6)
    prints = [fingerprint(folder)]
    kinds = {kind_of(name) for name, shape in shapes.items() if len(shape) > 1}
    for kind in sorted(kinds):
        change(folder, lambda name, kind=kind: kind_of(name) == kind)  # type: ignore[misc]
        prints.append(fingerprint(folder))
    assert len(set(prints)) == len(kinds) + 1


@pytest.mark.parametrize("layers", [1, 2, 28, 48, 80, 94])
@pytest.mark.parametrize("shapes_of", [dense, experts])
def test_every_kind_and_every_layer_has_a_sample(layers: int, shapes_of: Callable[[int], Shapes]) -> None:
    shapes = shapes_of(layers)
    found = sampled(header_of(shapes))
    assert len(found) == len({tensor.name for tensor in found}) == min(SAMPLES, len(shapes))
    assert {layer_of(tensor.name) for tensor in found} >= set(range(layers))
    kinds = Counter(kind_of(tensor.name) for tensor in found if len(tensor.shape) > 1)
    assert kinds.keys() == {kind_of(name) for name, shape in shapes.items() if len(shape) > 1}
    many = [count for kind, count in kinds.items() if "layers" in kind]
    assert max(many) - min(many) <= 1 or min(many) == layers


def test_where_a_sample_lies() -> None:
    """The middle 64 bytes, all of a smaller tensor; matrices first, nothing of what is computed."""
    (pieces,) = sample_places([header_of(SHAPES)]).values()
    assert [piece.size for piece in pieces] == [64, 64, 64, 16, 64]
    (tensor,) = (tensor for tensor in header_of(SHAPES).tensors if tensor.name == "lm_head.weight")
    assert (pieces[-1].start - tensor.start, tensor.stop - pieces[-1].stop) == (96, 96)
    assert sample_places([header_of({"model.a": (0, 8), "model.b": ()})])["model.safetensors"][0].size == 2
    vectors: Shapes = {f"model.layers.{n}.bias": (8,) for n in range(300)}
    assert not any(tensor.name.endswith("bias") for tensor in sampled(header_of({**dense(40), **vectors})))
    assert len(sampled(header_of(vectors))) == SAMPLES


_NAMES = st.sampled_from(["q_proj", "k_proj", "experts.3.up", "experts.11.up", "norm", "1", "x.2"])


@given(
    names=st.sets(st.builds("model.layers.{}.{}.{}".format, st.integers(0, 90), _NAMES, _NAMES), max_size=400),
    size=st.integers(0, 90),
    cuts=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_samples_follow_from_names_and_shapes_alone(names: set[str], size: int, cuts: int) -> None:
    """However the tensors are ordered and spread over files, the same ones are sampled, as many as there may be."""
    ordered = sorted(names)
    whole = sampled(header_of(dict.fromkeys(ordered, (size, 1))))
    parts = [header_of(dict.fromkeys(ordered[::-1][i::cuts], (size, 1)), f"{i}.safetensors") for i in range(cuts)]
    assert sorted(tensor.name for tensor in whole) == sorted(tensor.name for tensor in sampled(*parts))
    assert len({tensor.name for tensor in whole}) == len(whole) == (min(SAMPLES, len(names)) if size else 0)
    assert all(piece.size == min(SAMPLE_BYTES, 2 * size) for part in sample_places(parts).values() for piece in part)


def test_samples_of_a_large_mixture_cost_about_as_much_as_its_headers(tmp_path: Path) -> None:
    """36,000 tensors, counted in calls: a fixed number for each tensor, however many there are."""
    shapes = experts(94)
    folder = random_model(tmp_path / "m", shapes)
    headers, files = calls_of(lambda: checkpoint_headers(folder)), calls_of(lambda: checkpoint_files(folder))
    assert files - headers < 100 * len(shapes)
    assert headers < 100 * len(shapes)


def test_of_a_large_mixture_only_headers_and_samples_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = random_model(tmp_path / "m", experts(94))
    header_bytes = 8 + len(checkpoint_headers(folder)[0].raw)
    count = count_reads(monkeypatch)
    checkpoint_files(folder)
    assert header_bytes < count["bytes"] <= header_bytes + SAMPLES * SAMPLE_BYTES
    assert count["opened"] <= 2


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Bytes that are asked of safetensors files from now on, and how often one is opened."""
    count: Counter[str] = Counter()
    plain = Path.open

    def counting(path: Path, *arguments: Any, **more: Any) -> Any:
        stream = plain(path, *arguments, **more)
        if path.suffix != ".safetensors":
            return stream
        count["opened"] += 1
        return Counted(stream, count)

    monkeypatch.setattr(Path, "open", counting)
    return count


class Counted:
    """A file whose reads are counted."""

    def __init__(self, stream: IO[bytes], count: Counter[str]) -> None:
        self._stream, self._count = stream, count

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def seek(self, place: int) -> int:
        return self._stream.seek(place)

    def read(self, size: int = -1) -> bytes:
        found = self._stream.read(size)
        self._count["bytes"] += len(found)
        return found


# --- what is refused --------------------------------------------------------------------------------------------------


def test_all_forms_of_a_model_agree(tmp_path: Path, home: Path) -> None:
    """The hub's form is in test_hub."""
    for original in (random_model(tmp_path / "one"), sharded(tmp_path / "two")):
        wanted = fingerprint(original)
        carry(Store(home), original, FIRST)
        exported(original, ALL, tmp_path / f"all-{original.name}")
        exported(tmp_path / f"all-{original.name}", LayerRange(1, 2), tmp_path / f"half-{original.name}")
        folders = (Store(home).folder(wanted), tmp_path / f"all-{original.name}", tmp_path / f"half-{original.name}")
        assert [fingerprint(folder) for folder in folders] == [wanted] * 3
        assert [read_manifest(folder).files for folder in folders] == [describe(original).files] * 3


def test_a_manifest_with_other_samples_is_another_models(tmp_path: Path) -> None:
    folder = random_model(tmp_path / "m")
    manifest = describe(folder)
    (file,) = manifest.files
    lie = replace(manifest, files=(replace(file, samples=bytes(len(file.samples))),))
    with pytest.raises(BrokenModel, match=f"it says {manifest.fingerprint[:12]}"):
        lie.verify((folder / "config.json").read_bytes())


def test_a_unit_of_another_fine_tune_does_not_arrive(tmp_path: Path, home: Path) -> None:
    one, other = (random_model(tmp_path / str(seed) / "tiny", seed=seed) for seed in (0, 1))
    store, manifest = Store(home), describe(one)
    store.begin(manifest, small_files(one))
    for name, unit in manifest.units.items():
        with store.part(manifest.fingerprint, name) as part:
            part.write(unit_bytes(other, unit))
            with pytest.raises(BrokenModel, match=f"{name} of tiny has other weights .*{manifest.fingerprint[:12]}"):
                part.finish()
    assert not list(store.folder(manifest.fingerprint).glob("*.safetensors*")), "nor is a part of it kept"
    carry(store, one)


def test_a_unit_of_another_fine_tune_is_not_used(tmp_path: Path) -> None:
    """As if somebody copied files by hand, and no hash is known."""
    one, other = (random_model(tmp_path / str(seed) / "tiny", seed=seed) for seed in (0, 1))
    made = exported(one, ALL, tmp_path / "shard")
    (tmp_path / "shard" / MANIFEST).write_bytes(replace(made, digests={}).to_json())
    (tmp_path / "shard" / FIRST).write_bytes(unit_bytes(other, made.units[FIRST]))
    message = f"{FIRST} of tiny has other weights than .*{made.fingerprint[:12]}"
    with pytest.raises(BrokenModel, match=message):
        tensors_for(tmp_path / "shard", ALL, 2, tmp_path / "home")
    with pytest.raises(BrokenModel, match=message):
        unit_digest(tmp_path / "shard", made.units[FIRST], tmp_path / "home")
    with pytest.raises(BrokenModel, match=message):
        exported(tmp_path / "shard", ALL, tmp_path / "next")
    assert not (tmp_path / "next").exists()
    assert tensors_for(tmp_path / "shard", LayerRange(1, 2), 2, tmp_path / "home"), "its other layers are good"


def test_every_sample_of_a_unit_is_compared(tmp_path: Path) -> None:
    """Units in several files and pieces: the places in a unit are those in the original."""
    folder = sharded(tmp_path / "m")
    random = random_model(tmp_path / "r", experts(3, each=2), num_hidden_layers=3)
    for original, layers in ((folder, 2), (random, 3)):
        made = exported(original, LayerRange(0, layers), tmp_path / f"shard-{original.name}")
        count = 0
        for unit in made.units.values():
            file = tmp_path / f"shard-{original.name}" / unit.name
            require_samples(made, unit, file)
            content = file.read_bytes()
            for sample in made.samples(unit):
                count += 1
                last = sample.at + len(sample.data) - 1
                file.write_bytes(content[:last] + bytes([content[last] ^ 1]) + content[last + 1 :])
                with pytest.raises(BrokenModel, match=f"{unit.name} of {original.name} has other weights"):
                    require_samples(made, unit, file)
        assert count == sum(len(places) for places in made.places.values()) > 4


def test_a_file_that_changes_while_it_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = random_model(tmp_path / "m")
    file = folder / "model.safetensors"

    def meanwhile(act: Callable[[], object]) -> None:
        def choose(headers: Iterable[FileHeader]) -> object:
            act()
            return sample_places(headers)

        monkeypatch.setattr(checkpoint, "sample_places", choose)

    meanwhile(lambda: file.write_bytes(file.read_bytes()[:-150]))
    with pytest.raises(BrokenModel, match=r"m/model\.safetensors is broken: it became shorter"):
        fingerprint(folder)
    random_model(folder)
    meanwhile(file.unlink)
    with pytest.raises(BrokenModel, match=r"m/model\.safetensors cannot be read"):
        fingerprint(folder)


def test_a_unit_that_is_gone(tmp_path: Path) -> None:
    made = exported(random_model(tmp_path / "m"), ALL, tmp_path / "shard")
    with pytest.raises(BrokenModel, match=rf"nowhere/{FIRST} cannot be read"):
        require_samples(made, made.units[FIRST], tmp_path / "nowhere" / FIRST)
