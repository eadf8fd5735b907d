"""Loads a plan's stages onto their nodes and joins them to a ring; changes a ring's plan and keeps what fits.

Knows no engine, no tokenizer and no strategy.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from together.cluster.membership import Membership
from together.cluster.readiness import Find, Progress, Readiness
from together.cluster_types import Blob, Endpoint, RingName, Source, StageOrder, StageState, StageStatus
from together.errors import RingBroken, StageLost, TogetherError
from together.ring import rpc
from together.ring.client import RingClient, join_ring
from together.ring.links import Inlets
from together.sentences import Sentence
from together.types import Fault, Plan, StagePlan

log = logging.getLogger(__name__)

UNLOAD_WITHIN = 10.0  # seconds
ECHO_WITHIN = 1.5  # seconds; a stage's event loop answers also while it computes


@dataclass(frozen=True, slots=True)
class Placed:
    """A plan and the slots that are its stages, in ring order."""

    plan: Plan
    slots: tuple[int, ...]


class RingLoader:
    """One ring from orders to a client, through all its plans; also unloads it and says what is wrong with it.

    A stage is a slot of the ring: a number that no other stage of it ever has. `placed` is what serves.
    """

    def __init__(self, membership: Membership, inlets: Inlets, own: Callable[[], Endpoint], timeout: float) -> None:
        self.ring = secrets.token_hex(8)
        self.epoch = -1
        self.placed: Placed | None = None
        self._membership = membership
        self._inlets = inlets
        self._own = own
        self._timeout = timeout
        self._slots: dict[int, StagePlan] = {}  # all that were started and not ended
        self._next_slot = 0
        self._joined: tuple[Endpoint, ...] = ()  # where the stages, and at last this head, were when they were linked

    @property
    def plan(self) -> Plan:
        assert self.placed is not None, "nothing was loaded"
        return self.placed.plan

    @property
    def slots(self) -> frozenset[int]:
        """Every stage that belongs to this ring."""
        return frozenset(self._slots)

    # --- loading ------------------------------------------------------------------------------------------------------

    async def prepare(self, plan: Plan, find: Find, progress: Progress, patience: float = 0.0) -> Placed:
        """Start what `plan` needs beside the living stages that do for it, and wait until all are ready.

        `find` says where the model can be had now. A node that goes silent may take `patience` seconds to come back.
        Where it fails, what was started is ended again. Raises what a node refused with, or LoadFailed.
        """
        kept = self._kept(plan)
        pairs = zip(kept, plan.stages, strict=True)
        placed = Placed(plan, tuple(self._new_slot(stage) if slot is None else slot for slot, stage in pairs))
        started = [slot for slot in placed.slots if slot not in kept]
        try:
            indices = [placed.slots.index(slot) for slot in started]
            placing = _Placing(self, placed)
            await Readiness(placing, indices, self._membership, find, progress, self._timeout, patience).wait()
        except BaseException:
            await self._end(started)
            raise
        return placed

    def use(self, placed: Placed) -> None:
        """From the next `connect` on."""
        self.placed = placed

    async def connect(self, hidden_size: int, timeout: float = 15.0) -> RingClient:
        """Join the plan's stages to a ring in a new epoch. Raises StageLost."""
        self.epoch += 1
        own = self._own()
        stages = [stage for stage in self.stages() if stage is not None]
        if len(stages) < len(self.plan.stages):
            index = next(i for i, stage in enumerate(self.stages()) if stage is None)
            cause = "its node does not know it any more"
            message = f"{self.describe(index)} is gone: {cause}"
            raise StageLost(message, cause, index, joining=True, fault=Fault.NODE_LOST)
        self._joined = (*(stage.endpoint for stage in stages if stage.endpoint is not None), own)
        try:
            return await join_ring(
                stages,
                epoch=self.epoch,
                own=own,
                inlets=self._inlets,
                context=self.plan.context,
                hidden_size=hidden_size,
                dtype=self.plan.dtype,
                describe=self.describe,
                timeout=timeout,
            )
        except StageLost as lost:
            lost.stage = self.plan.stages[lost.index]
            raise

    async def prune(self, keep: Plan | None = None) -> None:
        """End the stages that the plan (or `keep`) does not use."""
        used = self._kept(keep) if keep else self.placed.slots if self.placed else ()
        await self._end([slot for slot in self._slots if slot not in used])

    async def give_up(self, indices: Iterable[int]) -> None:
        """End stages that do not answer, so that nobody counts on them."""
        assert self.placed is not None
        await self._end([self.placed.slots[index] for index in indices])

    async def unload(self) -> None:
        """End every stage that still can be reached; the others end with their lease, or see `end_strays`."""
        self._inlets.remove(self.ring)
        await self._end(list(self._slots))

    def missing(self, plan: Plan) -> tuple[StagePlan, ...]:
        """The stages of `plan` that would have to be started."""
        return tuple(stage for stage, slot in zip(plan.stages, self._kept(plan), strict=True) if slot is None)

    def living(self) -> tuple[StagePlan, ...]:
        """The stages of the plan that are ready on a living node."""
        assert self.placed is not None
        pairs = zip(self.placed.slots, self.plan.stages, strict=True)
        return tuple(stage for slot, stage in pairs if slot in self._slots and self._is_ready(slot))

    def _kept(self, plan: Plan) -> tuple[int | None, ...]:
        """For each stage of `plan` a living slot that does for it."""
        before = self.placed.plan if self.placed else plan
        same = (plan.model.fingerprint, plan.dtype) == (before.model.fingerprint, before.dtype)
        free = [slot for slot in self._slots if same and self._is_ready(slot)]
        found: list[int | None] = []
        for stage in plan.stages:
            slot = next((slot for slot in free if _does_for(self._slots[slot], stage)), None)
            if slot is not None:
                free.remove(slot)
            found.append(slot)
        return tuple(found)

    def _is_ready(self, slot: int) -> bool:
        stage = self._slots[slot]
        status = self._status(slot, stage.node) if self._membership.alive(stage.node) else None
        return status is not None and status.state is StageState.READY

    def _new_slot(self, stage: StagePlan) -> int:
        slot, self._next_slot = self._next_slot, self._next_slot + 1
        self._slots[slot] = stage
        return slot

    async def _end(self, slots: Iterable[int]) -> None:
        by_node: dict[str, list[int]] = {}
        for slot in slots:
            if stage := self._slots.pop(slot, None):
                by_node.setdefault(stage.node, []).append(slot)
        head = self._membership.head
        calls = [
            self._membership.call(node, rpc.UNLOAD_CALL, RingName(self.ring, head, tuple(gone)), timeout=UNLOAD_WITHIN)
            for node, gone in by_node.items()
            if self._membership.alive(node)
        ]
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, BaseException):
                log.warning("unloading: %s", answer)

    # --- what is seen of it -------------------------------------------------------------------------------------------

    def stages(self, placed: Placed | None = None) -> list[StageStatus | None]:
        """Each stage of the plan as its node last told it; None where the node does not know it (yet)."""
        shown = placed or self.placed
        assert shown is not None
        return [self._status(slot, stage.node) for slot, stage in zip(shown.slots, shown.plan.stages, strict=True)]

    def where(self) -> frozenset[Endpoint]:
        """Where the living machines are, this one among them."""
        return frozenset((*(node.endpoint for node in self._membership.living()), self._own()))

    def trouble(self) -> RingBroken | None:
        """A stage of a ring that was ready is gone, or None."""
        for index, (planned, stage) in enumerate(zip(self.plan.stages, self.stages(), strict=True)):
            node = self._membership.status(planned.node)
            if node is None or not self._membership.alive(planned.node):
                return self.broken(index, node.cause if node else "the node was stopped", Fault.NODE_LOST)
            if stage is None:
                return self.broken(index, "the node started anew and does not hold it any more", Fault.NODE_LOST)
            if stage.state is StageState.FAILED:
                return self.broken(index, stage.cause, stage.fault)
        return self._moved()

    def _moved(self) -> RingBroken | None:
        """A machine of the ring has left an address that links of this epoch may use: nothing is lost, all is linked
        anew. One that got a further address has not."""
        now = [*(stage.endpoint if stage else None for stage in self.stages()), self._own()]
        for index, (joined, endpoint) in enumerate(zip(self._joined, now, strict=False)):
            if endpoint is not None and set(joined.addresses) - set(endpoint.addresses):
                who = "this machine" if index == len(self.plan.stages) else self.describe(index)
                addresses = " and ".join(endpoint.addresses)
                return RingBroken(f"{who} is at {addresses} now; its links are opened anew")
        return None

    def broken_link(self) -> RingBroken | None:
        """A stage that cannot reach the next one says so; the next one's own end, if that is why, may come later."""
        for index, stage in enumerate(self.stages()):
            if stage is not None and stage.broken_epoch == self.epoch:
                return self.broken(index, stage.cause)
        return None

    async def silent(self) -> tuple[int, ...]:
        """Which stages of the plan do not answer at all; a frozen process is among them, a busy one is not."""
        answers = await asyncio.gather(*(self._answers(stage) for stage in self.stages()))
        return tuple(index for index, answered in enumerate(answers) if not answered)

    async def frozen(self) -> tuple[int, ...]:
        """Which stages do not answer although their node does, or is lost.

        Where the node does not answer either it is waited for: it is lost in a moment, or its machine moved and the
        stage is well.
        """
        changed, clock = self._membership.changed, asyncio.get_running_loop().time
        until = clock() + self._membership.settings.node_timeout + ECHO_WITHIN
        while True:
            seen = changed.version
            silent = await self.silent()
            nodes = {self.plan.stages[index].node for index in silent}
            known = await asyncio.gather(*(self._is_certain(node) for node in nodes))
            if all(known) or clock() > until:
                return silent
            await changed.wait(seen, timeout=0.5)

    async def _is_certain(self, node: str) -> bool:
        """Whether a node answers, or is lost."""
        if not self._membership.alive(node):
            return True
        try:
            await self._membership.call(node, rpc.ECHO_CALL, Blob(), timeout=ECHO_WITHIN)
        except TogetherError:
            return not self._membership.alive(node)
        return True

    async def _answers(self, stage: StageStatus | None) -> bool:
        if stage is None or stage.endpoint is None:
            return False
        try:
            async with asyncio.timeout(ECHO_WITHIN):
                address = await rpc.fastest(stage.endpoint)
                async with rpc.open_channel(address, stage.endpoint.port) as channel:
                    await rpc.call(channel, rpc.ECHO_CALL, Blob(), "stage", timeout=ECHO_WITHIN)
        except (TogetherError, TimeoutError):
            return False
        return True

    def describe(self, index: int, placed: Placed | None = None) -> str:
        """A stage for a person: node, place, layers."""
        stage = (placed.plan if placed else self.plan).stages[index]
        node = self._membership.status(stage.node)
        layers = f"layers {stage.layers.start}–{stage.layers.stop - 1}"
        return f"node {node.name if node else stage.node}: stage {index} ({layers})"

    def broken(self, index: int, cause: str | Sentence, fault: Fault = Fault.OTHER) -> RingBroken:
        """The error for a stage that is lost."""
        node = self._membership.status(self.plan.stages[index].node)
        message = f"{self.describe(index)} is lost: {cause}"
        return RingBroken(message, node=node.name if node else "", cause=cause, stage=index, fault=fault)

    def _status(self, slot: int, node: str) -> StageStatus | None:
        status = self._membership.status(node)
        stages = status.stages if status else ()
        return next((stage for stage in stages if (stage.ring, stage.slot) == (self.ring, slot)), None)

    def order(self, plan: Plan, slot: int, sources: tuple[Source, ...]) -> StageOrder:
        """What the node of a slot is to load."""
        head = self._membership.head
        return StageOrder(self.ring, head, slot, plan.model, self._slots[slot], plan.dtype, sources)


@dataclass(frozen=True, slots=True)
class _Placing:
    """A plan of a ring that is to be ready."""

    loader: RingLoader
    placed: Placed

    @property
    def planned(self) -> tuple[StagePlan, ...]:
        return self.placed.plan.stages

    def stages(self) -> list[StageStatus | None]:
        return self.loader.stages(self.placed)

    def order(self, index: int, sources: tuple[Source, ...]) -> StageOrder:
        return self.loader.order(self.placed.plan, self.placed.slots[index], sources)

    def describe(self, index: int) -> str:
        return self.loader.describe(index, self.placed)

    def where(self) -> frozenset[Endpoint]:
        return self.loader.where()


def _does_for(held: StagePlan, wanted: StagePlan) -> bool:
    """The same layers at the same place, with at least as much memory."""
    places = [(stage.node, stage.backend, stage.device, stage.layers) for stage in (held, wanted)]
    return places[0] == places[1] and held.memory_bytes >= wanted.memory_bytes
