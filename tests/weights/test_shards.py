"""A folder of units is a model like any other: the same description, the same tensors, and nothing broken is used."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.models.test_files import sharded
from tests.support.folders import SHAPES, without, write_raw
from tests.support.pieces import carry, exported, flip, random_model, unit_bytes, with_template
from together.errors import BadInput, BrokenModel
from together.models.headers import MAX_HEADER, TensorInfo
from together.models.manifest import describe, parse, read_manifest, small_files
from together.models.names import HEAD, MANIFEST, TEMPLATES
from together.models.reading import all_tensors, read_into, read_unit, tensors_for, unit_digest, units_here
from together.models.spec import fingerprint, read_shape, read_spec
from together.types import LayerRange
from together.weights.store import Store

FIRST = "layer-00000.safetensors"
ALL = LayerRange(0, 2)


def bytes_of(tensor: TensorInfo) -> bytes:
    target = bytearray(tensor.nbytes)
    read_into(tensor, memoryview(target))
    return bytes(target)


def contents(folder: Path, layers: LayerRange) -> dict[str, tuple[object, ...]]:
    return {t.name: (t.dtype, t.shape, bytes_of(t)) for t in tensors_for(folder, layers, 2, folder.parent)}


@pytest.mark.parametrize("tied", [False, True])
def test_it_reads_as_the_original_does(tmp_path: Path, home: Path, tied: bool) -> None:
    original = random_model(tmp_path / "tiny", without(HEAD) if tied else SHAPES)
    manifest = carry(Store(home), original)
    folder = Store(home).folder(manifest.fingerprint)
    assert read_spec(folder) == read_spec(original)
    assert fingerprint(folder) == fingerprint(original)
    assert [t.name for t in all_tensors(folder)] == [t.name for t in all_tensors(original)]
    for layers in (LayerRange(0, 1), LayerRange(1, 2), ALL):
        assert contents(folder, layers) == contents(original, layers)


def test_units_are_the_same_from_both(tmp_path: Path, home: Path) -> None:
    original = sharded(tmp_path / "m")
    manifest = carry(Store(home), original)
    folder = Store(home).folder(manifest.fingerprint)
    for unit in manifest.units.values():
        assert unit_bytes(folder, unit, 17) == unit_bytes(original, unit, 17) == unit_bytes(original, unit)[17:]
        assert unit_digest(folder, unit, tmp_path / "home") == unit_digest(original, unit, tmp_path / "home")


def test_an_export_stands_alone(tmp_path: Path) -> None:
    original = random_model(tmp_path / "tiny")
    made = exported(original, LayerRange(0, 1), tmp_path / "usb" / "first")
    folder = tmp_path / "usb" / "first"
    files = {"config.json", "tokenizer.json", MANIFEST, "embed.safetensors", FIRST}
    assert {file.name for file in folder.iterdir()} == files  # and nothing that could be run
    assert read_manifest(folder) == made
    known = {name: unit_digest(original, made.units[name], tmp_path) for name in ("embed.safetensors", FIRST)}
    assert made.digests == known
    wanted = contents(original, LayerRange(0, 1))
    (original / "model.safetensors").unlink()
    assert contents(folder, LayerRange(0, 1)) == wanted
    assert (read_shape(folder).name, read_spec(folder).layers) == ("tiny", 2)


def test_its_templates_go_with_it(tmp_path: Path, home: Path) -> None:
    original = with_template(random_model(tmp_path / "tiny"))
    exported(original, ALL, tmp_path / "usb")
    manifest = carry(Store(home), tmp_path / "usb")
    kept = Store(home).folder(manifest.fingerprint)
    (kept / MANIFEST).write_text("[]")  # damaged, and written anew around its units
    carry(Store(home), tmp_path / "usb")
    for folder in (tmp_path / "usb", kept):
        assert small_files(folder) == small_files(original)
        assert [file.name for file in (folder / TEMPLATES).iterdir()] == ["tool_use.jinja"]  # and no *.py


def test_an_export_of_an_export(tmp_path: Path) -> None:
    original = random_model(tmp_path / "tiny")
    exported(original, ALL, tmp_path / "all")
    made = exported(tmp_path / "all", LayerRange(1, 2), tmp_path / "last")
    assert contents(tmp_path / "last", LayerRange(1, 2)) == contents(original, LayerRange(1, 2))
    with pytest.raises(BrokenModel, match="lacks embed, layers 0:1 of tiny"):
        exported(tmp_path / "last", ALL, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert made.fingerprint == fingerprint(original)


def test_an_export_goes_nowhere_that_is_taken(tmp_path: Path) -> None:
    original = random_model(tmp_path / "tiny")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes").write_text("mine")
    with pytest.raises(BadInput, match="taken exists already"):
        exported(original, ALL, tmp_path / "taken")
    with pytest.raises(BrokenModel, match="2 layers, not 0:3"):
        exported(original, LayerRange(0, 3), tmp_path / "new")
    (tmp_path / "empty").mkdir()
    exported(original, ALL, tmp_path / "empty")
    assert read_spec(tmp_path / "empty").layers == 2


def test_a_damaged_source_is_not_exported(tmp_path: Path) -> None:
    exported(random_model(tmp_path / "tiny"), ALL, tmp_path / "all")
    flip(tmp_path / "all" / FIRST)
    with pytest.raises(BrokenModel, match=f"{FIRST} of tiny is broken"):
        exported(tmp_path / "all", ALL, tmp_path / "new")
    assert [file.name for file in tmp_path.iterdir() if "new" in file.name] == []
    (tmp_path / "all" / "tokenizer.json").write_text("{}")
    with pytest.raises(BrokenModel, match=r"tokenizer\.json of tiny is broken"):
        exported(tmp_path / "all", ALL, tmp_path / "new")


# --- what is missing or broken ----------------------------------------------------------------------------------------


def test_missing_layers_are_named(tmp_path: Path) -> None:
    exported(random_model(tmp_path / "tiny"), LayerRange(0, 1), tmp_path / "first")
    with pytest.raises(BrokenModel, match="lacks layers 1:2, norm, head of tiny"):
        tensors_for(tmp_path / "first", ALL, 2, tmp_path / "home")
    manifest = read_manifest(tmp_path / "first")
    with pytest.raises(BrokenModel, match=r"first/norm\.safetensors is broken: it is missing"):
        read_unit(tmp_path / "first", manifest.units["norm.safetensors"])


def test_a_flipped_byte_is_refused_by_name(tmp_path: Path) -> None:
    exported(random_model(tmp_path / "tiny"), ALL, tmp_path / "all")
    flip(tmp_path / "all" / FIRST)
    with pytest.raises(BrokenModel, match=f"{FIRST} of tiny is broken: its sha256"):
        tensors_for(tmp_path / "all", LayerRange(0, 1), 2, tmp_path / "home")
    with pytest.raises(BrokenModel, match=f"{FIRST} of tiny is broken: its sha256"):
        unit_digest(tmp_path / "all", read_manifest(tmp_path / "all").units[FIRST], tmp_path / "home")
    assert tensors_for(tmp_path / "all", LayerRange(1, 2), 2, tmp_path / "home")  # the others are whole


def test_a_flipped_byte_after_the_first_use_is_refused_too(tmp_path: Path) -> None:
    exported(random_model(tmp_path / "tiny"), ALL, tmp_path / "all")
    tensors_for(tmp_path / "all", ALL, 2, tmp_path / "home")
    file = tmp_path / "all" / FIRST
    flip(file)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**9))
    with pytest.raises(BrokenModel, match=FIRST):
        tensors_for(tmp_path / "all", ALL, 2, tmp_path / "home")


@pytest.mark.parametrize("how", ["shorter", "longer"])
def test_another_size_is_refused_by_name(tmp_path: Path, how: str) -> None:
    exported(random_model(tmp_path / "tiny"), ALL, tmp_path / "all")
    file = tmp_path / "all" / FIRST
    content = file.read_bytes()
    file.write_bytes(content[:-1] if how == "shorter" else content + b"x")
    with pytest.raises(BrokenModel, match=f"{FIRST} of tiny in .*all is broken: it has"):
        tensors_for(tmp_path / "all", ALL, 2, tmp_path / "home")
    assert FIRST not in units_here(tmp_path / "all", read_manifest(tmp_path / "all"))


def test_another_header_is_refused_without_a_hash(tmp_path: Path) -> None:
    exported(random_model(tmp_path / "tiny"), ALL, tmp_path / "all")
    manifest = read_manifest(tmp_path / "all")
    (tmp_path / "all" / MANIFEST).write_bytes(replace(manifest, digests={}).to_json())
    unit = manifest.units[FIRST]
    write_raw(tmp_path / "all" / FIRST, b"{}", bytes(unit.size - 10), length=MAX_HEADER + 1)
    with pytest.raises(BrokenModel, match=f"{FIRST} of tiny in .*all is broken: its header"):
        tensors_for(tmp_path / "all", ALL, 2, tmp_path / "home")


def test_another_config_is_refused(tmp_path: Path) -> None:
    exported(random_model(tmp_path / "tiny"), ALL, tmp_path / "all")
    with (tmp_path / "all" / "config.json").open("a") as config:
        config.write(" ")
    for read in (read_spec, fingerprint, describe):
        with pytest.raises(BrokenModel, match="fingerprint"):
            read(tmp_path / "all")


@pytest.mark.skipif(os.name == "nt", reason="making links needs rights there")
def test_a_unit_that_links_elsewhere_is_refused(tmp_path: Path) -> None:
    exported(random_model(tmp_path / "tiny"), ALL, tmp_path / "all")
    (tmp_path / "all" / FIRST).rename(tmp_path / "elsewhere")
    (tmp_path / "all" / FIRST).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BrokenModel, match="outside"):
        tensors_for(tmp_path / "all", ALL, 2, tmp_path / "home")


@pytest.mark.parametrize("offset", [-1, 10**9])
def test_bytes_that_no_unit_has(tmp_path: Path, offset: int) -> None:
    folder = random_model(tmp_path / "tiny")
    with pytest.raises(BrokenModel, match=f"none at {offset}"):
        read_unit(folder, describe(folder).units[FIRST], offset)


def test_an_original_that_was_cut_meanwhile(tmp_path: Path) -> None:
    folder = random_model(tmp_path / "tiny")
    unit = describe(folder).units["head.safetensors"]
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BrokenModel, match="1 bytes before a unit does"):
        list(read_unit(folder, unit))
    file.unlink()
    with pytest.raises(BrokenModel, match="cannot be read"):
        list(read_unit(folder, unit))
    with pytest.raises(BrokenModel, match="cannot be read"):
        unit_digest(folder, unit, tmp_path / "home")


# --- hashing once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["checkpoint", "export"])
def test_an_unchanged_file_is_hashed_once(tmp_path: Path, home: Path, kind: str) -> None:
    folder = random_model(tmp_path / "tiny")
    if kind == "export":
        exported(folder, ALL, tmp_path / "all")
        folder = tmp_path / "all"
    unit = describe(folder).units[FIRST]
    before = unit_digest(folder, unit, home)
    file = folder / (FIRST if kind == "export" else "model.safetensors")
    stamp = file.stat()
    place = unit.size - 1 if kind == "export" else unit.pieces[0].start
    flip(file, place)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert unit_digest(folder, unit, home) == before  # nothing that it can see has changed: it does not read the file
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1000))
    if kind == "export":
        with pytest.raises(BrokenModel, match="sha256"):
            unit_digest(folder, unit, home)
    else:
        assert unit_digest(folder, unit, home) != before


def test_what_was_fetched_is_not_hashed_again(tmp_path: Path, home: Path) -> None:
    manifest = carry(Store(home), random_model(tmp_path / "tiny"))
    file = Store(home).folder(manifest.fingerprint) / FIRST
    stamp = file.stat()
    flip(file)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert tensors_for(file.parent, ALL, 2, home)


def test_damaged_memory_of_hashes_only_costs_time(tmp_path: Path, home: Path) -> None:
    folder = random_model(tmp_path / "tiny")
    unit = describe(folder).units[FIRST]
    before = unit_digest(folder, unit, home)
    (kept,) = (home / "digests").iterdir()
    for damage in (b"", b"[]", b"{}", b'{"key": 1, "stamp": 2, "sha256": 3}'):
        kept.write_bytes(damage)
        assert unit_digest(folder, unit, home) == before


def test_a_manifest_survives_its_own_export(tmp_path: Path) -> None:
    made = exported(random_model(tmp_path / "tiny"), ALL, tmp_path / "all")
    assert parse((tmp_path / "all" / MANIFEST).read_bytes()) == made
