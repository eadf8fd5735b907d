"""Writing a folder as a whole: it appears whole or not at all, and every refusal says what to do."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ROOT
from tests.support.checksum import make_checksum_model
from tests.support.cluster import until
from tests.support.families import make_checkpoint
from tests.support.patience import PATIENCE
from tests.support.pieces import carry, with_template
from together.errors import BadSetting, BrokenModel, LoadFailed, TogetherError, UnsupportedModel
from together.models.form import asked_form
from together.models.manifest import describe
from together.models.units import layer_ranges
from together.weights.find import BUNDLED
from together.weights.mlx.folder import WrittenFolder, convert_folder
from together.weights.mlx.making import FolderOrder, make_weights
from together.weights.part import DiskFull
from together.weights.store import Store

LARGE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "vocab_size": 8000,
}  # 60 MB: some seconds of work


def convert(source: Path, target: Path, form: str = "") -> WrittenFolder:
    return asyncio.run(convert_folder(source, target, target.parent / "home", form, lambda done, total: None))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("made") / "tiny", "llama")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("made") / "large", "llama", **LARGE)


def left(target: Path) -> list[str]:
    """What lies beside where the folder was to be, but for what the test put there."""
    return sorted(file.name for file in target.parent.iterdir() if file.name not in ("home", "tiny"))


def test_the_folder_has_the_words_too(tiny: Path, tmp_path: Path) -> None:
    source = shutil.copytree(BUNDLED, tmp_path / "tiny")
    with_template(source)
    target = tmp_path / "out"
    target.mkdir()  # empty, which is as good as new
    written = convert(source, target)
    small = describe(source).small
    assert all((target / file.name).is_file() for file in small)
    assert {file.name for file in describe(target).small} == {file.name for file in small}
    assert (written.name, written.folder) == ("tiny", target)
    assert left(target) == ["out"]


def test_progress_goes_to_the_end(large: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    form = asked_form("4") or ""
    asyncio.run(convert_folder(large, tmp_path / "out", tmp_path / "home", form, lambda *now: told.append(now)))
    size = (large / "model.safetensors").stat().st_size
    assert {total for _, total in told} == {told[-1][0]}
    assert 0.99 * size < told[-1][0] <= size
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len(told) > 10


def test_a_folder_that_holds_something_is_refused(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("of a person")
    with pytest.raises(BadSetting, match="out exists already and is not empty; choose a new folder"):
        convert(tiny, target)
    with pytest.raises(BadSetting, match="exists already"):
        convert(tiny, target / "mine")
    with pytest.raises(BadSetting, match="exists already"):
        convert(tiny, tiny)
    assert (target / "mine").read_text() == "of a person"


def test_a_family_that_does_not_run_is_refused(tiny: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny, tmp_path / "tiny")
    text = (other / "config.json").read_text(encoding="utf-8").replace('"llama"', '"gpt_bigcode"')
    (other / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(UnsupportedModel, match="tiny is of the family 'gpt_bigcode', which does not run here"):
        convert(other, tmp_path / "out")
    with pytest.raises(UnsupportedModel, match="is a toy for tests"):
        convert(make_checksum_model(tmp_path / "home" / "toy"), tmp_path / "out")
    assert left(tmp_path / "out") == []


def test_a_cached_model_without_some_units_is_refused(tiny: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    manifest = carry(store, tiny, "embed.safetensors", "layer-00001.safetensors")
    assert len(layer_ranges(manifest.units)) == 1
    with pytest.raises(BrokenModel, match=r"lacks layers 0:1, layers 2:4, norm, head of tiny; get these layers"):
        convert(store.folder(manifest.key), tmp_path / "out")


def test_weights_that_are_no_numbers_are_refused_where_they_are_quantized(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "tiny", "llama", "fp32", **LARGE, num_hidden_layers=1)
    file = source / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-4:] = b"\x00\x00\xc0\x7f"
    whole[len(whole) // 2 // 4 * 4 : len(whole) // 2 // 4 * 4 + 4] = b"\x00\x00\xc0\x7f"
    file.write_bytes(whole)
    with pytest.raises(BrokenModel, match=r"in model\.safetensors holds values that are no numbers"):
        convert(source, tmp_path / "out", asked_form("4") or "")
    assert left(tmp_path / "out") == []


# --- disks ------------------------------------------------------------------------------------------------------------


def test_a_disk_without_room_is_seen_beforehand(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    message = r"tiny needs .* in .*out, has .* free; free some space there, or choose a folder on a larger disk"
    with pytest.raises(DiskFull, match=message):
        convert(tiny, tmp_path / "out")
    assert left(tmp_path / "out") == []


LIMITED = """
import asyncio, resource, sys
from pathlib import Path
from together.errors import TogetherError
from together.weights.mlx.folder import convert_folder

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
source, target = map(Path, sys.argv[1:])
try:
    asyncio.run(convert_folder(source, target, target.parent / "home", "", lambda done, total: None))
