"""GGUF files on this machine: read once, left where they are, and found again by every name that a person gives."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.gguf_models import make_gguf, split_gguf
from tests.support.patience import PATIENCE
from tests.support.pieces import flip
from together.errors import BadSetting, BrokenModel, TogetherError
from together.models.manifest import describe
from together.models.spec import read_runnable
from together.weights.find import find_units, known_models, resolve_model
from together.weights.imports import imported, imports
from together.weights.part import size_of


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("gguf") / "files")


@pytest.fixture
def file(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    copy = tmp_path / "files" / "tiny.gguf"
    copy.parent.mkdir()
    copy.write_bytes(original.read_bytes())
    return copy


def touch(file: Path) -> None:
    facts = file.stat()
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns + 10**9))


def taken(folder: Path) -> int:
    return sum(size_of(path) for path in folder.rglob("*") if path.is_file())


def test_a_file_is_read_once_and_takes_next_to_nothing(file: Path, home: Path) -> None:
    folder = imported(file, home)
    made = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert imported(file, home) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == made
    assert taken(home) < file.stat().st_size / 10
    assert imports(home) == [folder]
    assert read_runnable(folder).packings


def test_every_name_means_the_file(file: Path, home: Path) -> None:
    folder = resolve_model(str(file), home)
    assert folder == resolve_model(str(file.parent), home) == resolve_model("tiny", home)
    (known,) = (model for model in known_models(home) if model.name == "tiny")
    assert (known.folder, known.file, known.where, known.whole) == (folder, str(file), str(file), True)


@pytest.mark.parametrize("place", ["tiny.gguf", "acme/tiny.gguf", "acme/tiny-GGUF/tiny.gguf"])
def test_files_in_the_models_folder_are_found(original: Path, home: Path, place: str) -> None:
    file = home / "models" / place
    file.parent.mkdir(parents=True)
    file.write_bytes(original.read_bytes())
    folder = resolve_model("tiny", home)
    assert folder == imported(file, home)
    names = [place] if place.count("/") != 1 else []  # two parts are a repository's name, not a file's
    assert all(resolve_model(name, home) == folder for name in names)


def test_a_model_is_found_by_what_it_is(file: Path, home: Path, original: Path, tmp_path: Path) -> None:
    """As a node does that gets an order from another machine."""
    ref = replace(describe(imported(original, tmp_path / "head")).ref(), name="acme/other/name.gguf", path="/nowhere")
    assert find_units(ref, home).folder is None
    folder = imported(file, home)
    found = find_units(ref, home)
    assert (found.folder, len(found.units)) == (folder, 7)


def test_a_changed_file_is_read_anew_and_the_old_one_is_forgotten(file: Path, home: Path) -> None:
    folder = imported(file, home)
    whole = file.read_bytes()
    flip(file, 100_000 + len(whole) // 2)
    touch(file)
    with pytest.raises(BrokenModel, match=r"tiny\.gguf was changed since it was loaded; load it again"):
        describe(folder)
    assert "was changed" in next(model.fault for model in known_models(home) if model.name == "tiny")
    again = imported(file, home)
    assert imports(home) == [again]
    assert not folder.exists()
    assert describe(again).layers == 4


def test_a_vanished_file_is_named(file: Path, home: Path) -> None:
    folder = imported(file, home)
    file.rename(file.with_name("away.gguf"))
    with pytest.raises(BrokenModel, match=r"tiny\.gguf is gone; bring it back, or load it from where it is now"):
        describe(folder)
    file.with_name("away.gguf").rename(file)
    assert describe(folder).layers == 4


def test_a_moved_file_is_the_same_model_and_its_old_place_is_forgotten(file: Path, home: Path, tmp_path: Path) -> None:
    before = describe(imported(file, home)).key
    moved = tmp_path / "elsewhere" / "other.gguf"
    moved.parent.mkdir()
    file.rename(moved)
    folder = imported(moved, home)
    assert describe(folder).key == before
    assert imports(home) == [folder]


@pytest.mark.skipif(os.name == "nt" or (os.geteuid() == 0 and not Path("/proc").exists()), reason="rights of POSIX")
def test_a_disk_that_cannot_be_written(file: Path, home: Path) -> None:
    file.chmod(0o444)
    file.parent.chmod(0o555)
    try:
        assert describe(imported(file, home)).layers == 4
        assert [path.name for path in file.parent.iterdir()] == ["tiny.gguf"]
    finally:
        file.parent.chmod(0o755)


def test_threads_and_processes_that_read_it_at_once(file: Path, home: Path) -> None:
    code = (
        "import sys, pathlib; from together.weights.imports import imported; imported(*map(pathlib.Path, sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, str(file), str(home)]
    others = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(lambda _: imported(file, home), range(3)))
    for other in others:
        said = other.communicate(timeout=PATIENCE)[1]
        assert other.returncode == 0, said
    (folder,) = folders
    assert imports(home) == [folder]
    assert list(folder.parent.iterdir()) == [folder], "nothing half-made is left"
    assert describe(folder).layers == 4


def test_what_a_killed_process_left_is_replaced(file: Path, home: Path) -> None:
    folder = imported(file, home)
    (folder / "gguf.json").unlink()
    (folder.parent / ".xyz").mkdir()
    assert imported(file, home) == folder
    assert list(folder.parent.iterdir()) == [folder]


def test_a_broken_import_says_what_to_do(file: Path, home: Path) -> None:
    folder = imported(file, home)
    (folder / "gguf.json").write_text("[{}]")
    with pytest.raises(BrokenModel, match="delete its folder and load the file again"):
        describe(folder)
    assert any("gguf.json" in model.fault for model in known_models(home))


def test_parts(original: Path, home: Path, tmp_path: Path) -> None:
    parts = split_gguf(original, tmp_path / "parts")
    folder = imported(parts[1], home)
    assert folder == imported(parts[0], home) == resolve_model(str(parts[0].parent), home)
    manifest = describe(folder)
    assert [file.name for file in manifest.files] == [part.name for part in parts]
    parts[2].rename(tmp_path / "away")
    with pytest.raises(BrokenModel, match=rf"one of 3 parts, and {parts[2].name} is not beside it"):
        imported(parts[0], home)
    (tmp_path / "away").rename(parts[2])
    parts[1].rename(tmp_path / "away")
    parts[2].rename(parts[1])
    (tmp_path / "away").rename(parts[2])
    with pytest.raises(BrokenModel, match=r"says that it is part 3 of 3, and it is taken for part 2 of 3"):
        imported(parts[0], tmp_path / "other")
    alone = parts[0].with_name("alone.gguf")
    parts[0].rename(alone)
    with pytest.raises(BrokenModel, match=r"alone\.gguf says that it is part 1 of 3"):
        imported(alone, home)


def test_a_folder_of_several_names_them(file: Path, home: Path) -> None:
    for name in ("mmproj-F16.gguf", "tiny-mmproj.gguf", "imatrix.gguf", "._tiny.gguf"):
        (file.parent / name).write_bytes(b"GGUF")
    assert resolve_model(str(file.parent), home) == imported(file, home)
    (file.parent / "other.gguf").write_bytes(file.read_bytes())
    with pytest.raises(BadSetting, match=r"has 2 GGUF models; choose one of other\.gguf, tiny\.gguf"):
        resolve_model(str(file.parent), home)


def test_no_rights_to_read(file: Path, home: Path) -> None:
    file.unlink()
    file.symlink_to(file.parent / "nowhere.gguf")
    with pytest.raises(TogetherError):
        resolve_model(str(file), home)
