"""Loads a plan's stages onto nodes and joins them to a ring; with another plan, the stages that fit it stay loaded."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from together.cluster.membership import Membership, tell
from together.cluster_types import Blob, Endpoint, RingName, Source, StageOrder, StageState, StageStatus
from together.errors import RingBroken, StageLost, TogetherError
from together.ring import rpc
from together.ring.client import RingClient, join_ring
from together.ring.doors import find_door
from together.ring.links import Inlets
from together.sentences import NOTHING, Sentence, say
from together.types import Fault, Plan, StagePlan

log = logging.getLogger(__name__)

UNLOAD_WITHIN = 10.0  # seconds
ECHO_WITHIN = 1.5  # seconds; a stage's event loop answers also while it computes
ORDER_WITHIN = 30.0  # seconds

Find = Callable[[], Awaitable[tuple[Source, ...]]]  # which machines have which units now
Progress = Callable[[float, Sentence], None]  # gets 0 to 1, and what the load waits for: nothing while it moves


@dataclass(frozen=True, slots=True)
class Placed:
    """A plan and the slots that are its stages, in ring order."""

    plan: Plan
    slots: tuple[int, ...]


class RingLoader:
    """One ring through all its plans: loads it, joins it, finds out what is wrong with it, and unloads it.

    A stage is a slot of the ring: a number that no other stage of it ever has. `placed` is what serves.
    """

    def __init__(self, membership: Membership, inlets: Inlets, timeout: float) -> None:
        """A load may make no progress for `timeout` seconds."""
        self.ring = secrets.token_hex(8)
        self.epoch = -1
        self.placed: Placed | None = None
        self.membership = membership
        self.timeout = timeout
        self._inlets = inlets
        self._slots: dict[int, StagePlan] = {}  # all that were started and not ended
        self._next_slot = 0
        self._joined: tuple[Endpoint, ...] = ()  # of the stages and this head, when they were linked

    @property
    def plan(self) -> Plan:
        return self._serving().plan

    @property
    def slots(self) -> frozenset[int]:
        """Every stage that belongs to this ring."""
        return frozenset(self._slots)

    def _serving(self) -> Placed:
        assert self.placed is not None, "nothing was loaded"
        return self.placed

    # --- loading ------------------------------------------------------------------------------------------------------

    async def prepare(self, plan: Plan, find: Find, progress: Progress, patience: float = 0.0) -> Placed:
        """Keep the living stages that fit `plan`, start the others, and wait until all are ready.

        A node that goes silent may take `patience` seconds to come back. If this fails, what was started is ended.
        Raises what a node refused with, or LoadFailed.
        """
        kept = self._kept(plan)
        pairs = zip(kept, plan.stages, strict=True)
        placed = Placed(plan, tuple(self._new_slot(stage) if slot is None else slot for slot, stage in pairs))
        started = [index for index, slot in enumerate(kept) if slot is None]
        try:
            await _Load(self, placed, started, find, progress, patience).wait()
        except BaseException:
            await self._end([placed.slots[index] for index in started])
            raise
        return placed

    async def connect(self, hidden_size: int, timeout: float = 15.0) -> RingClient:
        """Join the stages of `placed` to a ring in a new epoch. Raises StageLost."""
        self.epoch += 1
        own, known = self.membership.here(), self.stages()
        if None in known:
            raise self.lost(known.index(None), say("stage_unknown"), Fault.NODE_LOST, joining=True)
        self._joined = (*(stage.endpoint for stage in known if stage and stage.endpoint), own)
        try:
            return await join_ring(
                [stage for stage in known if stage],
                self.plan.model,
                epoch=self.epoch,
                own=own,
                inlets=self._inlets,
                context=self.plan.context,
                hidden_size=hidden_size,
                dtype=self.plan.dtype,
                describe=self.describe,
                timeout=timeout,
                nodes=[stage.node for stage in self.plan.stages],
                credentials=self.membership.credentials,
            )
        except StageLost as lost:
            lost.stage = self.plan.stages[lost.index]
            raise

    async def prune(self, keep: Plan | None = None) -> None:
        """End the stages that the plan (or `keep`) does not use."""
        used = self._kept(keep) if keep else self.placed.slots if self.placed else ()
        await self._end([slot for slot in self._slots if slot not in used])

    async def give_up(self, indices: Iterable[int]) -> None:
        """End stages that do not answer, so that no plan keeps them."""
        await self._end([self._serving().slots[index] for index in indices])

    async def unload(self) -> None:
        """End every stage that can be reached; the others end with their lease, or see `end_strays`."""
        self._inlets.remove(self.ring)
        await self._end(list(self._slots))

    def missing(self, plan: Plan) -> tuple[StagePlan, ...]:
        """The stages of `plan` that would have to be started."""
        return tuple(stage for stage, slot in zip(plan.stages, self._kept(plan), strict=True) if slot is None)

    def living(self) -> tuple[StagePlan, ...]:
        """The stages of the plan that are ready on a living node."""
        pairs = zip(self._serving().slots, self.plan.stages, strict=True)
        return tuple(stage for slot, stage in pairs if slot in self._slots and self._is_ready(slot))

    def _kept(self, plan: Plan) -> tuple[int | None, ...]:
        """For each stage of `plan`, a living slot that can be it."""
        before = self.placed.plan if self.placed else plan
        same = (plan.model.key, plan.dtype) == (before.model.key, before.dtype)
        free = [slot for slot in self._slots if same and self._is_ready(slot)]
        found: list[int | None] = []
        for stage in plan.stages:
            slot = next((slot for slot in free if _fits(self._slots[slot], stage)), None)
            if slot is not None:
                free.remove(slot)
            found.append(slot)
        return tuple(found)

    def _is_ready(self, slot: int) -> bool:
        stage = self._slots[slot]
        status = self._status(slot, stage.node) if self.membership.alive(stage.node) else None
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
        head = self.membership.head
        calls = [
            self.membership.call(node, rpc.UNLOAD, RingName(self.ring, head, tuple(gone)), timeout=UNLOAD_WITHIN)
            for node, gone in by_node.items()
            if self.membership.alive(node)
        ]
        await tell(calls, "unloading")

    # --- what is seen of it -------------------------------------------------------------------------------------------

    def stages(self, placed: Placed | None = None) -> list[StageStatus | None]:
        """Each stage of the plan by its node's last status; None where the node does not know it (yet)."""
        shown = placed or self._serving()
        return [self._status(slot, stage.node) for slot, stage in zip(shown.slots, shown.plan.stages, strict=True)]

    def _status(self, slot: int, node: str) -> StageStatus | None:
        status = self.membership.status(node)
        stages = status.stages if status else ()
        return next((stage for stage in stages if (stage.ring, stage.slot) == (self.ring, slot)), None)

    def trouble(self) -> RingBroken | None:
        """Why a ring that was ready cannot go on, or None."""
        for index, (planned, stage) in enumerate(zip(self.plan.stages, self.stages(), strict=True)):
            node = self.membership.status(planned.node)
            if node is None or not self.membership.alive(planned.node):
                return self.broken(index, node.cause if node else say("node_stopped"), Fault.NODE_LOST)
            if stage is None:
                return self.broken(index, say("node_restarted"), Fault.NODE_LOST)
            if stage.state is StageState.FAILED:
                return self.broken(index, stage.cause, stage.fault)
        return self._moved()

    def _moved(self) -> RingBroken | None:
        """A machine of the ring left an address that links of this epoch may use: nothing is lost, but all links are
        opened again. A further address breaks no link."""
        for index, (joined, endpoint) in enumerate(zip(self._joined, self._places(), strict=False)):
            if endpoint is not None and set(joined.addresses) - set(endpoint.addresses):
                machine = say("this_machine") if index == len(self.plan.stages) else self.describe(index)
                return RingBroken(say("moved", machine=machine, addresses=endpoint.addresses))
        return None

    def _places(self) -> list[Endpoint | None]:
        """Where the stages of the plan and this head listen now, as far as the head knows."""
        return [*(stage.endpoint if stage else None for stage in self.stages()), self.membership.here()]

    def broken_link(self) -> RingBroken | None:
        """A stage that cannot reach the next one says so; the next one's own end, if that is why, may be seen later."""
        for index, stage in enumerate(self.stages()):
            if stage is not None and stage.broken_epoch == self.epoch:
                return self.broken(index, stage.cause)
        return None

    async def silent(self) -> tuple[int, ...]:
        """Which stages of the plan do not answer at all; a frozen process is among them, a busy one is not."""
        answers = await asyncio.gather(*(self._answers(stage) for stage in self.stages()))
        return tuple(index for index, answered in enumerate(answers) if not answered)

    async def frozen(self) -> tuple[int, ...]:
        """Which stages do not answer although their node does, or is lost. A node that does not answer either will be
        lost in a moment, or its machine moved: then its stages are asked again at their new address."""
        changed, clock = self.membership.changed, asyncio.get_running_loop().time
        until = clock() + self.membership.settings.node_timeout + ECHO_WITHIN
        while True:
            seen, places = changed.version, self._places()
            silent = await self.silent()
            nodes = {self.plan.stages[index].node for index in silent}
            known = await asyncio.gather(*(self.is_certain(node) for node in nodes))
            await self.membership.look()
            if places == self._places() and (all(known) or clock() > until):
                return silent
            await changed.wait(seen, timeout=0.5)

    async def is_certain(self, node: str) -> bool:
        """Whether a node answers, or is lost."""
        if not self.membership.alive(node):
            return True
        try:
            await self.membership.call(node, rpc.ECHO, Blob(), timeout=ECHO_WITHIN)
        except TogetherError:
            return not self.membership.alive(node)
        return True

    async def _answers(self, stage: StageStatus | None) -> bool:
        if stage is None or stage.endpoint is None:
            return False
        try:
            door = await find_door(stage.endpoint, self.membership.credentials, ECHO_WITHIN)
            async with asyncio.timeout(ECHO_WITHIN), door.open() as channel:
                await rpc.call(channel, rpc.ECHO, Blob(), "stage", timeout=ECHO_WITHIN)
            return True
        except (TogetherError, TimeoutError):
            return False

    # --- sentences ----------------------------------------------------------------------------------------------------

    def describe(self, index: int, placed: Placed | None = None) -> Sentence:
        """A stage in words: node, place, layers."""
        stage = (placed or self._serving()).plan.stages[index]
        return say("stage", node=self.membership.name_of(stage.node), index=index, layers=str(stage.layers))

    def broken(self, index: int, cause: str | Sentence, fault: Fault = Fault.OTHER) -> RingBroken:
        """The error for a stage of a ring that was ready."""
        node = self.membership.name_of(self.plan.stages[index].node)
        message = say("stage_failed", stage=self.describe(index), cause=cause)
        return RingBroken(message, node=node, cause=cause, stage=index, fault=fault)

    def lost(
        self, index: int, cause: str | Sentence, fault: Fault, placed: Placed | None = None, *, joining: bool = False
    ) -> StageLost:
        """The error for a stage that is loaded or joined."""
        planned = placed.plan.stages[index] if placed else None
        message = say("stage_failed", stage=self.describe(index, placed), cause=cause)
        return StageLost(message, cause, index, planned, joining=joining, fault=fault)


