"""The cache on disk: units arrive in parts, resume, and are never taken for whole before they are."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.patience import PATIENCE
from tests.support.pieces import carry, flip, random_model, unit_bytes
from together.errors import BadInput, BrokenModel
from together.models.manifest import describe, read_manifest, small_files
from together.models.reading import units_here
from together.types import LayerRange
from together.weights import store as store_module
from together.weights.part import DiskFull
from together.weights.store import Store, UnitBusy, drafted
from together.wording import sizes_text

FIRST = "layer-00000.safetensors"
Usage = namedtuple("Usage", "total used free")


def begun(home: Path, folder: Path) -> tuple[Store, str]:
    store, manifest = Store(home), describe(folder)
    store.begin(manifest, small_files(folder))
    return store, manifest.fingerprint


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_model_arrives_unit_by_unit(tmp_path: Path, home: Path) -> None:
    folder = random_model(tmp_path / "tiny")
    store, print_ = begun(home, folder)
    assert [unit.name for unit in store.missing(print_, LayerRange(0, 1))] == ["embed.safetensors", FIRST]
    for unit in store.missing(print_, LayerRange(0, 1)):
        content = unit_bytes(folder, unit)
        with store.part(print_, unit.name) as part:
            part.write(content)
            assert part.finish(sha256(content)) == sha256(content)
        assert (store.folder(print_) / unit.name).read_bytes() == content
    assert store.missing(print_, LayerRange(0, 1)) == ()
    assert store.missing(print_, LayerRange(1, 2))[0].name == "layer-00001.safetensors"
    assert set(read_manifest(store.folder(print_)).digests) == {"embed.safetensors", FIRST}


def test_what_it_holds(tmp_path: Path, home: Path) -> None:
    manifest = carry(Store(home), random_model(tmp_path / "tiny"), "embed.safetensors", FIRST)
    (held,) = Store(home).holdings()
    assert (held.name, held.fingerprint, held.layers) == ("tiny", manifest.fingerprint, 2)
    assert (held.units, held.held, held.whole) == (("embed.safetensors", FIRST), "embed, layers 0:1", False)
    assert held.bytes > sum(manifest.units[name].size for name in held.units)
    carry(Store(home), tmp_path / "tiny")
    assert Store(home).holdings()[0].held == "all 2 layers"


def test_a_damaged_folder_is_listed_with_its_fault(tmp_path: Path, home: Path) -> None:
    store, print_ = begun(home, random_model(tmp_path / "tiny"))
    (store.folder(print_) / "config.json").write_text("{}")
    assert "fingerprint" in store.holdings()[0].fault
    begun(home, tmp_path / "tiny")  # and made whole by beginning again
    assert store.holdings()[0].fault == ""


# --- parts ------------------------------------------------------------------------------------------------------------


@given(cuts=st.lists(st.integers(0, 400), max_size=4), hashed=st.booleans())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_part_resumes_wherever_it_was_cut(tmp_path: Path, home: Path, cuts: list[int], hashed: bool) -> None:
    folder = tmp_path / "tiny"
    if not folder.exists():
        random_model(folder)
    Store(home).remove(describe(folder).fingerprint)
    store, print_ = begun(home, folder)
    unit = describe(folder).units[FIRST]
    content = unit_bytes(folder, unit)
    for cut in sorted(cuts):
        with store.part(print_, unit.name) as part:
            assert unit_bytes(folder, unit, part.size) == content[part.size :]
            part.write(content[part.size : max(part.size, min(cut, unit.size))])
        assert unit in store.missing(print_, LayerRange(0, 1))  # however long: it was not finished
    with store.part(print_, unit.name) as part:
        assert part.size == max([0, *(min(cut, unit.size) for cut in cuts)])
        part.write(content[part.size :])
        part.finish(sha256(content) if hashed else None)
    assert (store.folder(print_) / FIRST).read_bytes() == content
    assert list(store.folder(print_).glob("*.part")) == []


def test_a_cut_off_part_is_not_finished(tmp_path: Path, home: Path) -> None:
    folder = random_model(tmp_path / "tiny")
    store, print_ = begun(home, folder)
    unit = describe(folder).units[FIRST]
    with store.part(print_, unit.name) as part:
        part.write(unit_bytes(folder, unit)[:100])
        with pytest.raises(BrokenModel, match=f"100 of {unit.size} bytes"):
            part.finish()
    with store.part(print_, unit.name) as part:
        assert part.size == 100


@pytest.mark.parametrize("known", ["by the sender", "by the manifest"])
def test_a_wrong_hash_deletes_the_part_and_names_both(tmp_path: Path, home: Path, known: str) -> None:
    folder = random_model(tmp_path / "tiny")
    manifest, store = describe(folder), Store(home)
    unit = manifest.units[FIRST]
    content = unit_bytes(folder, unit)
    digests = {FIRST: sha256(content)} if known == "by the manifest" else {}
    store.begin(replace(manifest, digests=digests), small_files(folder))
    bad = content[:-1] + bytes([content[-1] ^ 1])
    with store.part(manifest.fingerprint, unit.name) as part:
        part.write(bad)
        with pytest.raises(BrokenModel, match=f"{FIRST} of tiny .*{sha256(bad)}.*{sha256(content)}"):
            part.finish(sha256(content) if known == "by the sender" else sha256(bad))
    with store.part(manifest.fingerprint, unit.name) as part:
        assert part.size == 0


def test_a_foreign_header_is_refused_whatever_its_hash(tmp_path: Path, home: Path) -> None:
    folder = random_model(tmp_path / "tiny")
    store, print_ = begun(home, folder)
    unit = describe(folder).units[FIRST]
    bad = unit_bytes(folder, unit).replace(b'"F32"', b'"I32"').replace(b'"BF16"', b'"I16" ')
    with store.part(print_, unit.name) as part:
        part.write(bad)
        with pytest.raises(BrokenModel, match="has another header"):
            part.finish(sha256(bad))
    assert list(store.folder(print_).glob("layer*")) == []


def test_more_bytes_than_a_unit_has(tmp_path: Path, home: Path) -> None:
    folder = random_model(tmp_path / "tiny")
    store, print_ = begun(home, folder)
    unit = describe(folder).units[FIRST]
    with store.part(print_, unit.name) as part, pytest.raises(BrokenModel, match="more were sent"):
        part.write(bytes(unit.size + 1))
    (store.folder(print_) / f"{FIRST}.part").write_bytes(bytes(unit.size + 1))  # left by something else
    with store.part(print_, unit.name) as part:
        assert part.size == 0


def test_one_writer_at_a_time(tmp_path: Path, home: Path) -> None:
    folder = random_model(tmp_path / "tiny")
    store, print_ = begun(home, folder)
    with store.part(print_, FIRST) as part:
        part.write(b"1")
        with pytest.raises(UnitBusy, match=FIRST):
            Store(home).part(print_, FIRST)
        with pytest.raises(UnitBusy, match="being written"):
            store.remove(print_)
        code = "import sys; from pathlib import Path; from together.weights.store import Store\n"
        code += "Store(Path(sys.argv[1])).part(sys.argv[2], sys.argv[3])"
        other = [sys.executable, "-c", code, str(home), print_, FIRST]
        answer = subprocess.run(other, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert "UnitBusy" in answer.stderr
        Store(home).part(print_, "norm.safetensors").close()  # another unit is free
    Store(home).part(print_, FIRST).close()


def test_the_slower_of_two_finds_the_unit_there(tmp_path: Path, home: Path) -> None:
    manifest = carry(Store(home), random_model(tmp_path / "tiny"))
    with Store(home).part(manifest.fingerprint, FIRST) as part:
        assert part.size == manifest.units[FIRST].size
        assert list(part.spans()) == []
        part.finish()


def test_a_unit_damaged_on_disk_is_deleted_when_it_is_finished_again(tmp_path: Path, home: Path) -> None:
    manifest = carry(Store(home), random_model(tmp_path / "tiny"))
    flip(Store(home).folder(manifest.fingerprint) / FIRST)
    with Store(home).part(manifest.fingerprint, FIRST) as part, pytest.raises(BrokenModel, match=FIRST):
        part.finish()
    assert [unit.name for unit in Store(home).missing(manifest.fingerprint, LayerRange(0, 2))] == [FIRST]


def test_a_part_is_written_from_any_thread(tmp_path: Path, home: Path) -> None:
    folder = random_model(tmp_path / "tiny")
    store, print_ = begun(home, folder)
    part = store.part(print_, FIRST)
    thread = threading.Thread(target=lambda: part.write(unit_bytes(folder, part.unit)))
    thread.start()
    thread.join()
    other = threading.Thread(target=part.finish)
    other.start()
    other.join()
    store.part(print_, FIRST).close()  # its lock is free again


# --- the skeleton -----------------------------------------------------------------------------------------------------


def test_small_files_must_be_the_manifests(tmp_path: Path, home: Path) -> None:
    folder = random_model(tmp_path / "tiny")
    manifest, small = describe(folder), small_files(folder)
    with pytest.raises(BrokenModel, match=r"tokenizer\.json of tiny is broken"):
        Store(home).begin(manifest, small | {"tokenizer.json": b"{}"})
    with pytest.raises(BrokenModel, match="other small files"):
        Store(home).begin(manifest, small | {"evil.py": b""})
    with pytest.raises(BrokenModel, match="fingerprint"):
        Store(home).begin(replace(manifest, fingerprint="0" * 64), small)
    assert Store(home).holdings() == []


def test_beginning_again_learns_hashes_and_keeps_units(tmp_path: Path, home: Path) -> None:
    folder = random_model(tmp_path / "tiny")
    store, manifest = Store(home), carry(Store(home), folder, FIRST)
    own = read_manifest(store.folder(manifest.fingerprint)).digests[FIRST]
    wrong = {FIRST: "1" * 64, "norm.safetensors": "2" * 64}
    store.begin(replace(manifest, digests=wrong), small_files(folder))
    known = read_manifest(store.folder(manifest.fingerprint))
    assert known.digests == {FIRST: own, "norm.safetensors": "2" * 64}  # what was checked here stands
    assert units_here(store.folder(manifest.fingerprint), known) == {FIRST}


def test_another_commit_of_the_same_weights_brings_its_words(tmp_path: Path, home: Path) -> None:
    """A mirror, or a newer commit that mends a template, has the fingerprint of the weights that are here."""
    folder = random_model(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("old")
    store, manifest = Store(home), carry(Store(home), folder, FIRST)
    (folder / "chat_template.jinja").unlink()
    (folder / "generation_config.json").write_text('{"temperature": 0.1}')
    newer = replace(describe(folder), name="other/name", revision="b" * 40)
    assert newer.fingerprint == manifest.fingerprint
    store.begin(newer, small_files(folder))
    place = store.folder(manifest.fingerprint)
    kept = read_manifest(place)
    assert (kept.name, kept.revision, kept.small) == (newer.name, newer.revision, newer.small)
    assert not (place / "chat_template.jinja").exists()
    assert units_here(place, kept) == {FIRST}
    assert FIRST in kept.digests


@pytest.mark.parametrize("bad", ["", "..", "../models", "0" * 63, "G" * 64, "a/b"])
def test_a_fingerprint_leads_nowhere_else(home: Path, bad: str) -> None:
    for call in (Store(home).folder, Store(home).remove, lambda text: Store(home).part(text, FIRST)):
        with pytest.raises(BrokenModel, match="not a model's fingerprint"):
            call(bad)


@pytest.mark.parametrize("bad", ["config.json", "../x", "", "layer-00009.safetensors"])
def test_only_units_of_the_manifest_are_written(tmp_path: Path, home: Path, bad: str) -> None:
    store, print_ = begun(home, random_model(tmp_path / "tiny"))
    with pytest.raises(BrokenModel, match="has no unit"):
        store.part(print_, bad)


def test_a_model_that_was_not_begun(home: Path) -> None:
    with pytest.raises(BrokenModel, match=r"has no manifest\.json"):
        Store(home).missing("0" * 64, LayerRange(0, 1))


def test_removing(tmp_path: Path, home: Path) -> None:
    manifest = carry(Store(home), random_model(tmp_path / "tiny"))
    Store(home).remove(manifest.fingerprint)
    Store(home).remove(manifest.fingerprint)
    assert Store(home).holdings() == []
    assert [item.name for item in (home / "shards").iterdir()] == [".locks"]


# --- room -------------------------------------------------------------------------------------------------------------


def test_too_little_room_is_said_before_writing(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, print_ = begun(home, random_model(tmp_path / "tiny"))
    units = store.missing(print_, LayerRange(0, 2))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 300))
    size, free = sizes_text(sum(unit.size for unit in units), 300)
    with pytest.raises(DiskFull, match=rf"tiny \(embed, layers 0:2, norm, head\) needs {size} in .*, has {free} free"):
        store.require_space(print_, units)
    with pytest.raises(DiskFull, match=FIRST):
        store.part(print_, FIRST)
    monkeypatch.undo()
    Store(home).part(print_, FIRST).close()  # the refusal let go of its lock


LIMITED = """
import resource, sys
from pathlib import Path
from together.models.manifest import describe
from together.models.reading import read_unit
from together.weights.part import DiskFull
from together.weights.store import Store

