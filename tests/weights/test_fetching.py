"""A machine gets the layers it lacks: exactly their bytes, through cuts, and never twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.checksum import make_checksum_model
from tests.support.cluster import until
from tests.support.hub import serve_hub
from tests.support.pieces import carry, exported, with_template
from tests.support.proxy import Proxy
from tests.support.suppliers import (
    FIRST,
    HOST,
    LAST,
    LAYERS,
    MEGABYTE,
    MIDDLE,
    SLACK,
    all_units,
    at,
    check_whole,
    fetcher,
    heavy_toy,
    lab_ref,
    quiet,
    served,
    small_weight,
    source,
    studio,
    weight_of,
)
from together.cluster_types import Endpoint, Source
from together.errors import BrokenModel, LoadFailed
from together.models.manifest import describe, small_files
from together.models.names import layer_unit
from together.types import LayerRange
from together.weights.store import Store


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return heavy_toy(tmp_path / "studio")


# --- exactly what is needed -------------------------------------------------------------------------------------------


async def test_only_the_bytes_of_the_layers_travel_and_a_second_time_none(tmp_path: Path, toy: Path) -> None:
    needed = weight_of(toy, FIRST) + small_weight(toy)
    told: list[tuple[int, int]] = []
    async with studio(tmp_path) as link:
        own = fetcher(tmp_path / "laptop")
        sources = (source(at(link.port), toy),)
        folder = await own.fetch(lab_ref(toy), FIRST, sources, lambda *now: told.append(now))
        check_whole(folder, toy, FIRST)
        assert needed <= link.back.sent < needed * SLACK
        assert told[-1] == (weight_of(toy, FIRST), weight_of(toy, FIRST))
        assert [done for done, _ in told] == sorted(done for done, _ in told)

        await until(lambda: not link.connected)  # their last words count, too
        before, told[:] = (link.back.sent, link.accepted), []
        assert await own.fetch(lab_ref(toy), FIRST, sources, lambda *now: told.append(now)) == folder
        assert await fetcher(tmp_path / "laptop").fetch(lab_ref(toy), MIDDLE, (), quiet) == folder
        assert (link.back.sent, link.accepted) == before
        assert told == []

        await own.fetch(lab_ref(toy), LAST, sources, quiet)
        assert link.back.sent - before[0] < weight_of(toy, LAST) * SLACK
    check_whole(folder, toy, LayerRange(0, LAYERS))


async def test_a_models_further_templates_come_along(tmp_path: Path, toy: Path) -> None:
    with_template(toy)
    async with studio(tmp_path) as link:
        folder = await fetcher(tmp_path / "laptop").fetch(lab_ref(toy), FIRST, (source(at(link.port), toy),), quiet)
    assert small_files(folder) == small_files(toy)
    assert "additional_chat_templates/tool_use.jinja" in small_files(folder)


async def test_a_whole_folder_is_used_where_it_lies(tmp_path: Path, toy: Path) -> None:
    nowhere = (Source(Endpoint((HOST,), 9), all_units(toy)),)
    model = replace(lab_ref(toy), path=str(toy))  # a drive that both machines see
    assert await fetcher(tmp_path / "laptop").fetch(model, FIRST, nowhere, quiet) == toy
    assert not (tmp_path / "laptop").exists()


async def test_an_exported_part_is_copied_and_only_the_rest_travels(tmp_path: Path, toy: Path) -> None:
    shard = tmp_path / "usb-stick"
    exported(toy, LayerRange(0, 2), shard)
    model = replace(lab_ref(toy), path=str(shard))
    async with studio(tmp_path) as link:
        assert await fetcher(tmp_path / "laptop").fetch(model, LayerRange(0, 2), (), quiet) == shard
        folder = await fetcher(tmp_path / "laptop").fetch(model, FIRST, (source(at(link.port), toy),), quiet)
        assert link.back.sent < 2 * weight_of(toy, LayerRange(2, 3))
    check_whole(folder, toy, FIRST)


async def test_several_are_fed_at_once(tmp_path: Path, toy: Path) -> None:
    ranges = {"laptop": FIRST, "tower": LAST, "mini": MIDDLE}
    async with studio(tmp_path) as link:
        sources = (source(at(link.port), toy),)
        fetches = [
            fetcher(tmp_path / name).fetch(lab_ref(toy), layers, sources, quiet) for name, layers in ranges.items()
        ]
        folders = await asyncio.gather(*fetches)
    for folder, layers in zip(folders, ranges.values(), strict=True):
        check_whole(folder, toy, layers)


async def test_two_stages_of_one_machine_fetch_a_unit_once(tmp_path: Path, toy: Path) -> None:
    async with studio(tmp_path) as link:
        sources = (source(at(link.port), toy),)
        fetches = [fetcher(tmp_path / "laptop").fetch(lab_ref(toy), FIRST, sources, quiet) for _ in range(2)]
        folder, same = await asyncio.gather(*fetches)
        assert link.back.sent < (weight_of(toy, FIRST) + 2 * small_weight(toy)) * SLACK
    assert folder == same
    check_whole(folder, toy, FIRST)


async def test_units_come_from_all_machines_that_have_them(tmp_path: Path, toy: Path) -> None:
    ends = ("embed.safetensors", "head.safetensors")
    async with studio(tmp_path) as first, studio(tmp_path) as second:
        sources = (source(at(first.port), toy), source(at(second.port), toy))
        folder = await fetcher(tmp_path / "laptop").fetch(lab_ref(toy), LayerRange(0, LAYERS), sources, quiet)
        large = min(describe(toy).units[name].size for name in ends)
        assert min(first.back.sent, second.back.sent) > large
    check_whole(folder, toy, LayerRange(0, LAYERS))


# --- cuts -------------------------------------------------------------------------------------------------------------


async def cut_at(link: Proxy, *marks: int) -> None:
    """Cut the link each time that so many bytes have come over it, and heal it at once."""
    for mark in marks:
        await until(lambda mark=mark: link.back.sent > mark)  # type: ignore[misc]  # no lambda has types
        link.cut()
        await asyncio.sleep(0)
        link.heal()


async def test_a_cut_transfer_goes_on_where_it_was(tmp_path: Path, toy: Path) -> None:
    marks = (2 * MEGABYTE, 5 * MEGABYTE)
    async with studio(tmp_path, bytes_per_s=10e6) as link:
        fetch = fetcher(tmp_path / "laptop").fetch(lab_ref(toy), FIRST, (source(at(link.port), toy),), quiet)
        folder, _ = await asyncio.gather(fetch, cut_at(link, *marks))
        lost = len(marks) * 2**20  # of each cut the message that was on its way
        assert link.back.sent < (weight_of(toy, FIRST) + lost) * SLACK
    check_whole(folder, toy, FIRST)


async def test_another_machine_goes_on_for_one_that_dies(tmp_path: Path, toy: Path) -> None:
    part = Store(tmp_path / "laptop").folder(lab_ref(toy).fingerprint) / "embed.safetensors.part"
    async with studio(tmp_path, bytes_per_s=10e6) as first, studio(tmp_path) as second:
        sources = (source(at(first.port), toy), Source(at(second.port), ("embed.safetensors",)))
        fetch = asyncio.create_task(fetcher(tmp_path / "laptop").fetch(lab_ref(toy), LayerRange(0, 1), sources, quiet))
        layer = part.with_name(layer_unit(0))
        await until(lambda: layer.is_file() and part.is_file() and part.stat().st_size > 3 * MEGABYTE)
        first.cut()
        folder = await fetch
        assert second.back.sent < weight_of(toy, FIRST) - 3 * MEGABYTE
    check_whole(folder, toy, LayerRange(0, 1))


async def test_a_machine_that_freezes_is_left_for_another(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("together.weights.transfer.SILENT", 0.5)
    async with studio(tmp_path, bytes_per_s=20e6) as first, studio(tmp_path) as second:
        both = (source(at(first.port), toy), Source(at(second.port), ("embed.safetensors",)))
        fetch = asyncio.create_task(fetcher(tmp_path / "laptop").fetch(lab_ref(toy), LayerRange(0, 1), both, quiet))
        await until(lambda: first.back.sent > 3 * MEGABYTE)
        first.freeze()
        folder = await fetch
        assert second.back.sent < weight_of(toy, LayerRange(0, 1))
        first.thaw()
    check_whole(folder, toy, LayerRange(0, 1))


async def test_a_machine_that_is_gone_for_good_is_named_with_what_is_missing(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("together.weights.fetch.PATIENCE", 1.0)
    async with studio(tmp_path, bytes_per_s=10e6) as link:
        fetch = asyncio.create_task(
            fetcher(tmp_path / "laptop").fetch(lab_ref(toy), FIRST, (source(at(link.port), toy),), quiet)
        )
        await until(lambda: link.back.sent > MEGABYTE)
        link.cut()
        with pytest.raises(LoadFailed, match=r"node laptop lacks .*embed.* of lab/heavy and cannot get them: .*answer"):
            await fetch
    folder = Store(tmp_path / "laptop").folder(lab_ref(toy).fingerprint)
    assert not (folder / "embed.safetensors").exists()  # a part is never taken for whole


async def test_what_was_cancelled_resumes(tmp_path: Path, toy: Path) -> None:
    laptop, model = tmp_path / "laptop", lab_ref(toy)
    part = Store(laptop).folder(model.fingerprint) / "embed.safetensors.part"
    async with studio(tmp_path, bytes_per_s=20e6) as link:
        sources = (source(at(link.port), toy),)
        fetch = asyncio.create_task(fetcher(laptop).fetch(model, FIRST, sources, quiet))
        await until(lambda: part.is_file() and part.stat().st_size > 3 * MEGABYTE)
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch
        await until(lambda: not link.connected)  # what was still on its way belongs to the cancelled fetch
        kept, before = part.stat().st_size, link.back.sent
        link.bytes_per_s = None
        told: list[tuple[int, int]] = []
        folder = await fetcher(laptop).fetch(model, FIRST, sources, lambda *now: told.append(now))
        assert link.back.sent - before < (weight_of(toy, FIRST) - kept) * SLACK
        assert max(told)[0] == told[0][1] >= describe(toy).units["embed.safetensors"].size
    check_whole(folder, toy, FIRST)


# --- the hub ----------------------------------------------------------------------------------------------------------


async def test_the_hub_gives_what_no_machine_has(tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carry(Store(tmp_path / "tower"), toy, "norm.safetensors", "head.safetensors", *map(layer_unit, range(LAYERS)))
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        model = replace(lab_ref(toy), revision=hub.add("lab/heavy", toy))
        folder = await fetcher(tmp_path / "laptop").fetch(model, MIDDLE, (), quiet)
        check_whole(folder, toy, MIDDLE)
        before = hub.weights_served()
        async with served(tmp_path / "tower") as tower:
            sources = (Source(tower, tuple(name for name in all_units(toy) if name != "embed.safetensors")),)
            await fetcher(tmp_path / "laptop").fetch(model, LayerRange(0, LAYERS), sources, quiet)
        embed = describe(toy).units["embed.safetensors"]
        assert embed.size - len(embed.header) == hub.weights_served() - before
    check_whole(folder, toy, LayerRange(0, LAYERS))


async def test_two_stages_of_one_machine_download_a_unit_once(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        model = replace(lab_ref(toy), revision=hub.add("lab/heavy", toy))
        await fetcher(tmp_path / "laptop").fetch(model, LayerRange(1, 2), (), quiet)
        before = hub.weights_served()
        fetches = [fetcher(tmp_path / "laptop").fetch(model, LayerRange(0, 1), (), quiet) for _ in range(2)]
        folder, _ = await asyncio.gather(*fetches)
        assert hub.weights_served() - before < weight_of(toy, LayerRange(0, 1)) * SLACK
    check_whole(folder, toy, LayerRange(0, 2))


async def test_another_version_on_the_hub_is_refused_with_both_fingerprints(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        other = make_checksum_model(tmp_path / "other", seed=3)
        model = replace(lab_ref(toy), revision=hub.add("lab/heavy", other))
        with pytest.raises(BrokenModel, match=f"{describe(other).fingerprint[:12]} there, {model.fingerprint[:12]}"):
            await fetcher(tmp_path / "laptop").fetch(model, MIDDLE, (), quiet)


async def test_a_download_that_is_cancelled_stops_and_resumes(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.bytes_per_s = 4e6
        model = replace(lab_ref(toy), revision=hub.add("lab/heavy", toy))
        part = Store(tmp_path / "laptop").folder(model.fingerprint) / "embed.safetensors.part"
        fetch = asyncio.create_task(fetcher(tmp_path / "laptop").fetch(model, FIRST, (), quiet))
        await until(lambda: part.is_file() and part.stat().st_size > MEGABYTE)
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch
        kept = part.stat().st_size
        hub.bytes_per_s = 0.0
        before = hub.weights_served()
        folder = await fetcher(tmp_path / "laptop").fetch(model, FIRST, (), quiet)
        assert hub.weights_served() - before <= weight_of(toy, FIRST) - kept
    check_whole(folder, toy, FIRST)
