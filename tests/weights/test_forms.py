"""Converted units: each machine makes its own, keeps them, and gives them to those that lack the weights."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.cluster import until
from tests.support.hub import HubServer
from tests.support.mlx_folders import make_plain
from tests.support.pieces import flip
from tests.support.suppliers import at, fetcher, quiet, served, small_weight, source, studio
from together.cluster_types import Blob, Source
from together.errors import BrokenModel, LoadFailed
from together.models.form import form_of
from together.models.manifest import CONFIG, Manifest, describe, parse, read_manifest
from together.models.names import EMBED_UNIT, MANIFEST, layer_unit
from together.models.needed import needed_tensors
from together.models.spec import read_runnable
from together.models.units import units_for
from together.ring import rpc
from together.types import LayerRange, ModelRef
from together.weights.converting import convert_units, make_units
from together.weights.fetch import Fetch
from together.weights.part import UnitWriter
from together.weights.room import CacheRoom
from together.weights.store import Store, begin_form, export
from together.weights.transfer import Suppliers

FORM = "mlx-affine-4-g64@1"
OTHER = "mlx-mxfp4@1"
FIRST, LAST, WHOLE = LayerRange(0, 2), LayerRange(2, 4), LayerRange(0, 4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine's home that has a model as it was published."""
    home = tmp_path_factory.mktemp("machine") / "studio"
    make_plain(home / "models" / "lab" / "tiny", "llama", "bf16")
    return home


@pytest.fixture
def plain(made: Path, tmp_path: Path) -> Path:
    """The same on a machine of the test's own."""
    shutil.copytree(made, tmp_path / "studio")
    return tmp_path / "studio" / "models" / "lab" / "tiny"


def ref(plain: Path, form: str = FORM) -> ModelRef:
    """How a head far away names it."""
    return describe(plain, "lab/tiny").in_form(form).ref("/no/such/folder")


def weight(plain: Path, layers: LayerRange, form: str = FORM) -> int:
    return sum(unit.size for unit in units_for(describe(plain).in_form(form), layers))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


async def fetch(home: Path, model: ModelRef, layers: LayerRange, *sources: Source, told: Any = quiet) -> Path:
    return await fetcher(home).fetch(model, layers, sources, told)


# --- made here --------------------------------------------------------------------------------------------------------


async def test_a_machine_makes_its_own_layers_once(plain: Path, tmp_path: Path) -> None:
    home, suppliers = tmp_path / "studio", Suppliers(())
    told, converting = list[tuple[int, int]](), list[bool]()

    async def run(layers: LayerRange) -> Path:
        show = lambda *now: told.append(now), lambda whom: None, converting.append
        return await Fetch(home, "studio", suppliers, ref(plain), layers, *show, CacheRoom(home)).run()

    folder = await run(FIRST)
    assert folder == home / "shards" / ref(plain).key
    assert bytes_of(folder).keys() == {EMBED_UNIT, layer_unit(0), layer_unit(1)}
    assert told[0] == (0, weight(plain, FIRST))
    assert told[-1] == (weight(plain, FIRST),) * 2
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert converting == [True, False]
    assert (folder / CONFIG).read_bytes() == (plain / CONFIG).read_bytes()

    times = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    told.clear()
    assert await run(FIRST) == folder
    assert told == []
    assert converting == [True, False]
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == times

    await run(WHOLE)
    assert told[-1][1] == weight(plain, WHOLE) - weight(plain, FIRST)
    assert len(bytes_of(folder)) == 4 + 3


async def test_what_is_planned_for_is_what_is_made(plain: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "studio")
    begun = begin_form(plain, describe(plain, "lab/tiny"), FORM, store)
    before = read_runnable(begun)
    assert before.form == FORM
    assert before.packings == (form_of(FORM).packing,)
    folder = await fetch(tmp_path / "studio", ref(plain), WHOLE)
    assert folder == begun
    assert read_runnable(folder) == before
    needed = needed_tensors(folder, WHOLE, tmp_path / "studio")
    assert len(needed.packed) == 4 * 7 + 2  # every projection, embedding and head
    stored = sum(tensor.nbytes for tensor in needed.tensors)
    assert stored == before.stage_bytes(WHOLE, "bf16")


