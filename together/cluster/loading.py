"""Loads a plan's stages onto their nodes and joins them to a ring. Knows no engine, no tokenizer and no strategy."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable

from together.cluster.membership import Membership
from together.errors import LoadFailed, RingBroken
from together.ring import rpc
from together.ring.client import RingClient
from together.ring.join import join_ring
from together.ring.links import Inlets
from together.types import (
    Endpoint,
    Plan,
    RingName,
    StageOrder,
    StageState,
    StageStatus,
)

log = logging.getLogger(__name__)


class RingLoader:
    """One ring from orders to a client; after `load`, the same object unloads it and says what is wrong with it."""

    def __init__(self, membership: Membership, plan: Plan, inlets: Inlets, own: Endpoint, timeout: float) -> None:
        self.ring = secrets.token_hex(8)
        self.epoch = 0
        self._membership = membership
        self._plan = plan
        self._inlets = inlets
        self._own = own
        self._timeout = timeout

    async def load(self, progress: Callable[[float], None]) -> None:
        """Start all stages in parallel and wait until all are ready. Raises what a node refused with, or LoadFailed."""
        orders = [self._order(index) for index in range(len(self._plan.stages))]
        calls = [self._membership.call(order.stage.node, rpc.LOAD_CALL, order, timeout=30.0) for order in orders]
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer
        try:
            async with asyncio.timeout(self._timeout):
                await self._until_ready(progress)
        except TimeoutError:
            slow = next(i for i, s in enumerate(self.stages()) if s is None or s.state is not StageState.READY)
            raise LoadFailed(f"{self.describe(slow)} was not ready after {self._timeout:.0f} s") from None

    async def connect(self, hidden_size: int) -> RingClient:
        """Join the loaded stages to a ring. Raises LoadFailed."""
        return await join_ring(
            [stage for stage in self.stages() if stage is not None],
            epoch=self.epoch,
            own=self._own,
            inlets=self._inlets,
            context=self._plan.context,
            hidden_size=hidden_size,
            dtype=self._plan.dtype,
            describe=self.describe,
        )

    async def unload(self) -> None:
        """End every stage that still can be reached; the others end with their lease, or see `end_strays`."""
        self._inlets.remove(self.ring)
        name = RingName(self.ring, self._membership.head)
        nodes = {stage.node for stage in self._plan.stages if self._membership.alive(stage.node)}
        calls = [self._membership.call(node, rpc.UNLOAD_CALL, name, timeout=10.0) for node in nodes]
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, BaseException):
                log.warning("unloading: %s", answer)

    def stages(self) -> list[StageStatus | None]:
        """Each stage as its node last told it; None where the node does not know it (yet)."""
        return [self._stage(index, stage.node) for index, stage in enumerate(self._plan.stages)]

    def trouble(self) -> RingBroken | None:
        """A stage of a ring that was ready is gone, or None."""
        for index, (planned, stage) in enumerate(zip(self._plan.stages, self.stages(), strict=True)):
            node = self._membership.status(planned.node)
            if node is None or not self._membership.alive(planned.node):
                return self._broken(index, node.cause if node else "the node was stopped")
            if stage is None:
                return self._broken(index, "the node started anew and does not hold it any more")
            if stage.state is StageState.FAILED:
                return self._broken(index, stage.cause)
        return None

    def broken_link(self) -> RingBroken | None:
        """A stage that cannot reach the next one says so; the next one's own end, if that is why, may come later."""
        for index, stage in enumerate(self.stages()):
            if stage is not None and stage.cause:
                return self._broken(index, stage.cause)
        return None

    def describe(self, index: int) -> str:
        """A stage for a person: node, place, layers."""
        stage = self._plan.stages[index]
        node = self._membership.status(stage.node)
        layers = f"layers {stage.layers.start}–{stage.layers.stop - 1}"
        return f"node {node.name if node else stage.node}: stage {index} ({layers})"

    def _broken(self, index: int, cause: str) -> RingBroken:
        node = self._membership.status(self._plan.stages[index].node)
        message = f"{self.describe(index)} is lost: {cause}; load the model again"
        return RingBroken(message, node=node.name if node else "", cause=cause)

    def _stage(self, index: int, node: str) -> StageStatus | None:
        status = self._membership.status(node)
        stages = status.stages if status else ()
        return next((stage for stage in stages if (stage.ring, stage.index) == (self.ring, index)), None)

    def _order(self, index: int) -> StageOrder:
        plan = self._plan
        head, count = self._membership.head, len(plan.stages)
        return StageOrder(self.ring, self.epoch, head, index, count, plan.model, plan.stages[index], plan.dtype)

    async def _until_ready(self, progress: Callable[[float], None]) -> None:
        changed = self._membership.changed
        told: set[int] = set()
        while True:
            stages = self.stages()
            for index, stage in enumerate(stages):
                told |= {index} if stage else set()
                self._check(index, stage, index in told)
            progress(sum(stage.progress if stage else 0.0 for stage in stages) / len(stages))
            if all(stage and stage.state is StageState.READY for stage in stages):
                return
            await changed.wait(changed.version, timeout=1.0)  # `progress` may itself have notified

    def _check(self, index: int, stage: StageStatus | None, was_known: bool) -> None:
        if not self._membership.alive(self._plan.stages[index].node):
            raise LoadFailed(f"{self.describe(index)}: the node was lost while loading")
        if stage is None and was_known:
            raise LoadFailed(f"{self.describe(index)}: the node started anew while loading")
        if stage is not None and stage.state is StageState.FAILED:
            raise LoadFailed(f"{self.describe(index)}: {stage.cause}")