store, folder = Store(Path(sys.argv[1])), Path(sys.argv[2])
unit = describe(folder).units["layer-00000.safetensors"]
resource.setrlimit(resource.RLIMIT_FSIZE, (150, 150))
with store.part(sys.argv[3], unit.name) as part:
    try:
        for chunk in read_unit(folder, unit):
            part.write(chunk)
    except DiskFull as error:
        print(part.size, error)
"""


@pytest.mark.skipif(os.name == "nt", reason="no limits on files there")
def test_a_disk_that_fills_up_keeps_the_part(tmp_path: Path, home: Path) -> None:
    folder = random_model(tmp_path / "tiny")
    store, print_ = begun(home, folder)
    command = [sys.executable, "-c", LIMITED, str(home), str(folder), print_]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert answer.stdout.startswith("150 layer-00000.safetensors of tiny: the disk of "), answer.stderr
    with store.part(print_, FIRST) as part:
        assert part.size == 150
        part.write(unit_bytes(folder, part.unit, 150))
        part.finish()
    assert FIRST in units_here(store.folder(print_), describe(folder))


@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", lambda: 1)() == 0, reason="rights do not stop root")
def test_a_home_without_rights(tmp_path: Path, home: Path) -> None:
    home.mkdir()
    home.chmod(0o500)
    with pytest.raises(DiskFull, match="right to write"):
        begun(home, random_model(tmp_path / "tiny"))


def test_a_home_that_is_a_file(tmp_path: Path, home: Path) -> None:
    home.write_text("")
    with pytest.raises(DiskFull, match="cannot be written"):
        begun(home, random_model(tmp_path / "tiny"))


EXPORT = """
import resource, sys
from pathlib import Path
from together.models.manifest import describe
from together.weights.part import DiskFull
from together.weights.store import export
from together.types import LayerRange