async def test_two_machines_make_the_same_bytes(made: Path, plain: Path, tmp_path: Path) -> None:
    """One has the published files, the other units of them."""
    other = tmp_path / "mini"
    export(plain, describe(plain, "lab/tiny"), WHOLE, other / "models" / "lab" / "tiny")
    one, two = [await fetch(home, ref(plain), WHOLE) for home in (tmp_path / "studio", other)]
    assert bytes_of(one) == bytes_of(two)
    assert len(bytes_of(one)) == 7
    assert read_manifest(one).digests == read_manifest(two).digests
    assert read_manifest(one).digests.keys() == bytes_of(one).keys()


def test_a_unit_that_another_process_just_made_is_left_alone(plain: Path, tmp_path: Path) -> None:
    home, model = tmp_path / "studio", ref(plain)
    begin_form(plain, describe(plain, "lab/tiny"), FORM, Store(home))

    class Slower(Store):
        """Looks whether a unit is here, and gets to write it a moment after somebody else."""

        def part(self, key: str, name: str, *, anew: bool = False) -> UnitWriter:
            make_units(Store(home), plain, key, [name], lambda done: None)
            written.append(self.folder(key).joinpath(name).read_bytes())
            return super().part(key, name, anew=anew)

    written: list[bytes] = []
    make_units(Slower(home), plain, model.key, [EMBED_UNIT], lambda done: None)
    assert written == [(home / "shards" / model.key / EMBED_UNIT).read_bytes()]


def test_files_that_change_meanwhile_are_not_converted(plain: Path, tmp_path: Path) -> None:
    """Another version of the model is being copied over them."""
    store, model = Store(tmp_path / "studio"), ref(plain)
    begin_form(plain, describe(plain, "lab/tiny"), FORM, store)
    weights = plain / "model.safetensors"

    def told(done: int) -> None:
        times = weights.stat()
        flip(weights, -1)
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns + 1))

    with pytest.raises(BrokenModel, match=r"the files of .* changed while they were converted"):
        make_units(store, plain, model.key, [layer_unit(0), layer_unit(1)], told)
    assert [file.name for file in store.folder(model.key).glob("*.safetensors")] == [layer_unit(0)]


async def test_a_killed_converter_leaves_whole_units_alone(plain: Path, tmp_path: Path) -> None:
    home = tmp_path / "studio"
    wanted = await fetch(tmp_path / "mini", replace(ref(plain), path=str(plain)), WHOLE)
    killed = list[psutil.Process]()

    def told(done: int, total: int) -> None:
        if done and not killed:
            children = psutil.Process().children()
            killed.extend(child for child in children if "together.weights.converting" in child.cmdline())
            for child in killed:
                child.send_signal(signal.SIGTERM)

    with pytest.raises(LoadFailed, match="converts weights ended"):
        await fetch(home, ref(plain), WHOLE, told=told)
    folder = home / "shards" / ref(plain).key
    left = bytes_of(folder)
    assert 0 < len(left) < 7
    assert left.items() <= bytes_of(wanted).items()
    (folder / f"{layer_unit(3)}.part").write_bytes(b"what a power cut left")
    assert bytes_of(await fetch(home, ref(plain), WHOLE)) == bytes_of(wanted)
    assert list(folder.glob("*.part")) == []


