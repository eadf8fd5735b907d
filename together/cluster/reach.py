"""How fast a link is, by real messages to the other end's Echo. Knows no node and no plan.

Gives an answer within about three seconds on a link of 1 Mbit/s: whatever takes long is done once.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median

import grpc.aio

from together.ring import rpc
from together.types import Blob, Endpoint, LinkOrder, LinkSpeed

ROUNDS = 10
WITHIN = 0.6  # seconds for each of the three measurements, however slow the link
ONCE_WITHIN = 20.0  # seconds for one message
FIRST_BULK, LARGEST_BULK = 2**16, 2**20  # bytes of the messages that bandwidth is measured with
LARGEST_SIZE = FIRST_BULK  # larger messages are not sent for their own sake: bandwidth says what they take


async def measure_link(order: LinkOrder) -> LinkSpeed:
    """The link to `order.target`, from here. Raises Unreachable."""
    async with _channel(order.target) as (channel, peer):
        for _ in range(2):  # the connection, and what grows with its first answers
            await _once(channel, peer, 0)
        rtt = median(await _times(channel, peer, 0))
        if not order.size:
            return LinkSpeed(1e3 * rtt, 1e3 * rtt / 2, 0.0)
        speed = await _bulk_speed(channel, peer, rtt)
        if order.size > LARGEST_SIZE:
            hop = rtt / 2 + order.size / speed
        else:
            # a moment that was slow for the empty messages alone must not make the way free
            hop = max(median(await _times(channel, peer, order.size)) - rtt / 2, rtt / 4)
        return LinkSpeed(1e3 * rtt, 1e3 * hop, speed)


@asynccontextmanager
async def _channel(target: Endpoint) -> AsyncIterator[tuple[grpc.aio.Channel, str]]:
    address = await rpc.fastest(target)
    async with rpc.open_channel(address, target.port) as channel:
        yield channel, f"the machine at {address}:{target.port}"


async def _once(channel: grpc.aio.Channel, peer: str, size: int) -> float:
    """Seconds until a message of `size` bytes is there and an empty answer is back."""
    blob = Blob(bytes(size))
    began = time.perf_counter()
    await rpc.call(channel, rpc.ECHO_CALL, blob, peer, timeout=ONCE_WITHIN)
    return time.perf_counter() - began


async def _times(channel: grpc.aio.Channel, peer: str, size: int) -> list[float]:
    """Up to ROUNDS messages, at least one, none after WITHIN."""
    times: list[float] = []
    while not times or (len(times) < ROUNDS and sum(times) < WITHIN):
        times.append(await _once(channel, peer, size))
    return times


async def _bulk_speed(channel: grpc.aio.Channel, peer: str, rtt: float) -> float:
    """Bytes per second, by messages as large as a quarter of the time allows. A round trip of each is waiting."""
    size, spent, speeds = FIRST_BULK, 0.0, list[float]()
    while spent < WITHIN and len(speeds) < ROUNDS:
        took = await _once(channel, peer, size)
        spent += took
        speed = size / max(took - rtt, took / 10)  # a quick answer may come sooner than the usual one
        grown = min(LARGEST_BULK, 4 * size)
        if grown > size and grown / speed < WITHIN / 4:
            size, speeds = grown, []
        else:
            speeds.append(speed)
    return median(speeds or [speed])
