"""A GGUF file that one machine has: others get their layers of it, byte for byte, through cuts, and never twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.chain import Chain, load_shard, new_sequence, row
from tests.support.cluster import until
from tests.support.families import prompt_ids
from tests.support.gguf_models import make_gguf, split_gguf
from tests.support.hub import HubServer
from tests.support.pieces import flip
from tests.support.proxy import Proxy
from tests.support.suppliers import (
    HOST,
    SLACK,
    at,
    check_whole,
    fetcher,
    quiet,
    served,
    small_weight,
    source,
    studio,
    weight_of,
)
from together.cluster_types import Endpoint
from together.errors import BrokenModel, LoadFailed
from together.models.manifest import describe
from together.types import LayerRange, ModelRef
from together.weights.find import find_units
from together.weights.hub import describe_hub
from together.weights.imports import imported
from together.weights.part import size_of
from together.weights.store import Store

FIRST, MIDDLE, LAST = LayerRange(0, 1), LayerRange(1, 3), LayerRange(3, 4)


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("gguf") / "files")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """What the file is on the machine `studio`."""
    return imported(copied(original, tmp_path / "disk" / "tiny.gguf"), tmp_path / "studio")


def copied(file: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True)
    target.write_bytes(file.read_bytes())
    return target


def ref(folder: Path) -> ModelRef:
    """As another machine hears of it: the path says nothing there."""
    return replace(describe(folder).ref(), path="/no/such/folder")


async def quiet_link(link: Proxy) -> None:
    """Until its last words are counted, too."""
    await until(lambda: not link.connected)


def taken(home: Path) -> int:
    return sum(size_of(path) for path in home.rglob("*") if path.is_file())


async def test_two_machines_that_have_nothing_get_their_layers_alone(tmp_path: Path, folder: Path) -> None:
    wanted = {"laptop": MIDDLE, "tower": LAST}
    found: dict[str, Path] = {}
    for name, layers in wanted.items():
        async with studio(tmp_path) as link:
            found[name] = await fetcher(tmp_path / name).fetch(
                ref(folder), layers, (source(at(link.port), folder),), quiet
            )
            needed = weight_of(folder, layers) + small_weight(folder)
            assert needed <= link.back.sent < needed * SLACK
            await quiet_link(link)
            before = link.back.sent, link.accepted
            again = await fetcher(tmp_path / name).fetch(ref(folder), layers, (source(at(link.port), folder),), quiet)
            assert (again, link.back.sent, link.accepted) == (found[name], *before), "a second start moves nothing"
        check_whole(found[name], folder, layers)
        assert taken(tmp_path / name) < 1.1 * needed
    assert taken(tmp_path / "studio") < 1.1 * small_weight(folder) + 100_000, "the file stays where it is"
    cuts = [(folder, FIRST), *((found[name], layers) for name, layers in wanted.items())]
    apart = Chain([load_shard(place, "torch", layers) for place, layers in cuts])
    whole = Chain([load_shard(folder, "torch", layers) for _, layers in cuts])
    asked = row(new_sequence(), 0, prompt_ids(9))
    assert np.array_equal(apart.logits(asked), whole.logits(asked))
    for shard in (*apart.shards, *whole.shards):
        shard.close()


@pytest.mark.full
@pytest.mark.parametrize("family", ["gpt_oss", "mixtral", "glm4_moe", "qwen3_5"])
async def test_layers_of_later_families(tmp_path: Path, family: str) -> None:
    """Names, changes of the converter and a layer that nobody asks for are the same from parts of a file."""
    file = make_gguf(tmp_path / "disk", "tiny.gguf", family, plain=True)
    folder = await asyncio.to_thread(imported, file, tmp_path / "studio")
    ends = LayerRange(0, 2), LayerRange(2, 4)
    async with studio(tmp_path) as link:
        found = [
            await fetcher(tmp_path / name).fetch(ref(folder), layers, (source(at(link.port), folder),), quiet)
            for name, layers in zip(("laptop", "tower"), ends, strict=True)
        ]
    asked = row(new_sequence(), 0, prompt_ids(9))
    apart, whole = (
        Chain([load_shard(place, "torch", layers) for place, layers in zip(places, ends, strict=True)])
        for places in (found, (folder, folder))
    )
    assert np.array_equal(apart.logits(asked), whole.logits(asked))


async def test_a_cut_transfer_goes_on(tmp_path: Path, folder: Path) -> None:
    async with studio(tmp_path, bytes_per_s=400_000) as link:
        sources = (source(at(link.port), folder),)
        fetching = asyncio.create_task(fetcher(tmp_path / "laptop").fetch(ref(folder), MIDDLE, sources, quiet))
        place = Store(tmp_path / "laptop").folder(describe(folder).key)
        await until(lambda: any(size_of(part) > 100_000 for part in place.glob("*.part")))
        link.cut()
        link.heal()
        check_whole(await fetching, folder, MIDDLE)
        needed = weight_of(folder, MIDDLE) + small_weight(folder)
        assert link.back.sent < needed * SLACK + 2 * 300_000, "what was underway, at most"


async def test_layers_come_from_a_machine_that_fetched_them(tmp_path: Path, folder: Path) -> None:
    """Not only from the one that has the file."""
    async with studio(tmp_path) as link:
        await fetcher(tmp_path / "laptop").fetch(ref(folder), MIDDLE, (source(at(link.port), folder),), quiet)
    async with served(tmp_path / "laptop") as endpoint:
        found = await fetcher(tmp_path / "tower").fetch(ref(folder), MIDDLE, (source(endpoint, folder),), quiet)
    check_whole(found, folder, MIDDLE)


async def test_a_machine_that_has_the_file_elsewhere_asks_nobody(tmp_path: Path, folder: Path, original: Path) -> None:
    nowhere = (source(Endpoint((HOST,), 9), folder),)
    own = await asyncio.to_thread(imported, original, tmp_path / "laptop")
    assert await fetcher(tmp_path / "laptop").fetch(ref(folder), MIDDLE, nowhere, quiet) == own
    file = copied(original, tmp_path / "tower" / "models" / "tiny.gguf")
    found = await fetcher(tmp_path / "tower").fetch(ref(folder), MIDDLE, nowhere, quiet)
    assert found == await asyncio.to_thread(imported, file, tmp_path / "tower"), "one that nobody loaded there yet"
    assert not (tmp_path / "tower" / "shards").exists()


async def test_a_file_that_changes_or_vanishes_while_it_is_served(tmp_path: Path, folder: Path) -> None:
    model, file = ref(folder), tmp_path / "disk" / "tiny.gguf"
    async with studio(tmp_path) as link:
        sources = (source(at(link.port), folder),)
        await fetcher(tmp_path / "laptop").fetch(model, FIRST, sources, quiet)
        flip(file, file.stat().st_size // 2)
        with pytest.raises(LoadFailed, match=r"lacks layers 1:3 of tiny .*does not have the model"):
            await fetcher(tmp_path / "laptop").fetch(model, MIDDLE, sources, quiet)
        file.unlink()
        with pytest.raises(LoadFailed, match="lacks layer"):
            await fetcher(tmp_path / "laptop").fetch(model, LAST, sources, quiet)
    assert find_units(model, tmp_path / "studio").folder is None


async def test_a_bit_that_flips_on_the_way_or_on_the_disk(tmp_path: Path, folder: Path) -> None:
    model = ref(folder)
    async with studio(tmp_path) as link:
        found = await fetcher(tmp_path / "laptop").fetch(model, MIDDLE, (source(at(link.port), folder),), quiet)
        flip(found / "layer-00001.safetensors", 5000)
        again = await fetcher(tmp_path / "laptop").fetch(model, MIDDLE, (source(at(link.port), folder),), quiet)
    check_whole(again, folder, MIDDLE)


async def test_parts_of_a_split_file_travel_alike(tmp_path: Path, original: Path) -> None:
    parts = split_gguf(original, tmp_path / "parts")
    folder = await asyncio.to_thread(imported, parts[0], tmp_path / "studio")
    async with studio(tmp_path) as link:
        found = await fetcher(tmp_path / "laptop").fetch(ref(folder), MIDDLE, (source(at(link.port), folder),), quiet)
    check_whole(found, folder, MIDDLE)


async def test_a_node_gets_a_hub_models_layers_from_the_hub_or_from_a_machine(
    hub: HubServer, tmp_path: Path, folder: Path, original: Path
) -> None:
    hub.add("acme/tiny-GGUF", original.parent)
    head = Store(tmp_path / "head")
    model = (await asyncio.to_thread(describe_hub, "acme/tiny-GGUF/tiny.gguf", head)).ref()
    assert model.key == describe(folder).key
    hub.served.clear()
    found = await fetcher(tmp_path / "laptop").fetch(model, MIDDLE, (), quiet)
    check_units = weight_of(folder, MIDDLE)
    assert hub.weights_served() < check_units + 2**20 + 200 * 1024, "its layers, and the first range for the header"
    hub.served.clear()
    assert await fetcher(tmp_path / "laptop").fetch(model, MIDDLE, (), quiet) == found
    assert not hub.served
    async with studio(tmp_path) as link:
        await fetcher(tmp_path / "tower").fetch(model, LAST, (source(at(link.port), folder),), quiet)
    assert not hub.served, "a machine that has the same file on its disk gives it"


async def test_another_file_of_that_name_is_no_source(tmp_path: Path, folder: Path) -> None:
    made = make_gguf(tmp_path / "other", "tiny.gguf", seed=1)
    other = await asyncio.to_thread(imported, made, tmp_path / "liar")
    async with served(tmp_path / "liar") as endpoint:
        with pytest.raises((LoadFailed, BrokenModel), match="does not have the model"):
            await fetcher(tmp_path / "laptop").fetch(ref(folder), FIRST, (source(endpoint, other),), quiet)
