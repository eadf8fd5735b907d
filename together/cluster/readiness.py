"""One load under way: gives nodes their orders, waits until every stage is ready, and says whom it waits for meanwhile.

Knows no ring. A slow download is no failure, nor is a machine that is out of reach for a moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from together.cluster.membership import Membership
from together.cluster_types import Endpoint, Source, StageOrder, StageState, StageStatus
from together.errors import StageLost, TogetherError
from together.ring import rpc
from together.types import Fault, StagePlan

log = logging.getLogger(__name__)

ORDER_WITHIN = 30.0  # seconds

Find = Callable[[], Awaitable[tuple[Source, ...]]]  # who has which units now
Progress = Callable[[float, str], None]  # gets 0 to 1, and whom the load waits for: empty while it moves


class Placing(Protocol):
    """What is to be ready: stages in ring order, as their nodes tell them."""

    @property
    def planned(self) -> Sequence[StagePlan]: ...

    def stages(self) -> list[StageStatus | None]: ...

    def order(self, index: int, sources: tuple[Source, ...]) -> StageOrder: ...

    def describe(self, index: int) -> str: ...

    def where(self) -> frozenset[Endpoint]:
        """Where sources may be: every living machine."""


@dataclass(slots=True)
class Readiness:
    """`wait` once. `started` counts the stages that need an order; `timeout` is how long nothing may move, and
    `patience` how long a node may be out of reach, in seconds."""

    placing: Placing
    started: Sequence[int]
    membership: Membership
    find: Find
    progress: Progress
    timeout: float
    patience: float
    _told: set[int] = field(default_factory=set)  # stages that their nodes know
    _away: dict[str, float] = field(default_factory=dict)  # nodes out of reach → since when, in event loop time
    _returned: set[str] = field(default_factory=set)
    _where: frozenset[Endpoint] = frozenset()

    async def wait(self) -> None:
        """Raises what a node refused with, or StageLost."""
        await self._give_orders()
        changed, clock = self.membership.changed, asyncio.get_running_loop().time
        moved, seen = clock(), -1.0
        while True:
            stages = self.placing.stages()
            waiting = [text for index, stage in enumerate(stages) if (text := self._look_at(index, stage))]
            done = sum(map(_done, stages)) / len(stages)
            self.progress(done, "; ".join(dict.fromkeys(waiting)))
            if all(stage and stage.state is StageState.READY for stage in stages) and not waiting:
                return
            if done > seen or waiting:
                moved, seen = clock(), max(done, seen)
            if clock() - moved > self.timeout:
                self._give_up(stages)
            await self._give_again(stages)
            await changed.wait(changed.version, timeout=min(1.0, self.timeout))  # `progress` may itself have notified

    def _give_up(self, stages: list[StageStatus | None]) -> None:
        slow = next(i for i, stage in enumerate(stages) if stage is None or stage.state is not StageState.READY)
        raise self._lost(slow, f"it was not ready after {self.timeout:.0f} s without progress", Fault.SLOW)

    # --- orders -------------------------------------------------------------------------------------------------------

    async def _give_orders(self) -> None:
        self._where = self.placing.where()
        sources = await self.find() if self.started else ()
        calls = [self._give(index, sources) for index in self.started]
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer

    async def _give(self, index: int, sources: tuple[Source, ...]) -> None:
        order = self.placing.order(index, sources)
        await self.membership.call(order.stage.node, rpc.LOAD_CALL, order, timeout=ORDER_WITHIN)

    async def _give_again(self, stages: list[StageStatus | None]) -> None:
        """To nodes that let go of their stage while they were out of reach, and to all that still fetch when there are
        machines at other addresses: the same order again starts nothing twice."""
        where = self.placing.where()
        moved, self._where = where - self._where, where
        indices = [index for index in self.started if self._needs_order(index, stages[index], bool(moved))]
        if not indices:
            return
        sources = await self.find()
        calls = [self._give(index, sources) for index in indices]
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, TogetherError):
                log.warning("an order was not given again: %s", answer)
            elif isinstance(answer, BaseException):
                raise answer

    def _needs_order(self, index: int, stage: StageStatus | None, moved: bool) -> bool:
        node = self.placing.planned[index].node
        if not self.membership.alive(node):
            return False
        if stage is None:
            return node in self._returned
        return moved and stage.state is StageState.LOADING

    # --- what is seen -------------------------------------------------------------------------------------------------

    def _look_at(self, index: int, stage: StageStatus | None) -> str:
        """Whom this stage waits for. Raises StageLost."""
        node = self.placing.planned[index].node
        if not self.membership.alive(node):
            return self._away_for(index, node)
        if self._away.pop(node, None) is not None:
            self._returned.add(node)
        if stage is None:
            if index in self._told and node not in self._returned:
                raise self._lost(index, "the node ended it while loading", Fault.NODE_LOST)
            return ""
        if node in self._returned and stage.state is not StageState.FAILED:
            self._returned.discard(node)
        self._told.add(index)
        if stage.state is StageState.FAILED:
            raise self._lost(index, stage.cause, stage.fault)
        return f"{self.placing.describe(index)} waits for {stage.waiting}" if stage.waiting else ""

    def _away_for(self, index: int, node: str) -> str:
        now = asyncio.get_running_loop().time()
        if node not in self._away and not self.membership.is_silent(node):
            raise self._lost(index, "the node was lost while loading", Fault.NODE_LOST)
        away = now - self._away.setdefault(node, now)
        if away >= self.patience:
            raise self._lost(index, "the node was lost while loading", Fault.NODE_LOST)
        return f"{self.placing.describe(index)}: its machine is out of reach for {away:.0f} s"

    def _lost(self, index: int, cause: str, fault: Fault) -> StageLost:
        message = f"{self.placing.describe(index)}: {cause}"
        return StageLost(message, cause, index, self.placing.planned[index], fault=fault)


def _done(stage: StageStatus | None) -> float:
    """0 to 1: fetching counts half where there is anything to fetch."""
    if stage is None:
        return 0.0
    if not stage.fetch_bytes:
        return stage.progress
    return stage.fetched_bytes / stage.fetch_bytes / 2 + stage.progress / 2