async def test_a_failure_of_the_converter_itself_is_a_sentence(plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it fails over; the log has the traceback."""
    caplog.set_level("INFO", "together.weights.children")
    with pytest.raises(LoadFailed, match=r"the converted weights are .*\(ValueError: .*null.*\), .* bug of it"):
        await convert_units(Path("no\0home"), plain, "0" * 64, (), lambda done, total: None)
    assert "Traceback" in caplog.text


async def test_a_load_that_is_cancelled_ends_the_converter(plain: Path, tmp_path: Path) -> None:
    before, begun = set(psutil.Process().children()), asyncio.Event()  # other tests may have left some
    loading = asyncio.create_task(fetch(tmp_path / "studio", ref(plain), WHOLE, told=lambda *_: begun.set()))
    await begun.wait()
    (converter,) = set(psutil.Process().children()) - before
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    await until(lambda: not converter.is_running() or converter.status() == psutil.STATUS_ZOMBIE)


async def test_a_flipped_byte_is_found_and_made_anew(plain: Path, tmp_path: Path) -> None:
    home = tmp_path / "studio"
    folder = await fetch(home, ref(plain), FIRST)
    whole = bytes_of(folder)
    flip(folder / layer_unit(1), -1)
    with pytest.raises(BrokenModel, match=r"layer-00001\.safetensors of lab/tiny is broken: its sha256"):
        needed_tensors(folder, FIRST, home)
    assert bytes_of(await fetch(home, ref(plain), FIRST)) == whole


# --- given to others --------------------------------------------------------------------------------------------------


async def test_a_machine_without_the_weights_gets_its_converted_layers_only(plain: Path, tmp_path: Path) -> None:
    """The machine that has them makes what it is asked for, and nothing else."""
    model = ref(plain)
    need = weight(plain, LAST)
    async with studio(tmp_path) as link:
        folder = await fetch(tmp_path / "laptop", model, LAST, source(at(link.port), plain))
        assert need <= link.back.sent < 1.1 * (need + 2 * small_weight(plain))
        await until(lambda: not link.connected)  # its last words count, too
        before = link.back.sent
        await fetch(tmp_path / "laptop", model, LAST, source(at(link.port), plain))
        assert link.back.sent == before
    assert describe(folder).key == model.key
    assert not (tmp_path / "laptop" / "shards" / model.fingerprint).exists()
    here = tmp_path / "studio" / "shards" / model.key
    assert bytes_of(here) == bytes_of(folder)
    needed_tensors(folder, LAST, tmp_path / "laptop")


async def test_converted_layers_travel_on_where_the_published_ones_are_gone(plain: Path, tmp_path: Path) -> None:
    model = ref(plain)
    folder = await fetch(tmp_path / "studio", model, FIRST)
    (plain / CONFIG).rename(plain / "gone")
    async with served(tmp_path / "studio") as endpoint:
        units = tuple(bytes_of(folder))
        got = await fetch(tmp_path / "laptop", model, FIRST, Source(endpoint, units))
    assert bytes_of(got) == bytes_of(folder)


async def test_bytes_that_another_machine_flipped_are_refused(plain: Path, tmp_path: Path) -> None:
    model = ref(plain)
    folder = await fetch(tmp_path / "studio", model, FIRST)
    (plain / CONFIG).rename(plain / "gone")
    flip(folder / layer_unit(1), -1)
    async with served(tmp_path / "studio") as endpoint:
        with pytest.raises(LoadFailed, match=r"layer-00001\.safetensors of lab/tiny is broken: its sha256"):
            await fetch(tmp_path / "laptop", model, FIRST, Source(endpoint, tuple(bytes_of(folder))))


async def test_two_machines_that_make_other_bytes_are_told_apart(plain: Path, tmp_path: Path) -> None:
    """One machine's processor, memory or disk is broken."""
    model, home, other = ref(plain), tmp_path / "studio", tmp_path / "mini"
    shutil.copytree(home, other)
    folder = await fetch(home, model, FIRST)
    async with served(home) as endpoint:
        same = await fetch(other, model, FIRST, source(endpoint, plain))
        assert bytes_of(same) == bytes_of(folder)
        shutil.rmtree(same)
        flip(folder / layer_unit(1), -1)
        wrong = hashlib.sha256((folder / layer_unit(1)).read_bytes()).hexdigest()
        manifest = read_manifest(folder)
        digests = {**manifest.digests, layer_unit(1): wrong}
        (folder / MANIFEST).write_bytes(replace(manifest, digests=digests).to_json())
        with pytest.raises(BrokenModel, match=r"layer-00001\.safetensors of lab/tiny in 4 bit has other bytes on 127"):
            await fetch(other, model, FIRST, source(endpoint, plain))
    assert layer_unit(1) not in bytes_of(same)  # so that the next load makes and compares it again


async def test_a_unit_that_nobody_hashed_yet_is_compared(plain: Path, tmp_path: Path) -> None:
    """Another process put it in its place, and ended before it wrote down its hash."""
    model, home, other = ref(plain), tmp_path / "studio", tmp_path / "mini"
    shutil.copytree(home, other)
    folder = await fetch(home, model, FIRST)

    def meanwhile(converts: bool) -> None:
        if converts:
            shutil.copy(folder / layer_unit(1), Store(other).folder(model.key))

    async with served(home) as endpoint:
        suppliers = Suppliers([source(endpoint, plain)])
        tell = quiet, lambda whom: None, meanwhile
        same = await Fetch(other, "mini", suppliers, model, FIRST, *tell, CacheRoom(other)).run()
    assert layer_unit(1) not in read_manifest(same).digests
    assert bytes_of(same) == bytes_of(folder)


async def test_units_of_another_form_are_no_units_of_this_one(plain: Path, tmp_path: Path) -> None:
    model, other = ref(plain), await fetch(tmp_path / "studio", ref(plain, OTHER), FIRST)
    (plain / CONFIG).rename(plain / "gone")
    async with served(tmp_path / "studio") as endpoint:
        with pytest.raises(LoadFailed, match="does not have the model"):
            await fetch(tmp_path / "laptop", model, FIRST, Source(endpoint, tuple(bytes_of(other))))


async def test_another_form_from_a_peer_is_refused_by_name(plain: Path, tmp_path: Path) -> None:
    model = ref(plain)
    lie = rpc.unary({rpc.DESCRIBE: describe_as(describe(plain, "lab/tiny").in_form(OTHER))})
    async with served(tmp_path / "studio", lie) as endpoint:
        with pytest.raises(LoadFailed, match=r"gives the version \w{12} \(mxfp4\) of lab/tiny, not \w{12} \(4 bit\)"):
            await fetch(tmp_path / "laptop", model, FIRST, source(endpoint, plain))


def describe_as(manifest: Manifest) -> Callable[[ModelRef], Awaitable[Blob]]:
    async def describe(model: ModelRef) -> Blob:
        return Blob(manifest.to_json())

    return describe


async def test_a_form_of_a_newer_version_is_refused_by_name(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(BrokenModel, match="'mlx-affine-4-g64@9' is no form of a model that this version makes"):
        await fetch(tmp_path / "studio", replace(ref(plain), form="mlx-affine-4-g64@9"), FIRST)


def test_a_manifest_says_its_form_and_old_ones_had_none(plain: Path) -> None:
    manifest = describe(plain, "lab/tiny")
    made = parse(manifest.in_form(FORM).to_json())
    assert made.form == FORM
    assert made.units.keys() == manifest.units.keys()
    old = manifest.to_json().replace(b"together-model-3", b"together-model-2").replace(b'"form": "",\n', b"")
    assert parse(old) == manifest
    unknown = manifest.in_form(FORM).to_json().replace(b"-g64@1", b"-g64@9")
    with pytest.raises(BrokenModel, match=r"form: .*mlx-affine-4-g64@9.* is not a form that this version knows"):
        parse(unknown)


async def test_layers_of_the_hub_are_fetched_as_published_and_converted_here(
    hub: HubServer, plain: Path, tmp_path: Path
) -> None:
    hub.add("lab/tiny", plain)
    model = replace(ref(plain), revision=hub.commit("lab/tiny"))
    folder = await fetch(tmp_path / "laptop", model, LAST)
    store = Store(tmp_path / "laptop")
    assert folder == store.folder(model.key)
    assert bytes_of(folder).keys() == bytes_of(store.folder(model.fingerprint)).keys()
    assert bytes_of(folder).items() <= bytes_of(await fetch(tmp_path / "studio", ref(plain), WHOLE)).items()
    before = hub.weights_served()
    assert await fetch(tmp_path / "laptop", model, LAST) == folder
    assert hub.weights_served() == before
