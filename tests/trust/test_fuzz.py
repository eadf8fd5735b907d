"""Control messages that nobody meant, thousands of them, from a member: the node lives, and nothing grows."""

from __future__ import annotations

import grpc.aio
import psutil
import pytest

from tests.ring import words
from tests.support.mutants import mutants_of
from tests.support.patience import PATIENCE
from tests.trust.conftest import Open
from together.ring import rpc
from together.ring.doors import find_door

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROWTH = 32 * 2**20  # bytes: allocators keep some of what they had
LONG = [pytest.mark.full, pytest.mark.timeout(3600)]  # hypothesis alone takes minutes
# All but Reach, which would connect to whatever stands in it and wait there.
ASKED = [
    (rpc.LOAD, words.stage_orders),
    (rpc.UNLOAD, words.ring_names),
    (rpc.RENEW, words.callers),
    (rpc.FIND, words.models),
    (rpc.MEET, words.endpoints),
    (rpc.ECHO, words.blobs),
    (rpc.MEASURE, words.measure_orders),  # of devices that no node has
    (rpc.DESCRIBE, words.models),
    (rpc.DIGEST, words.unit_requests),
]


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=LONG)])
async def test_mutated_calls_are_refused_and_harm_nothing(cluster: Open, count: int) -> None:
    calls = mutants_of([(method.request.encode, strategy) for method, strategy in ASKED], count)
    process = psutil.Process(cluster.node)
    codes: set[grpc.StatusCode] = set()

    async def send(channel: grpc.aio.Channel, kind: int, data: bytes) -> None:
        stub: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(ASKED[kind][0].path)
        try:
            await stub(data, timeout=PATIENCE)
        except grpc.aio.AioRpcError as error:
            codes.add(error.code())

    async with (await find_door(cluster.doors["node"], cluster.member)).open() as channel:
        for kind, data in calls[:100]:
            await send(channel, kind, data)
        before = process.memory_info().rss
        for kind, data in calls[100:]:
            await send(channel, kind, data)
        assert process.memory_info().rss - before < GROWTH
    assert grpc.StatusCode.UNAVAILABLE not in codes
    assert grpc.StatusCode.DEADLINE_EXCEEDED not in codes
    assert grpc.StatusCode.UNKNOWN not in codes, "an exception that is not ours"
    await cluster.answers_as_before()
