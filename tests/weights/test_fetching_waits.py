"""A connection that is lost while weights travel: it is waited for, that is said, and nothing travels twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.cluster import until
from tests.support.hub import serve_hub
from tests.support.patience import PATIENCE
from tests.support.proxy import Proxy, proxy
from tests.support.suppliers import (
    FIRST,
    HOST,
    MEGABYTE,
    SLACK,
    at,
    check_whole,
    fetcher,
    heavy_toy,
    lab_ref,
    quiet,
    served,
    source,
    studio,
    weight_of,
)
from together.cluster_types import Source
from together.weights.store import Store
from together.weights.transfer import Suppliers


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return heavy_toy(tmp_path / "studio")


@asynccontextmanager
async def fetching(
    tmp_path: Path, toy: Path, suppliers: Suppliers, said: list[str]
) -> AsyncIterator[asyncio.Task[Path]]:
    """A laptop that fetches the first layers, and has the first megabytes of them."""
    model = lab_ref(toy)
    part = Store(tmp_path / "laptop").folder(model.fingerprint) / "embed.safetensors.part"
    fetch = fetcher(tmp_path / "laptop").fetch_from(suppliers, model, FIRST, quiet, said.append)
    task = asyncio.create_task(fetch)
    try:
        await until(lambda: part.is_file() and part.stat().st_size > 2 * MEGABYTE)
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def cut_for(link: Proxy, seconds: float) -> None:
    link.cut()
    await asyncio.sleep(seconds)  # this is what is tested, and no waiting for something
    link.heal()


async def check_a_cut(tmp_path: Path, toy: Path, seconds: float) -> None:
    said: list[str] = []
    clock = asyncio.get_running_loop().time
    async with studio(tmp_path, bytes_per_s=5e6) as link:
        sources = Suppliers((source(at(link.port), toy),))
        async with fetching(tmp_path, toy, sources, said) as fetch:
            await cut_for(link, seconds)
            healed, before, link.bytes_per_s = clock(), link.back.sent, None
            await until(lambda: link.back.sent > before)
            print(f"a cut of {seconds:.0f} s: bytes come again {clock() - healed:.1f} s after it")
            folder = await fetch
        assert link.back.sent < (weight_of(toy, FIRST) + 2**20) * SLACK  # of the cut the message that was on its way
    check_whole(folder, toy, FIRST)
    assert any(f"{HOST}:{link.port}: nothing came for" in text for text in said)
    assert said[-1] == ""


async def test_a_cut_of_seconds_is_waited_for_and_that_is_said(tmp_path: Path, toy: Path) -> None:
    await check_a_cut(tmp_path, toy, 6.0)


@pytest.mark.full
async def test_a_cut_of_a_minute_is_waited_for(tmp_path: Path, toy: Path) -> None:
    await check_a_cut(tmp_path, toy, 60.0)


async def test_a_source_at_another_address_is_taken_at_once(tmp_path: Path, toy: Path) -> None:
    """As a head says it, by the same order once more: the old address answers nothing for ever."""
    said: list[str] = []
    async with served(tmp_path / "studio") as endpoint, proxy(endpoint.port, bytes_per_s=5e6) as link:
        suppliers = Suppliers((source(at(link.port), toy),))
        async with fetching(tmp_path, toy, suppliers, said) as fetch:
            link.cut()
            before = link.back.sent
            suppliers.renew((source(endpoint, toy),))
            folder = await asyncio.wait_for(fetch, PATIENCE)
        assert link.back.sent < before + 2**16  # what was on its way
    check_whole(folder, toy, FIRST)


async def test_a_hub_that_goes_away_is_waited_for_and_that_is_said(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with serve_hub() as hub:
        async with proxy(int(hub.cdn_url.rpartition(":")[2])) as link:
            hub.cdn_url = f"http://{HOST}:{link.port}"
            monkeypatch.setenv("HF_ENDPOINT", hub.url)
            model = replace(lab_ref(toy), revision=hub.add("lab/heavy", toy))
            part = Store(tmp_path / "laptop").folder(model.fingerprint) / "embed.safetensors.part"
            own = fetcher(tmp_path / "laptop")
            link.bytes_per_s = 5e6
            fetch = asyncio.create_task(own.fetch_from(Suppliers(()), model, FIRST, quiet, said.append))
            await until(lambda: part.is_file() and part.stat().st_size > MEGABYTE)
            await cut_for(link, 3.0)
            link.bytes_per_s = None
            folder = await asyncio.wait_for(fetch, PATIENCE)
    check_whole(folder, toy, FIRST)
    assert any(f"the hub at {hub.url}: nothing came for" in text for text in said)
    assert said[-1] == ""


async def test_machines_get_more_time_where_the_hub_does_not_answer_either(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole network is gone for a moment: whoever is back first gives the rest."""
    monkeypatch.setattr("together.weights.fetch.FIRST_PATIENCE", 0.5)
    monkeypatch.setenv("HF_ENDPOINT", f"http://{HOST}:9")
    said: list[str] = []
    async with studio(tmp_path, bytes_per_s=5e6) as link:
        model = replace(lab_ref(toy), revision="0" * 40)
        sources = Suppliers((source(at(link.port), toy),))
        part = Store(tmp_path / "laptop").folder(model.fingerprint) / "embed.safetensors.part"
        fetch = asyncio.create_task(fetcher(tmp_path / "laptop").fetch_from(sources, model, FIRST, quiet, said.append))
        await until(lambda: part.is_file() and part.stat().st_size > 2 * MEGABYTE)
        await cut_for(link, 6.0)
        link.bytes_per_s = None
        folder = await asyncio.wait_for(fetch, PATIENCE)
    check_whole(folder, toy, FIRST)


async def test_sources_are_told_apart_by_all_they_say() -> None:
    suppliers = Suppliers((Source(at(1), ("norm.safetensors",)),))
    first, seen = suppliers.all[0], suppliers.changed.version
    suppliers.renew((Source(at(1), ("norm.safetensors",)),))
    assert (suppliers.all, suppliers.changed.version) == ([first], seen)
    suppliers.renew((Source(at(2), ("norm.safetensors",)),))
    assert suppliers.all[0] is first, "the old address may come back"
    assert len(suppliers.all) == 2
    assert suppliers.changed.version != seen
