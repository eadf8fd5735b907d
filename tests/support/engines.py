"""Rings of real checksum shards for the engine's tests, and what such a ring must answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from backends.base import LoadRequest, Shard, open_backend
from backends.checksum import KV_BYTES, ChecksumShard
from tests.support.checksum import expected_tokens
from tests.support.loopback import LoopbackRing
from tests.support.patience import PATIENCE
from together.engine.engine import Engine
from together.engine.streams import TokenStream
from together.errors import RingBroken
from together.models.reading import tensors_for
from together.requests import GenerateRequest
from together.types import LayerRange

LAYERS = 4


def loads(folder: Path, stops: tuple[int, ...], capacity: int = 8192) -> list[Callable[[], Shard]]:
    """One loader per stage; `stops` are the layers at which stages end."""
    ranges = [LayerRange(start, stop) for start, stop in zip((0, *stops), stops, strict=False)]
    return [partial(_load, folder, layers, capacity) for layers in ranges]


def _load(folder: Path, layers: LayerRange, capacity: int) -> Shard:
    weights = sum(tensor.nbytes for tensor in tensors_for(folder, layers, LAYERS, folder.parent))
    memory = weights + KV_BYTES * len(layers) * capacity
    return open_backend("checksum").load(LoadRequest(folder, layers, "cpu", "fp32", memory, folder.parent))


def expected(folder: Path, request: GenerateRequest) -> list[int]:
    """The answer by the toy's definition, computed without a shard."""
    assert request.max_tokens is not None
    return list(expected_tokens(folder, request.prompt, request.max_tokens, request.sampling))


async def collect(stream: TokenStream, quits_after: int | None = None) -> list[int]:
    """All tokens of a stream, or those until its reader leaves."""
    tokens: list[int] = []
    try:
        async for new in stream:
            tokens += new.ids
            if quits_after is not None and len(tokens) > quits_after:
                break
    finally:
        stream.cancel()
    return tokens


async def serve(engine: Engine) -> None:
    """As a service without another ring to move to: a broken one ends all requests."""
    try:
        await engine.serve()
    except RingBroken as error:
        engine.close(error)
        raise


@asynccontextmanager
async def serving(engine: Engine) -> AsyncIterator[None]:
    """The engine's loop runs meanwhile."""
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(engine))
        try:
            yield
        finally:
            engine.close()


async def at_rest(engine: Engine, ring: LoopbackRing) -> None:
    """Nothing runs, and no stage holds a token."""
    await until(lambda: not (engine.running or engine.waiting or ring.in_flight))
    engine.drop_cache()
    await until(lambda: not any(_held(shard) for shard in ring.shards))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110  # what is waited for is state of others, not an event
            await asyncio.sleep(0.002)


def _held(shard: Shard) -> bool:
    assert isinstance(shard, ChecksumShard)
    return bool(shard._ledger.tokens or shard._ledger.held.tables or shard._entries.held)
