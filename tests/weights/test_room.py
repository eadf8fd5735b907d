"""The cache's limit: what goes by itself, and what is only said."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.hub import HubServer
from tests.support.mlx_folders import make_plain
from tests.support.pieces import carry, random_model
from tests.support.suppliers import Fetcher, at, fetcher, quiet, served, small_weight, source
from together.cluster_types import LetGo
from together.errors import BadSetting, LoadFailed
from together.models.manifest import Manifest, describe
from together.models.names import NORM_UNIT, layer_unit
from together.settings import Settings
from together.types import LayerRange
from together.weights.converting import make_units
from together.weights.part import DiskFull
from together.weights.room import SHOWN_FOR, CacheRoom, LatelyGone, cache_limit
from together.weights.store import Store, begin_form, known_model

FOUR, EIGHT = "mlx-affine-4-g64@1", "mlx-affine-8-g64@1"
NEW = "f" * 64


@pytest.fixture
def plain(home: Path) -> Path:
    return make_plain(home / "models" / "tiny", "llama", "bf16", num_hidden_layers=1)


def made(home: Path, plain: Path, form: str) -> Manifest:
    """A form of the model, in the cache."""
    store = Store(home)
    folder = begin_form(plain, describe(plain), form, store)
    make_units(store, plain, folder.name, [NORM_UNIT, layer_unit(0)], lambda done: None)
    return describe(folder)


def test_the_limit_is_a_size_or_half_of_what_is_free(home: Path) -> None:
    assert cache_limit(Settings()) is None
    assert cache_limit(Settings(cache="2GB")) == 2 * 10**9
    with pytest.raises(BadSetting, match="write it as 4GB"):
        cache_limit(Settings(cache="2"))
    room, free = CacheRoom(home), shutil.disk_usage(home.parent).free
    assert 0.4 * free < room.most < 0.6 * free


def test_what_can_be_made_again_goes_first_used_first(home: Path, plain: Path) -> None:
    four, eight = made(home, plain, FOUR), made(home, plain, EIGHT)
    whole = CacheRoom(home).size
    CacheRoom(home).hold(four.key).release()  # so that it was used last
    gone = list[LetGo]()
    CacheRoom(home, whole + 10, gone.append).make(NEW, 10, "new")
    assert gone == []
    size = known_model(Store(home).folder(eight.key), home).bytes
    CacheRoom(home, whole + 9, gone.append).make(NEW, 10, "new")
    assert [(each.model, each.form, each.bytes) for each in gone] == [("tiny", "8 bit", size)]
    assert str(gone[0].sentence).startswith("the cache was full: tiny in 8 bit was let go, ")
    assert not Store(home).folder(eight.key).exists()
    assert Store(home).folder(four.key).exists()


def test_nothing_goes_where_that_is_not_enough(home: Path, plain: Path, tmp_path: Path) -> None:
    four = made(home, plain, FOUR)
    carry(Store(home), random_model(tmp_path / "lone"), layer_unit(0))  # of another machine
    gone = list[LetGo]()
    with pytest.raises(DiskFull):
        CacheRoom(home, 1000, gone.append).make(NEW, 1000, "new")
    assert gone == []
    assert Store(home).folder(four.key).exists()


def test_who_needs_room_at_once_lets_go_once(home: Path, plain: Path) -> None:
    """Two nodes of a machine share its cache."""
    four = made(home, plain, FOUR)
    gone, most = list[LetGo](), CacheRoom(home).size + 9
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: CacheRoom(home, most, gone.append).make(NEW, 10, "new"), range(8)))
    assert [each.model for each in gone] == ["tiny"]
    assert not Store(home).folder(four.key).exists()


def test_what_was_let_go_is_told_for_a_while() -> None:
    now = [0.0]
    lately = LatelyGone(lambda: now[0])
    old, new = (LetGo("tiny", form, 10, time.time()) for form in ("4 bit", "8 bit"))
    lately.note(old)
    now[0] = 2.0
    lately.note(new)
    assert lately.shown() == (old, new)
    now[0] = SHOWN_FOR + 1
    assert lately.shown() == (new,)


def test_what_is_loaded_stays_and_so_does_what_has_no_source_here(home: Path, plain: Path, tmp_path: Path) -> None:
    four = made(home, plain, FOUR)
    carry(Store(home), random_model(tmp_path / "lone"), layer_unit(0))  # of another machine
    room = CacheRoom(home, 10)
    held = room.hold(four.key)
    with pytest.raises(DiskFull) as full:
        room.make(NEW, 1000, "lab/new (layers 0:4)")
    said = str(full.value)
    assert said.startswith(
        f"lab/new (layers 0:4) needs 1000 bytes more in the cache {home / 'shards'}, which has 0.1 MB"
    )
    assert "rm lone --quantize no" in said
    assert "rm tiny" not in said
    assert said.endswith("or give it more room: --cache 1GB")
    assert Store(home).folder(four.key).exists()

    held.release()
    plain.rename(tmp_path / "away")  # now the converted units are all there is
    with pytest.raises(DiskFull, match="rm tiny --quantize 4"):
        room.make(NEW, 1000, "new")
    assert Store(home).folder(four.key).exists()


async def test_a_load_over_the_limit_writes_nothing(home: Path, plain: Path) -> None:
    model = describe(plain).in_form(FOUR)
    with pytest.raises(DiskFull, match=r"tiny \(embed, layers 0:1, norm, head\) needs .* nothing else in it can go"):
        await Fetcher(home, at(1), 10_000).fetch(model.ref(), LayerRange(0, 1), (), quiet)
    assert list(Store(home).folder(model.key).glob("*.safetensors*")) == []
    needed = CacheRoom(home).size + sum(unit.size for unit in model.units.values())
    await Fetcher(home, at(1), needed).fetch(model.ref(), LayerRange(0, 1), (), quiet)
    assert len(list(Store(home).folder(model.key).glob("*.safetensors"))) == 4


async def test_what_others_ask_for_is_made_within_the_limit(home: Path, plain: Path, tmp_path: Path) -> None:
    model = describe(plain).in_form(FOUR)
    async with served(home, cache=10_000) as endpoint:
        with pytest.raises(LoadFailed, match=r"tiny \(layers 0:1\) needs .* more in the cache .* may have 10000 bytes"):
            await fetcher(tmp_path / "laptop").fetch(model.ref(), LayerRange(0, 1), (source(endpoint, plain),), quiet)
    assert [file.name for file in Store(home).folder(model.key).glob("*.safetensors*")] == [NORM_UNIT]


async def test_the_hub_is_asked_where_both_forms_fit(hub: HubServer, home: Path, plain: Path, tmp_path: Path) -> None:
    """What was downloaded would be of no use where there is no room for what is made of it."""
    hub.add("lab/tiny", plain)
    manifest = describe(plain, "lab/tiny")
    model = replace(manifest.in_form(FOUR).ref("/no/such/folder"), revision=hub.commit("lab/tiny"))
    need = sum(unit.size for form in (manifest, manifest.in_form(FOUR)) for unit in form.units.values())
    laptop, small = tmp_path / "laptop", 3 * small_weight(plain)
    with pytest.raises(DiskFull, match=r"lab/tiny \(embed, layers 0:1, norm, head\) needs"):
        await Fetcher(laptop, at(1), need - 10).fetch(model, LayerRange(0, 1), (), quiet)
    assert hub.weights_served() < need / 10  # headers and samples
    await Fetcher(laptop, at(1), need + small).fetch(model, LayerRange(0, 1), (), quiet)


def test_a_cache_that_cannot_be_written_holds_nothing_up(home: Path) -> None:
    """A model in a folder of its own needs no cache."""
    (home / "shards").parent.mkdir(exist_ok=True)
    (home / "shards").write_bytes(b"")
    CacheRoom(home).hold(NEW).release()
