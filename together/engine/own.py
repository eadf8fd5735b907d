"""What a head adds to every token: the engine over a ring that computes nothing, timed on this machine."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter

from backends.measuring import PAUSE
from together.cluster_types import HeadCost
from together.engine.engine import Engine
from together.errors import RingBroken, TogetherError
from together.requests import GenerateRequest
from together.ring import wire
from together.ring.links import Inlet, Outlet
from together.ring.message import own_link
from together.types import Batch, Frame, Limits, RowResult, Sampled, Sampling, StageTiming

log = logging.getLogger(__name__)

_WARM, _TOKENS, _PEOPLE = 5, 30, 4
_LIMITS = Limits(stages=1, capacity=4096, block=16, context=512, chunk=64)
_TIMING = StageTiming(0.0, 0.0)


@dataclass(slots=True)
class OwnCost:
    """That of this process: measured once, when it is first asked for."""

    _found: HeadCost | None = None

    async def __call__(self, measure: bool) -> HeadCost:
        """0 where it is not known; with `measure` it is measured then."""
        if self._found is None and measure:
            try:
                self._found = await measure_head()
            except TogetherError as error:
                log.warning("this head was not measured: %s", error)
        return self._found or HeadCost()


async def measure_head() -> HeadCost:
    """Takes a tenth of a second. Raises BadSetting or RingBroken where this machine has no free port or link."""
    async with own_link() as (outlet, inlet):
        ring = _IdleRing(outlet, inlet)
        engine = Engine(ring, frozenset())
        async with asyncio.TaskGroup() as group:
            group.create_task(engine.serve())
            try:
                one, several = [await _turn_ms(engine, ring, people) for people in (1, _PEOPLE)]
            finally:
                engine.close()
    row = max((several - one) / (_PEOPLE - 1), 0.0)
    return HeadCost(max(one - row, 0.0), row)


async def _turn_ms(engine: Engine, ring: _IdleRing, people: int) -> float:
    """From the last stage's message to the head's next, which carries a row of each person."""
    ring.turns.clear()
    await asyncio.gather(*(_ask(engine, person) for person in range(people)))
    return 1e3 * median(ring.turns[_WARM:])


async def _ask(engine: Engine, person: int) -> None:
    prompt, greedy = (person,) * 8, Sampling(temperature=0.0)
    async for _ in engine.submit(GenerateRequest(prompt, greedy, _WARM + _TOKENS, ignore_eos=True)):
        pass


class _IdleRing:
    """Its one message is that from the last stage to the head: every row that asks gets the token 0.

    `turns` are seconds from each message to the next frame.
    """

    limits = _LIMITS

    def __init__(self, outlet: Outlet, inlet: Inlet) -> None:
        self._outlet, self._inlet = outlet, inlet
        self._sent = 0.0
        self.turns: list[float] = []

    async def push(self, frame: Frame) -> None:
        self.turns.append(perf_counter() - self._sent)
        await asyncio.sleep(PAUSE)  # a stage computes meanwhile
        rows = frame.batch.rows
        results = tuple(
            RowResult(row.sequence, row.position, tuple(Sampled(0) for _ in row.sample.offsets))
            for row in rows
            if row.sample is not None
        )
        answer = replace(frame, batch=Batch(), results=results, timings=(_TIMING,))
        data, self._sent = wire.FRAME.encode(answer), perf_counter()
        await self._outlet.send(data)

    async def receive(self) -> Frame:
        arrival = await self._inlet.next()
        if arrival.data is None:
            raise RingBroken("the link of this machine to itself ended")
        return wire.FRAME.decode(arrival.data)
