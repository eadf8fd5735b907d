"""Loads a plan's stages onto their nodes and joins them to a ring; changes a ring's plan and keeps what fits.

Knows no engine, no tokenizer and no strategy.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable

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
    Source,
    StageOrder,
    StagePlan,
    StageState,
    StageStatus,
)

log = logging.getLogger(__name__)

UNLOAD_WITHIN = 10.0  # seconds


class RingLoader:
    """One ring from orders to a client, through all its plans; also unloads it and says what is wrong with it.

    A stage is a slot of the ring: a number that no other stage of it ever has.
    """

    def __init__(self, membership: Membership, plan: Plan, inlets: Inlets, own: Endpoint, timeout: float) -> None:
        self.ring = secrets.token_hex(8)
        self.epoch = -1
        self.plan = plan
        self._membership = membership
        self._inlets = inlets
        self._own = own
        self._timeout = timeout
        self._slots: dict[int, StagePlan] = {}  # all that were started and not ended
        self._places: tuple[int, ...] = ()  # the slots of `plan`, in ring order
        self._next_slot = 0

    # --- loading ------------------------------------------------------------------------------------------------------

    async def load(self, sources: tuple[Source, ...], progress: Callable[[float], None]) -> None:
        """Start the plan's stages in parallel and wait until all are ready. Raises what a node refused with, or
        LoadFailed."""
        await self._start(self.plan, sources, progress)

    async def change(self, plan: Plan, sources: tuple[Source, ...], progress: Callable[[float], None]) -> None:
        """The same model by another plan. Living stages that fit stay; what it lacks is started; see `prune`.

        Where that fails the new stages are ended, the old plan still stands, and the error is raised.
        """
        before = self.plan, self._places, set(self._slots)
        try:
            await self._start(plan, sources, progress)
        except BaseException:
            self.plan, self._places = before[0], before[1]
            await self._end(set(self._slots) - before[2])
            raise

    async def prune(self, keep: Plan | None = None) -> None:
        """End the stages that the plan (or `keep`) does not use."""
        used = set(self._places) if keep is None else {slot for slot in self._kept(keep) if slot is not None}
        await self._end(set(self._slots) - used)

    def missing(self, plan: Plan) -> tuple[StagePlan, ...]:
        """The stages of `plan` that would have to be started."""
        return tuple(stage for stage, slot in zip(plan.stages, self._kept(plan), strict=True) if slot is None)

    async def connect(self, hidden_size: int) -> RingClient:
        """Join the plan's stages to a ring in a new epoch. Raises LoadFailed."""
        self.epoch += 1
        return await join_ring(
            [stage for stage in self.stages() if stage is not None],
            epoch=self.epoch,
            own=self._own,
            inlets=self._inlets,
            context=self.plan.context,
            hidden_size=hidden_size,
            dtype=self.plan.dtype,
            describe=self.describe,
        )

    async def unload(self) -> None:
        """End every stage that still can be reached; the others end with their lease, or see `end_strays`."""
        self._inlets.remove(self.ring)
        await self._end(set(self._slots))

    async def _start(self, plan: Plan, sources: tuple[Source, ...], progress: Callable[[float], None]) -> None:
        kept = self._kept(plan)
        self.plan = plan
        pairs = zip(kept, plan.stages, strict=True)
        self._places = tuple(self._new_slot(stage) if slot is None else slot for slot, stage in pairs)
        orders = [self._order(slot, sources) for slot in self._places if slot not in kept]
        calls = [self._membership.call(order.stage.node, rpc.LOAD_CALL, order, timeout=30.0) for order in orders]
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer
        await self._until_ready(progress)

    def _kept(self, plan: Plan) -> tuple[int | None, ...]:
        """For each stage of `plan` a living slot that does for it."""
        same = (plan.model.fingerprint, plan.dtype) == (self.plan.model.fingerprint, self.plan.dtype)
        free = {slot: stage for slot, stage in self._slots.items() if same and self._serves(slot, stage)}
        found = []
        for stage in plan.stages:
            slot = next((slot for slot, held in free.items() if _does_for(held, stage)), None)
            free.pop(slot, None) if slot is not None else None
            found.append(slot)
        return tuple(found)

    def _serves(self, slot: int, stage: StagePlan) -> bool:
        status = self._status(slot, stage.node) if self._membership.alive(stage.node) else None
        return status is not None and status.state is StageState.READY

    def _new_slot(self, stage: StagePlan) -> int:
        slot, self._next_slot = self._next_slot, self._next_slot + 1
        self._slots[slot] = stage
        return slot

    async def _end(self, slots: Iterable[int]) -> None:
        by_node: dict[str, list[int]] = {}
        for slot in slots:
            by_node.setdefault(self._slots.pop(slot).node, []).append(slot)
        calls = [
            self._membership.call(
                node, rpc.UNLOAD_CALL, RingName(self.ring, self._membership.head, tuple(gone)), timeout=UNLOAD_WITHIN
            )
            for node, gone in by_node.items()
            if self._membership.alive(node)
        ]
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, BaseException):
                log.warning("unloading: %s", answer)

    # --- what is seen of it -------------------------------------------------------------------------------------------

    def stages(self) -> list[StageStatus | None]:
        """Each stage of the plan as its node last told it; None where the node does not know it (yet)."""
        return [self._status(slot, self._slots[slot].node) for slot in self._places]

    def trouble(self) -> RingBroken | None:
        """A stage of a ring that was ready is gone, or None."""
        for index, (planned, stage) in enumerate(zip(self.plan.stages, self.stages(), strict=True)):
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
        stage = self.plan.stages[index]
        node = self._membership.status(stage.node)
        layers = f"layers {stage.layers.start}–{stage.layers.stop - 1}"
        return f"node {node.name if node else stage.node}: stage {index} ({layers})"

    def _broken(self, index: int, cause: str) -> RingBroken:
        node = self._membership.status(self.plan.stages[index].node)
        message = f"{self.describe(index)} is lost: {cause}; load the model again"
        return RingBroken(message, node=node.name if node else "", cause=cause)

    def _status(self, slot: int, node: str) -> StageStatus | None:
        status = self._membership.status(node)
        stages = status.stages if status else ()
        return next((stage for stage in stages if (stage.ring, stage.slot) == (self.ring, slot)), None)

    def _order(self, slot: int, sources: tuple[Source, ...]) -> StageOrder:
        plan = self.plan
        return StageOrder(self.ring, self._membership.head, slot, plan.model, self._slots[slot], plan.dtype, sources)

    async def _until_ready(self, progress: Callable[[float], None]) -> None:
        """Raises LoadFailed, also when nothing moves for the load timeout: a slow download is no failure."""
        changed, clock = self._membership.changed, asyncio.get_running_loop().time
        told: set[int] = set()
        moved, seen = clock(), -1.0
        while True:
            stages = self.stages()
            for index, stage in enumerate(stages):
                told |= {index} if stage else set()
                self._check(index, stage, index in told)
            done = sum(_done(stage) for stage in stages) / len(stages)
            progress(done)
            if all(stage and stage.state is StageState.READY for stage in stages):
                return
            if done > seen:
                moved, seen = clock(), done
            if clock() - moved > self._timeout:
                slow = next(i for i, s in enumerate(stages) if s is None or s.state is not StageState.READY)
                raise LoadFailed(f"{self.describe(slow)} was not ready after {self._timeout:.0f} s without progress")
            await changed.wait(changed.version, timeout=min(1.0, self._timeout))  # `progress` may itself have notified

    def _check(self, index: int, stage: StageStatus | None, was_known: bool) -> None:
        if not self._membership.alive(self.plan.stages[index].node):
            raise LoadFailed(f"{self.describe(index)}: the node was lost while loading")
        if stage is None and was_known:
            raise LoadFailed(f"{self.describe(index)}: the node started anew while loading")
        if stage is not None and stage.state is StageState.FAILED:
            raise LoadFailed(f"{self.describe(index)}: {stage.cause}")


def _does_for(held: StagePlan, wanted: StagePlan) -> bool:
    """The same layers at the same place, with at least as much memory."""
    same = (held.node, held.backend, held.device, held.layers) == (
        wanted.node,
        wanted.backend,
        wanted.device,
        wanted.layers,
    )
    return same and held.memory_bytes >= wanted.memory_bytes


def _done(stage: StageStatus | None) -> float:
    """0 to 1: fetching counts half where there is anything to fetch."""
    if stage is None:
        return 0.0
    if not stage.fetch_bytes:
        return stage.progress
    return stage.fetched_bytes / stage.fetch_bytes / 2 + stage.progress / 2