@dataclass(slots=True)
class _Load:
    """The stages of a plan on their way to be ready; `started` counts those that need an order. `wait` once.

    A slow download is no failure, nor is a machine that is out of reach for `patience` seconds.
    """

    loader: RingLoader
    placed: Placed
    started: Sequence[int]
    find: Find
    progress: Progress
    patience: float
    _known: set[int] = field(default_factory=set)  # stages that their nodes have shown
    _away: dict[str, float] = field(default_factory=dict)  # nodes out of reach → since when, in event loop time
    _returned: set[str] = field(default_factory=set)
    _sources: frozenset[Endpoint] = frozenset()  # where they could be when the last orders were given

    async def wait(self) -> None:
        """Give the orders, then wait. Raises what a node refused with, or StageLost."""
        await self._give_orders()
        changed, clock = self.loader.membership.changed, asyncio.get_running_loop().time
        moved, seen = clock(), -1.0
        while True:
            stages = self.loader.stages(self.placed)
            waits = [wait for index, stage in enumerate(stages) if (wait := self._look_at(index, stage))]
            done, shown = sum(map(_done, stages)) / len(stages), dict.fromkeys([*waits, *self._conversions(stages)])
            self.progress(done, say("waits", waits=tuple(shown)) if shown else NOTHING)
            unready = [index for index, stage in enumerate(stages) if not stage or stage.state is not StageState.READY]
            if not unready and not waits:
                return
            if done > seen or waits:
                moved, seen = clock(), max(done, seen)
            if unready and clock() - moved > self.loader.timeout:
                raise self._lost(unready[0], say("no_progress", seconds=self.loader.timeout), Fault.SLOW)
            await self._give_again(stages)
            await changed.wait(changed.version, min(1.0, self.loader.timeout))  # `progress` may itself have notified

    # --- orders -------------------------------------------------------------------------------------------------------

    async def _give_orders(self) -> None:
        self._sources = self.loader.membership.endpoints()
        for answer in await self._give(self.started):
            if isinstance(answer, BaseException):
                raise answer

    async def _give_again(self, stages: list[StageStatus | None]) -> None:
        """To nodes that ended their stage while they were out of reach, and to all that still fetch when machines have
        other addresses: the same order again starts nothing twice."""
        now = self.loader.membership.endpoints()
        moved, self._sources = bool(now - self._sources), now
        for answer in await self._give([index for index in self.started if self._needs(index, stages[index], moved)]):
            if isinstance(answer, TogetherError):
                log.info("an order was not given again: %s", answer)
            elif isinstance(answer, BaseException):
                raise answer

    async def _give(self, indices: Sequence[int]) -> list[object]:
        sources = await self.find() if indices else ()
        return await asyncio.gather(*(self._order(index, sources) for index in indices), return_exceptions=True)

    async def _order(self, index: int, sources: tuple[Source, ...]) -> None:
        plan, loader, members = self.placed.plan, self.loader, self.loader.membership
        stage, slot, last = plan.stages[index], self.placed.slots[index], max(loader.epoch, 0)
        order = StageOrder(loader.ring, members.head, slot, plan.model, stage, plan.dtype, sources, plan.exact, last)
        await members.call(stage.node, rpc.LOAD, order, timeout=ORDER_WITHIN)

    def _needs(self, index: int, stage: StageStatus | None, moved: bool) -> bool:
        node = self.placed.plan.stages[index].node
        due = node in self._returned if stage is None else moved and stage.state is StageState.LOADING
        return due and self.loader.membership.alive(node)

    def _look_at(self, index: int, stage: StageStatus | None) -> Sentence:
        """What this stage waits for. Raises StageLost."""
        node = self.placed.plan.stages[index].node
        if not self.loader.membership.alive(node):
            return self._away_for(index, node)
        if self._away.pop(node, None) is not None:
            self._returned.add(node)
        if stage is None:
            if index in self._known and node not in self._returned:
                raise self._lost(index, say("ended_loading"), Fault.NODE_LOST)
            return NOTHING
        if stage.state is StageState.FAILED:
            raise self._lost(index, stage.cause, stage.fault)
        self._returned.discard(node)
        self._known.add(index)
        where = self.loader.describe(index, self.placed)
        return say("stage_waits", stage=where, source=stage.waiting) if stage.waiting else NOTHING

    def _conversions(self, stages: list[StageStatus | None]) -> Iterator[Sentence]:
        """The stages whose nodes convert weights."""
        for index, stage in enumerate(stages):
            if stage is not None and stage.converting and stage.state is StageState.LOADING:
                where, done = self.loader.describe(index, self.placed), stage.fetched_bytes / max(stage.fetch_bytes, 1)
                yield say("stage_converts", stage=where, progress=done)

    def _away_for(self, index: int, node: str) -> Sentence:
        now = asyncio.get_running_loop().time()
        silent = node in self._away or self.loader.membership.is_silent(node)
        away = now - self._away.setdefault(node, now)
        if not silent or away >= self.patience:
            raise self._lost(index, say("lost_loading"), Fault.NODE_LOST)
        return say("stage_away", stage=self.loader.describe(index, self.placed), seconds=away)

    def _lost(self, index: int, cause: str | Sentence, fault: Fault) -> StageLost:
        return self.loader.lost(index, cause, fault, self.placed)


def _done(stage: StageStatus | None) -> float:
    """0 to 1: fetching counts half where there is anything to fetch."""
    if stage is None:
        return 0.0
    fetched = stage.fetched_bytes / stage.fetch_bytes if stage.fetch_bytes else stage.progress
    return fetched / 2 + stage.progress / 2


def _fits(held: StagePlan, wanted: StagePlan) -> bool:
    """The same layers and rope at the same place, with at least as much memory."""
    return held.memory_bytes >= wanted.memory_bytes and replace(held, memory_bytes=wanted.memory_bytes) == wanted
