"""Orders for a node, as a head would write them, and a bare head that loads and unloads by them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

from tests.support.cluster import Node, call, status_of, watch
from tests.support.patience import PATIENCE
from together.cluster_types import Caller, NodeStatus, RingName, StageOrder, StageState, StageStatus
from together.errors import Unreachable
from together.models.spec import read_spec
from together.ring import rpc, wire
from together.settings import Settings
from together.types import LayerRange, StagePlan

MEBIBYTE = 2**20


def make_order(
    folder: Path, memory: int = MEBIBYTE, ring: str = "", head: str = "head", slot: int = 0, device: str = "cpu"
) -> StageOrder:
    """The whole toy as one stage of a ring of its own."""
    spec = read_spec(folder)
    plan = StagePlan("", "checksum", device, LayerRange(0, spec.layers), memory)
    return StageOrder(ring or secrets.token_hex(4), head, slot, spec.ref(folder), plan, "fp32")


@asynccontextmanager
async def loaded(node: Node, order: StageOrder) -> AsyncIterator[StageStatus]:
    """What the node answers to Load; unloaded at the end."""
    try:
        yield await call(node, rpc.LOAD, order)
    finally:
        with suppress(Unreachable):
            await call(node, rpc.UNLOAD, RingName(order.ring, order.head))


async def stage_when(node: Node, settings: Settings, order: StageOrder, *states: StageState) -> StageStatus:
    """The order's stage once it is in one of `states`."""
    return next(s for s in (await node_when(node, settings, order, *states)).stages if s.ring == order.ring)


async def node_when(node: Node, settings: Settings, order: StageOrder, *states: StageState) -> NodeStatus:
    """What the node says once the order's stage is in one of `states`."""
    caller = Caller(order.head, settings.cluster, wire.PROTOCOL)
    async with asyncio.timeout(PATIENCE):
        async for status in watch(node, caller):
            if any(stage.ring == order.ring and stage.state in states for stage in status.stages):
                return status
    raise AssertionError("the node ended its stream")


async def free_bytes(node: Node, settings: Settings) -> int:
    return (await status_of(node, settings)).free_bytes


def renamed(order: StageOrder, **model: object) -> StageOrder:
    """The order for another model."""
    return replace(order, model=replace(order.model, **model))  # type: ignore[arg-type]
