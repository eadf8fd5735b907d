"""A store asked over a real port: what it gives away, what it never gives away, and to how many at once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc.aio
import psutil
import pytest

from tests.support.checksum import make_checksum_model
from tests.support.cluster import cluster_settings, running_node
from tests.support.patience import PATIENCE
from tests.support.pieces import carry, exported, flip
from tests.support.suppliers import HOST, heavy_toy, lab_ref, served
from together.cluster_types import Blob, UnitDigest, UnitRequest
from together.errors import BrokenModel, TogetherError
from together.models.manifest import describe, parse
from together.models.names import layer_unit
from together.models.reading import read_unit
from together.ring import rpc, wire
from together.types import LayerRange, ModelRef
from together.weights.room import CacheRoom
from together.weights.serve import StoreService, read_listed
from together.weights.store import Store

MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class Asked:
    """A store, as somebody sees it who only has a channel to it."""

    channel: grpc.aio.Channel

    async def describe(self, model: ModelRef) -> bytes:
        answer: Blob = await rpc.call(self.channel, rpc.DESCRIBE, model, "store")
        return answer.data

    async def digest(self, request: UnitRequest) -> UnitDigest:
        answer: UnitDigest = await rpc.call(self.channel, rpc.DIGEST, request, "store")
        return answer

    def stream(self, request: UnitRequest) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
        stub: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self.channel.unary_stream(rpc.READ)
        return stub(wire.UNIT_REQUEST.encode(request), timeout=PATIENCE)

    async def read(self, request: UnitRequest) -> bytes:
        try:
            return b"".join([wire.BLOB.decode(data).data async for data in self.stream(request)])
        except grpc.aio.AioRpcError as error:
            raise rpc.error_of(error, "store") from error


@asynccontextmanager
async def asked(home: Path) -> AsyncIterator[Asked]:
    async with served(home) as endpoint, rpc.open_channel(HOST, endpoint.port) as channel:
        yield Asked(channel)


async def test_a_model_is_described_and_given_away_unit_by_unit(tmp_path: Path) -> None:
    folder = make_checksum_model(tmp_path / "models" / "toy")
    whole = describe(folder)
    async with asked(tmp_path) as store:
        manifest = parse(await store.describe(lab_ref(folder)))
        assert manifest == whole
        for unit in whole.units.values():
            data = await store.read(UnitRequest(whole.fingerprint, unit.name))
            digest = await store.digest(UnitRequest(whole.fingerprint, unit.name))
            assert data == b"".join(read_unit(folder, unit))
            assert digest == UnitDigest(unit.size, hashlib.sha256(data).hexdigest())
        for small in whole.small:
            request = UnitRequest(whole.fingerprint, small.name)
            assert await store.read(request) == (folder / small.name).read_bytes()
            assert await store.digest(request) == UnitDigest(small.size, small.sha256)


@pytest.mark.parametrize("name", ["embed.safetensors", "tokenizer.json"])
async def test_reading_goes_on_at_any_offset(tmp_path: Path, name: str) -> None:
    fingerprint = describe(make_checksum_model(tmp_path / "models" / "toy")).fingerprint
    async with asked(tmp_path) as store:
        whole = await store.read(UnitRequest(fingerprint, name))
        for offset in (0, 1, 7, 8, 100, len(whole) - 1, len(whole)):
            assert await store.read(UnitRequest(fingerprint, name, offset)) == whole[offset:]


async def test_an_offset_behind_the_end_of_a_unit_is_refused(tmp_path: Path) -> None:
    manifest = describe(make_checksum_model(tmp_path / "models" / "toy"))
    size = manifest.units["norm.safetensors"].size
    async with asked(tmp_path) as store:
        with pytest.raises(BrokenModel, match=f"has {size} bytes, none at {size + 1}"):
            await store.read(UnitRequest(manifest.fingerprint, "norm.safetensors", size + 1))


# --- what is never given away -----------------------------------------------------------------------------------------

OUTSIDE = [
    "../models/toy/config.json",
    "../../secret",
    "..",
    "",
    "/etc/hostname",
    "..\\secret",
    "C:\\secret",
    "config.json/../../../secret",
    "config.json\0",
    "layer-00000.safetensors/../../../secret",
    "additional_chat_templates/../secret",
]


@pytest.mark.parametrize("name", [*OUTSIDE, "secret", "model.safetensors", "manifest.json", "layer-00099.safetensors"])
async def test_only_files_of_the_manifest_are_given_away(tmp_path: Path, name: str) -> None:
    folder = make_checksum_model(tmp_path / "models" / "toy")
    for place in (tmp_path, folder, folder.parent):
        (place / "secret").write_text("the join code")
    request = UnitRequest(describe(folder).fingerprint, name)
    async with asked(tmp_path) as store:
        for answer in (store.digest(request), store.read(request)):
            with pytest.raises(BrokenModel, match="toy has no file"):
                await answer


@pytest.mark.parametrize("fingerprint", [*OUTSIDE, "f00d" * 16])
async def test_models_that_are_not_here_are_refused(tmp_path: Path, fingerprint: str) -> None:
    folder = make_checksum_model(tmp_path / "models" / "toy")
    request = UnitRequest(fingerprint, "config.json")
    async with asked(tmp_path) as store:
        model = replace(lab_ref(folder), fingerprint=fingerprint, path=str(folder))
        for answer in (store.describe(model), store.digest(request), store.read(request)):
            with pytest.raises(BrokenModel, match="this machine does not have the model"):
                await answer


async def test_a_path_that_a_stranger_names_is_not_served(tmp_path: Path) -> None:
    folder = make_checksum_model(tmp_path / "elsewhere")
    async with asked(tmp_path / "home") as store:
        with pytest.raises(BrokenModel, match="does not have the model"):
            await store.describe(replace(lab_ref(folder), path=str(folder)))


async def test_random_bytes_are_refused(tmp_path: Path) -> None:
    async with asked(tmp_path) as store:
        for method in (rpc.DESCRIBE, rpc.DIGEST):
            stub: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = store.channel.unary_unary(method.path)
            with pytest.raises(grpc.aio.AioRpcError, match="not a valid"):
                await stub(b"\xff\xff\xff", timeout=PATIENCE)
        read: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = store.channel.unary_stream(rpc.READ)
        with pytest.raises(grpc.aio.AioRpcError, match="not a valid"):
            await read(b"\xff\xff\xff", timeout=PATIENCE).read()


# --- which folder -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def offered(home: Path, folder: Path) -> AsyncIterator[Asked]:
    """A store that was offered a folder which nobody would find."""
    service = StoreService(home, CacheRoom(home).convert)
    service.offer(lab_ref(folder), folder)
    server = rpc.make_server(service.handlers())
    port = server.add_insecure_port(f"{HOST}:0")
    await server.start()
    async with rpc.open_channel(HOST, port) as channel:
        yield Asked(channel)
    await server.stop(0)


async def test_an_offered_folder_is_served_until_it_holds_something_else(tmp_path: Path) -> None:
    folder = make_checksum_model(tmp_path / "elsewhere")
    request = UnitRequest(describe(folder).fingerprint, "norm.safetensors")
    async with offered(tmp_path / "home", folder) as store:
        assert (await store.digest(request)).size == len(await store.read(request))
        make_checksum_model(folder, seed=1)
        with pytest.raises(BrokenModel, match="does not have the model"):
            await store.digest(request)
        with pytest.raises(BrokenModel, match="does not have the model"):
            await store.read(request)


async def test_pieces_are_served_and_missing_ones_are_refused_by_name(tmp_path: Path) -> None:
    folder = make_checksum_model(tmp_path / "elsewhere" / "toy")
    manifest = carry(Store(tmp_path / "home"), folder, layer_unit(1))
    async with asked(tmp_path / "home") as store:
        here, missing = (UnitRequest(manifest.fingerprint, layer_unit(layer)) for layer in (1, 2))
        unit = manifest.units[layer_unit(1)]
        assert await store.read(here) == b"".join(read_unit(folder, unit))
        assert (await store.digest(here)).size == unit.size
        for answer in (store.digest(missing), store.read(missing)):
            with pytest.raises(TogetherError, match="this machine does not have layers 2:3 of toy"):
                await answer


async def test_a_flipped_byte_in_an_exported_unit_is_refused_by_name(tmp_path: Path) -> None:
    folder = make_checksum_model(tmp_path / "elsewhere" / "toy")
    shard = tmp_path / "shard"
    manifest = exported(folder, LayerRange(0, 2), shard)
    flip(shard / layer_unit(1))
    async with offered(tmp_path / "home", shard) as store:
        with pytest.raises(BrokenModel, match=r"layer-00001.safetensors of toy is broken: its sha256 is .*should be"):
            await store.digest(UnitRequest(manifest.fingerprint, layer_unit(1)))


# --- many and slow readers --------------------------------------------------------------------------------------------


async def test_what_is_here_is_listed_without_its_places(tmp_path: Path) -> None:
    manifest = carry(Store(tmp_path / "home"), make_checksum_model(tmp_path / "toy"), layer_unit(0))
    async with asked(tmp_path / "home") as store:
        data = (await rpc.call(store.channel, rpc.LIST, Blob(b""), "store")).data
    assert str(tmp_path).encode() not in data
    found = {model.name: model for model in read_listed(data)}
    assert found.keys() == {"demo_model", "toy"}
    toy = found["toy"]
    assert (toy.ref.key, toy.layers, toy.whole) == (manifest.key, manifest.layers, False)
    assert found["demo_model"].whole


@pytest.mark.parametrize("wrong", [b"", b"{}", b"[5]", b'[{"name": "a"}]', b"[" * 10**5])
def test_what_is_no_list_of_models_is_refused(wrong: bytes) -> None:
    with pytest.raises(BrokenModel, match="that is no list of models"):
        read_listed(wrong)


@pytest.mark.parametrize(
    "change",
    [{"name": "../x"}, {"name": "x" * 5000}, {"fingerprint": "../x"}, {"form": "odd"}, {"layers": 0}, {"bytes": -1}],
)
def test_what_names_no_model_is_passed_over(change: dict[str, object]) -> None:
    good = {"name": "a/b", "fingerprint": "0" * 64, "form": "", "layers": 4, "bytes": 9, "whole": True, "revision": ""}
    assert len(read_listed(json.dumps([good, good | change]).encode())) == 1


async def test_several_read_at_once(tmp_path: Path) -> None:
    folder = heavy_toy(tmp_path)
    manifest = describe(folder)
    async with asked(tmp_path) as store:
        names = list(manifest.units) * 3
        got = await asyncio.gather(*(store.read(UnitRequest(manifest.fingerprint, name)) for name in names))
        digests = await asyncio.gather(*(store.digest(UnitRequest(manifest.fingerprint, name)) for name in names))
    assert [hashlib.sha256(data).hexdigest() for data in got] == [digest.sha256 for digest in digests]


async def test_a_reader_that_stops_reading_costs_no_memory_and_holds_nobody_up(tmp_path: Path) -> None:
    size = 192 * MEBIBYTE
    settings = cluster_settings(tmp_path)
    folder = sparse_toy(tmp_path / "models" / "sparse", size)
    request = UnitRequest(describe(folder).fingerprint, "embed.safetensors")
    with running_node(settings) as node:
        async with rpc.open_channel(HOST, node.port) as channel, rpc.open_channel(HOST, node.port) as other:
            process = psutil.Process(node.process.pid)
            assert len(await Asked(other).read(request)) > size  # what a whole transfer costs is not counted
            before = process.memory_info().rss
            stalled = [Asked(channel).stream(request) for _ in range(4)]
            for stream in stalled:
                assert await stream.read()
            assert len(await Asked(other).read(request)) > size
            assert process.memory_info().rss - before < 64 * MEBIBYTE
            for stream in stalled:
                stream.cancel()


def sparse_toy(folder: Path, size: int) -> Path:
    """A toy whose embedding has `size` bytes of holes: read, never loaded."""
    make_checksum_model(folder, layers=1)
    header = json.loads((folder / "model.safetensors").read_bytes()[8:].split(b"}}")[0] + b"}}")
    header["model.embed_tokens.weight"]["shape"] = [size // 4]
    start = 0
    for entry in (entry for name, entry in header.items() if name != "__metadata__"):
        length = 4
        for dimension in entry["shape"]:
            length *= dimension
        entry["data_offsets"] = [start, start + length]
        start += length
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + start)
    return folder
