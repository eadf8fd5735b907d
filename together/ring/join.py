"""Joins loaded stages to a ring in one epoch and opens the head's two links to it. Knows no node and no plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from together.errors import StageLost, TogetherError, Unreachable
from together.ring import rpc
from together.ring.client import RingClient, chunk_tokens
from together.ring.links import Inlet, Inlets, Outlet
from together.types import HEAD, Dtype, Endpoint, Fault, StageLink, StageStatus, StreamKey


async def join_ring(
    stages: Sequence[StageStatus],
    *,
    epoch: int,
    own: Endpoint,
    inlets: Inlets,
    context: int,
    hidden_size: int,
    dtype: Dtype,
    describe: Callable[[int], str],
    timeout: float = 15.0,
) -> RingClient:
    """Link READY `stages`, from the last backwards, so that everyone's next one is listening. Raises StageLost.

    `own` is where the head's `inlets` listen; `describe` names a stage for a person.
    """
    ring = stages[0].ring
    endpoints = [stage.endpoint for stage in stages if stage.endpoint is not None]
    assert len(endpoints) == len(stages), "a READY stage has an endpoint"
    inlet = Inlet(ring)
    inlet.expect(epoch, len(stages) - 1)
    inlets.add(inlet)
    for index in reversed(range(len(stages))):
        link = StageLink(ring, epoch, index, endpoints[index + 1] if index + 1 < len(stages) else own)
        await _connect(endpoints[index], link, describe(index), timeout)
    try:
        outlet = await Outlet.open(endpoints[0], StreamKey(ring, epoch, HEAD))
    except TogetherError as error:
        message = f"{describe(0)} does not answer: {error}"
        raise StageLost(message, str(error), 0, joining=True, fault=Fault.NODE_LOST) from error
    rewinds = [stage.rewind for stage in stages if stage.rewind is not None]
    return RingClient(
        inlet,
        outlet,
        stages=len(stages),
        capacity=min(stage.capacity for stage in stages),
        block=max(stage.block for stage in stages),
        rewind=min(rewinds) if rewinds else None,
        context=context,
        chunk=chunk_tokens(hidden_size, dtype),
    )


async def _connect(endpoint: Endpoint, link: StageLink, stage: str, timeout: float) -> None:
    try:
        async with rpc.open_channel(await rpc.fastest(endpoint), endpoint.port) as channel:
            await rpc.call(channel, rpc.CONNECT_CALL, link, stage, timeout=timeout)
    except TogetherError as error:
        message = f"{stage} cannot take its place in the ring: {error}"
        reachable = not isinstance(error, Unreachable)
        fault = Fault.OTHER if reachable else Fault.NODE_LOST
        raise StageLost(message, str(error), link.index, joining=True, reachable=reachable, fault=fault) from error
