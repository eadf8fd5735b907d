"""Machines that give away units and machines that lack them, for tests, and a toy heavy enough to be cut off.

Knows no test. Everything is on loopback; each "machine" is a home folder of its own.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.checksum import make_checksum_model
from tests.support.pieces import flip
from tests.support.proxy import Proxy, proxy
from together.cluster_types import Endpoint, Source, UnitRequest
from together.models.manifest import describe
from together.models.reading import read_unit
from together.models.spec import read_spec
from together.models.units import units_for
from together.ring import rpc
from together.types import LayerRange, ModelRef
from together.weights.fetch import Fetch
from together.weights.part import Progress, Waiting
from together.weights.room import CacheRoom
from together.weights.serve import StoreService
from together.weights.transfer import Suppliers

HOST = "127.0.0.1"
WIDTH = 8192  # of the toy: embedding and head have 8.6 MB each, a layer 32 kB
LAYERS = 6
FIRST = LayerRange(0, 3)
LAST = LayerRange(3, LAYERS)
MIDDLE = LayerRange(1, 3)
SLACK = 1.03  # what HTTP/2 and gRPC put around bytes
MEGABYTE = 10**6
NOWHERE = Endpoint((), 0)


def heavy_toy(home: Path) -> Path:
    """A toy large enough to be cut off in the middle, in the models folder of `home`."""
    return make_checksum_model(home / "models" / "lab" / "heavy", layers=LAYERS, width=WIDTH)


def lab_ref(folder: Path) -> ModelRef:
    """How a head far away names it: its path is of no use here."""
    return replace(read_spec(folder).ref(folder), name="lab/heavy", path="/no/such/folder")


def all_units(folder: Path) -> tuple[str, ...]:
    return tuple(describe(folder).units)


def weight_of(folder: Path, layers: LayerRange) -> int:
    """Bytes of the units that a stage of `layers` needs."""
    return sum(unit.size for unit in units_for(describe(folder), layers))


def small_weight(folder: Path) -> int:
    """Bytes of the manifest and the small files."""
    manifest = describe(folder)
    return len(manifest.to_json()) + sum(file.size for file in manifest.small)


@asynccontextmanager
async def served(
    home: Path, replaced: dict[str, rpc.Handler] | None = None, cache: int | None = None
) -> AsyncIterator[Endpoint]:
    """The store of a home on a port of its own; `replaced` are handlers that lie, `cache` its limit in bytes."""
    store = StoreService(home, CacheRoom(home, cache).convert)
    server = rpc.make_server(store.handlers() | (replaced or {}))
    port = server.add_insecure_port(f"{HOST}:0")
    await server.start()
    try:
        yield Endpoint((HOST,), port)
    finally:
        await server.stop(0)


@dataclass(frozen=True, slots=True)
class Fetcher:
    """A node that fetches: its home, and where it listens."""

    home: Path
    own: Endpoint
    cache: int | None = None  # bytes

    async def fetch(self, model: ModelRef, layers: LayerRange, sources: tuple[Source, ...], progress: Progress) -> Path:
        """From sources that stay where they are, waiting in silence."""
        suppliers = Suppliers(sources, lambda: self.own)
        return await self.fetch_from(suppliers, model, layers, progress, lambda whom: None)

    async def fetch_from(
        self, suppliers: Suppliers, model: ModelRef, layers: LayerRange, progress: Progress, waiting: Waiting
    ) -> Path:
        tell = progress, waiting, lambda _: None
        return await Fetch(
            self.home, self.home.name, suppliers, model, layers, *tell, CacheRoom(self.home, self.cache)
        ).run()


def fetcher(home: Path, own: Endpoint = NOWHERE) -> Fetcher:
    return Fetcher(home, own)


def quiet(done: int, total: int) -> None:
    """Progress that nobody watches."""


def at(port: int) -> Endpoint:
    return Endpoint((HOST,), port)


def source(endpoint: Endpoint, folder: Path) -> Source:
    """Somebody who has every unit."""
    return Source(endpoint, all_units(folder))


@asynccontextmanager
async def studio(tmp_path: Path, bytes_per_s: float | None = None) -> AsyncIterator[Proxy]:
    """The machine that has the toy, at the other end of a link that counts and can be cut."""
    async with served(tmp_path / "studio") as endpoint, proxy(endpoint.port, bytes_per_s=bytes_per_s) as link:
        yield link


def check_whole(folder: Path, toy: Path, layers: LayerRange) -> None:
    """`folder` has exactly what a stage of `layers` needs, byte by byte."""
    manifest = describe(toy)
    wanted = {unit.name for unit in units_for(manifest, layers)}
    assert {file.name for file in folder.iterdir() if file.name.endswith(".safetensors")} == wanted
    for name in wanted:
        assert (folder / name).read_bytes() == b"".join(read_unit(toy, manifest.units[name]))
    for small in manifest.small:
        assert (folder / small.name).read_bytes() == (toy / small.name).read_bytes()
    assert list(folder.glob("*.part")) == []


def rot(file: Path, position: int = -1) -> None:
    """A bit of a disk flips: nobody wrote, so no time changes."""
    times = file.stat()
    flip(file, position)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


async def hashed(home: Path, toy: Path) -> None:
    """Let a machine know the hashes of all its units."""
    manifest = describe(toy)
    async with served(home) as endpoint, rpc.open_channel(HOST, endpoint.port) as channel:
        for unit in manifest.units:
            await rpc.call(channel, rpc.DIGEST, UnitRequest(manifest.key, unit), "studio")
