"""Layers of another fine-tune are refused, though config, headers and the sender's own hashes are right."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from tests.support.pieces import random_model
from tests.support.suppliers import fetcher, quiet, served
from together.cluster_types import Blob, Source, UnitDigest, UnitRequest
from together.errors import LoadFailed
from together.models.manifest import describe
from together.models.reading import read_unit, unit_digest
from together.models.spec import read_spec
from together.ring import rpc, wire
from together.types import LayerRange, ModelRef

MIDDLE = LayerRange(1, 2)


@pytest.fixture
def model(tmp_path: Path) -> ModelRef:
    folder = random_model(tmp_path / "studio" / "models" / "lab" / "tiny")
    return ModelRef("lab/tiny", "/no/such/folder", read_spec(folder).fingerprint, 2)


def mixing(other: Path) -> dict[str, rpc.Handler]:
    """A machine that describes the model and gives units of another fine-tune of it."""
    units = describe(other).units

    async def digest(request: UnitRequest) -> UnitDigest:
        return UnitDigest(units[request.unit].size, unit_digest(other, units[request.unit], other.parent))

    async def read(data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        request = wire.UNIT_REQUEST.decode(data)
        if request.unit not in units:
            yield wire.BLOB.encode(Blob((other / request.unit).read_bytes()))
            return
        for chunk in read_unit(other, units[request.unit], request.offset):
            yield wire.BLOB.encode(Blob(chunk))

    return {**rpc.unary({rpc.DIGEST: digest}), rpc.READ: grpc.unary_stream_rpc_method_handler(read)}


def tuned(folder: Path) -> Path:
    """The same small files, other weights."""
    random_model(folder, seed=1)
    (folder / "tokenizer.json").write_text('{"version": "1.0", "seed": 0}')
    return folder


async def test_a_unit_of_another_fine_tune_is_refused_by_name(tmp_path: Path, model: ModelRef) -> None:
    studio, other = tmp_path / "studio", tuned(tmp_path / "tuned" / "tiny")
    original = studio / "models" / "lab" / "tiny"
    units = describe(original).units
    assert describe(other).units == units
    async with served(studio, mixing(other)) as liar, served(studio) as honest:
        own, lying = fetcher(tmp_path / "laptop"), Source(liar, tuple(units))
        with pytest.raises(
            LoadFailed, match=r"layer-00001\.safetensors of lab/tiny has other weights than the version"
        ):
            await own.fetch(model, MIDDLE, (lying,), quiet)
        folder = await own.fetch(model, MIDDLE, (lying, Source(honest, tuple(units))), quiet)
    for name in ("layer-00001.safetensors", "norm.safetensors", "head.safetensors"):
        assert (folder / name).read_bytes() == b"".join(read_unit(original, units[name]))