resource.setrlimit(resource.RLIMIT_FSIZE, (150, 150))
try:
    folder = Path(sys.argv[1])
    export(folder, describe(folder), LayerRange(0, 2), Path(sys.argv[2]))
except DiskFull as error:
    print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="no limits on files there")
def test_an_export_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    folder, target = random_model(tmp_path / "tiny"), tmp_path / "usb" / "all"
    command = [sys.executable, "-c", EXPORT, str(folder), str(target)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert answer.stdout.startswith("tiny layers 0:2: the disk of "), answer.stderr
    assert list(target.parent.iterdir()) == []


def test_a_manifest_that_another_process_holds(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = random_model(tmp_path / "tiny")
    _, print_ = begun(home, folder)
    monkeypatch.setattr(store_module, "_LOCK_WITHIN", 0.1)
    with FileLock(home / "shards" / ".locks" / f"{print_}-manifest.lock"), pytest.raises(UnitBusy, match="try again"):
        begun(home, folder)


def test_a_folder_has_one_writer_at_a_time(tmp_path: Path) -> None:
    folder, draft = tmp_path / "out", tmp_path / ".out.new"
    with drafted(folder, draft) as filled:
        (filled / "first").touch()
        with pytest.raises(BadInput, match="is being written already"), drafted(folder, draft):
            raise AssertionError("it is taken")
    assert [item.name for item in tmp_path.rglob("*")] == ["out", "first"]
    folder.joinpath("first").unlink()
    with drafted(folder, draft) as filled:
        (filled / "second").touch()
    assert (folder / "second").is_file()