except TogetherError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(os.name == "nt", reason="no limits on files there")
def test_a_disk_that_fills_up_meanwhile_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tiny), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout.startswith(f"LoadFailed tiny cannot be written into {tmp_path} (")
    assert done.stdout.rstrip().endswith("; free some space there, or choose a folder on a larger disk")
    assert left(tmp_path / "out") == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="no right is missing")
def test_a_folder_without_the_right_to_write_is_named(tiny: Path, tmp_path: Path) -> None:
    place = tmp_path / "locked"
    place.mkdir(mode=0o500)
    with pytest.raises(DiskFull, match="give this user the right to write there, or choose another folder"):
        convert(tiny, place / "out")


# --- what happens meanwhile -------------------------------------------------------------------------------------------


async def interrupted(source: Path, target: Path, act: Callable[[psutil.Process], object]) -> TogetherError | None:
    """Convert, and `act` once weights are being written."""
    before = set(psutil.Process().children())
    home = target.parent / "home"
    converting = asyncio.create_task(
        convert_folder(source, target, home, asked_form("4") or "", lambda done, total: None)
    )
    file = target.parent / f".{target.name}.new" / "model.safetensors"
    await until(lambda: (file.is_file() and file.stat().st_size > 10_000) or converting.done())
    assert not converting.done()
    (child,) = set(psutil.Process().children()) - before
    act(child)
    try:
        await converting
    except TogetherError as error:
        return error
    finally:
        await until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    return None


async def test_a_source_that_changes_meanwhile_is_refused(large: Path, tmp_path: Path) -> None:
    source = shutil.copytree(large, tmp_path / "tiny")

    def change(child: psutil.Process) -> None:
        with (source / "model.safetensors").open("r+b") as stream:
            stream.seek(-5000, os.SEEK_END)
            stream.write(b"\x00")

    error = await interrupted(source, tmp_path / "out", change)
    assert isinstance(error, BrokenModel)
    assert str(error) == "tiny was changed while it was converted; convert it again"
    assert left(tmp_path / "out") == []


def test_another_model_in_the_place_of_the_source_is_refused(tiny: Path, tmp_path: Path) -> None:
    """Between the plan and the work."""
    order = FolderOrder(str(tmp_path / "home"), str(tiny), "0" * 64, "", str(tmp_path))
    with pytest.raises(BrokenModel, match="tiny was changed while it was converted"):
        make_weights(order, lambda done: None)


async def test_a_child_that_is_killed_leaves_nothing(large: Path, tmp_path: Path) -> None:
    error = await interrupted(large, tmp_path / "out", lambda child: child.kill())
    assert isinstance(error, LoadFailed)
    assert str(error).startswith("the process that converts weights ended with code")
    assert left(tmp_path / "out") == []


async def test_one_that_is_cancelled_leaves_nothing(large: Path, tmp_path: Path) -> None:
    task: asyncio.Task[object] | None = asyncio.current_task()
    assert task is not None
    with pytest.raises(asyncio.CancelledError):
        await interrupted(large, tmp_path / "out", lambda child: task.cancel())
    task.uncancel()
    assert left(tmp_path / "out") == []


async def test_what_a_killed_program_left_is_cleared_away(tiny: Path, tmp_path: Path) -> None:
    draft = tmp_path / ".out.new"
    draft.mkdir()
    (draft / "old").write_text("half")
    await convert_folder(tiny, tmp_path / "out", tmp_path / "home", "", lambda done, total: None)
    assert left(tmp_path / "out") == ["out"]
    assert not (tmp_path / "out" / "old").exists()
