"""The head's end of a ring: joins loaded stages in an epoch, pushes frames and receives answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from together.cluster_types import Endpoint, StageLink, StageStatus
from together.errors import EpochRefused, FrameRefused, RingBroken, StageLost, TogetherError, Unreachable
from together.ring import rpc, wire
from together.ring.doors import find_door
from together.ring.links import Inlet, Inlets, Outlet
from together.sentences import Sentence, template
from together.trust.credentials import ALONE, Credentials
from together.types import DTYPE_BYTES, HEAD, STEP_TOKENS, Dtype, Fault, Frame, Limits, ModelRef, StreamKey

T = TypeVar("T")

CAUSE_WITHIN = 2.0  # seconds for a node to report why a link broke
CHUNK_BYTES = 4 * 2**20  # a prefill frame's activation: 0.35 s on a 100 Mbit/s link


def chunk_tokens(hidden_size: int, dtype: Dtype) -> int:
    """Most tokens per frame, so that its activation stays within CHUNK_BYTES."""
    return max(16, min(STEP_TOKENS, CHUNK_BYTES // (hidden_size * DTYPE_BYTES[dtype])))


class RingClient:
    """A joined ring. `limits` are those of its smallest stage."""

    def __init__(self, inlet: Inlet, outlet: Outlet, limits: Limits) -> None:
        self.limits = limits
        self._inlet = inlet
        self._outlet = outlet
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._working: set[asyncio.Timeout] = set()  # of those who push or receive now

    async def push(self, frame: Frame) -> None:
        """Send a frame to the first stage; waits while the link is full. Raises RingBroken."""
        await self._unless_failed(lambda: self._outlet.send(wire.FRAME.encode(frame)))

    async def receive(self) -> Frame:
        """The next answer of the last stage. Raises RingBroken."""
        arrival = await self._unless_failed(self._inlet.next)
        if arrival.data is None:
            await asyncio.wait([self._failed], timeout=CAUSE_WITHIN)  # its node usually reports the cause
            self._check()
            raise RingBroken("the last stage closed its link to the head")
        try:
            return wire.FRAME.decode(arrival.data)
        except FrameRefused as error:
            message = "the last stage sent an answer that cannot be read: {error}"
            raise RingBroken(message, error=error.sentence) from error

    def fail(self, error: RingBroken) -> None:
        """Break the ring; only the first cause counts."""
        if self._failed.done():
            return
        self._failed.set_exception(error)
        self._failed.exception()  # retrieved: it is raised to those who push or receive, who may be none
        for work in self._working:
            work.reschedule(0)

    async def close(self) -> None:
        self.fail(RingBroken("the ring was unloaded"))
        await self._outlet.close()

    def _check(self) -> None:
        if self._failed.done():
            self._failed.result()

    async def _unless_failed(self, work: Callable[[], Awaitable[T]]) -> T:
        """Begins at once and not in a task of its own: a frame is on its way before anything else gets its turn."""
        self._check()
        try:
            async with asyncio.timeout(None) as limit:  # `fail` sets it
                self._working.add(limit)
                try:
                    return await work()
                finally:
                    self._working.discard(limit)
        except TimeoutError:
            self._check()
            raise
        except RingBroken:  # of a broken link, the node that lost its stage knows the cause: wait a moment for it
            await asyncio.wait([self._failed], timeout=CAUSE_WITHIN)
            self._check()
            raise


async def join_ring(
    stages: Sequence[StageStatus],
    model: ModelRef,
    *,
    epoch: int,
    own: Endpoint,
    inlets: Inlets,
    context: int,
    hidden_size: int,
    dtype: Dtype,
    describe: Callable[[int], Sentence],
    timeout: float = 15.0,
    nodes: Sequence[str] = (),
    credentials: Credentials = ALONE,
) -> RingClient:
    """Link READY `stages` from the last to the first, so that each one's next is listening. Raises StageLost.

    `own` is where the head's `inlets` listen; `describe` names a stage; `nodes` are the ids of the stages' nodes, which
    need not be known where all listen on this machine alone.
    """
    ring = stages[0].ring
    endpoints = [stage.endpoint for stage in stages if stage.endpoint is not None]
    assert len(endpoints) == len(stages), "a READY stage has an endpoint"
    inlet = Inlet(ring)
    senders = [credentials.name, *(nodes or [""] * len(stages))]
    inlet.expect(epoch, len(stages) - 1, senders[-1])
    inlets.add(inlet)
    shared = sharing(stages)
    for index in reversed(range(len(stages))):
        following = endpoints[index + 1] if index + 1 < len(stages) else own
        link = StageLink(ring, epoch, index, following, model, shared[index], senders[index])
        await _connect(endpoints[index], link, describe(index), timeout, credentials)
    try:
        outlet = await Outlet.open(endpoints[0], StreamKey(ring, epoch, HEAD), credentials)
    except TogetherError as error:
        message = template("{stage} does not answer: {error}", stage=describe(0), error=error.sentence)
        raise StageLost(message, error.sentence, 0, joining=True, fault=Fault.NODE_LOST) from error
    rewinds = [stage.rewind for stage in stages if stage.rewind is not None]
    block = max(stage.block for stage in stages)
    limits = Limits(
        stages=len(stages),
        capacity=min(stage.capacity for stage in stages),
        block=block,
        context=context,
        chunk=chunk_tokens(hidden_size, dtype),
        rewind=min(rewinds, default=None),
        shares=all(stage.shares for stage in stages) and len({stage.block for stage in stages}) == 1,
        per_sequence=max(-(-stage.per_sequence // block) * block for stage in stages),
    )
    return RingClient(inlet, outlet, limits)


def sharing(stages: Sequence[StageStatus]) -> list[int]:
    """By stage, how many of them compute on its processor: stages of one machine listen on the same addresses."""
    places = [(frozenset(stage.endpoint.addresses) if stage.endpoint else None, stage.device) for stage in stages]
    return [places.count(place) for place in places]


async def _connect(
    endpoint: Endpoint, link: StageLink, stage: Sentence, timeout: float, credentials: Credentials
) -> None:
    try:
        async with (await find_door(endpoint, credentials)).open() as channel:
            await rpc.call(channel, rpc.CONNECT, link, str(stage), timeout=timeout)
    except TogetherError as error:
        message = template("{stage} cannot take its place in the ring: {error}", stage=stage, error=error.sentence)
        reachable = not isinstance(error, Unreachable)
        behind = isinstance(error, EpochRefused)
        fault = Fault.NODE_LOST if not reachable else Fault.OUT_OF_STEP if behind else Fault.OTHER
        raise StageLost(message, error.sentence, link.index, joining=True, reachable=reachable, fault=fault) from error
