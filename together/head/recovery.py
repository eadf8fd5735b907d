"""Keeps a served model's ring alive: notices that it broke, mends it, and remembers which stage or link failed."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

from together.cluster.membership import Membership
from together.cluster.survey import THIS_MACHINE, Speeds, Surveyor
from together.cluster_types import StageState
from together.errors import NotServing, RingBroken, StageLost, TogetherError
from together.head.machines import cut_pairs
from together.head.plan import plan_of, repair
from together.head.room import plan_again
from together.head.service import Service
from together.planning.explain import Infeasible
from together.ring.client import RingClient
from together.sentences import NOTHING, say
from together.types import Fault, Plan, StagePlan
from together.view import ServingState

log = logging.getLogger(__name__)

CAUSE_WITHIN = 1.0  # seconds from a broken link to the news of the stage that broke it
SUSPECT_AFTER = 2.0  # seconds without an answer, and four times the usual step, until every stage is asked
LOOK_EVERY = 0.5  # seconds
IDLE_EVERY = 2.0  # seconds between looks while no frame is in flight: within SUSPECT_AFTER of the next one
MEND_TRIES = 4  # failures in a row without a new token: then the request or the model is the cause
MEND_WITHIN = 8.0  # seconds of failed attempts after which open requests end
FREED_WITHIN = 3.0  # seconds until nodes that answer offer again what a stage had that is gone
BACK_WITHIN = 6.0  # seconds that an answer waits for a machine that went without a word, where no other has room
REJOIN_WITHIN = 5.0  # seconds for a stage to take its place again


@dataclass(slots=True)
class Recovery:
    """`run` once per started service."""

    service: Service
    _unjoined: StagePlan | None = None  # answered and could not be joined
    _failures: int = 0  # in a row, without a new token
    _tokens: int = 0  # generated or scored before the last failure

    @property
    def _membership(self) -> Membership:
        return self.service.machines.membership

    @property
    def _surveyor(self) -> Surveyor:
        return self.service.machines.surveyor

    async def run(self) -> None:
        """Serve until the service is closed; mend the ring whenever it breaks."""
        service = self.service
        while not service.closed:
            try:
                if service.change is None:  # else it came while the ring was mended
                    await self._serve(service.ring)
                if service.change is not None and not service.closed:
                    await service.switch(service.change)
            except RingBroken as error:
                if not service.closed:
                    log.info("%s", error)  # the view says it
                    await self._mend(error)

    async def _serve(self, ring: RingClient) -> None:
        watcher = asyncio.create_task(self._watch(ring))
        try:
            await self.service.engine.serve(ring)
        finally:
            watcher.cancel()

    # --- suspecting ---------------------------------------------------------------------------------------------------

    async def _watch(self, ring: RingClient) -> None:
        """Tell the engine when the ring breaks: a node reports it, or stages no longer answer."""
        changed, loader = self._membership.changed, self.service.loader
        while True:
            seen = changed.version
            trouble = loader.trouble() or await self._broken_link() or await self._suspicion()
            if trouble is not None:
                ring.fail(trouble)
                return
            await changed.wait(seen, timeout=LOOK_EVERY if self.service.engine.silence else IDLE_EVERY)

    async def _broken_link(self) -> RingBroken | None:
        link = self.service.loader.broken_link()
        if link is not None:
            await self._news(CAUSE_WITHIN)  # the next stage's end may be the cause, which its node reports soon
            return self.service.loader.trouble() or link
        return None

    async def _suspicion(self) -> RingBroken | None:
        """No answer for much longer than usual: a stage is frozen, or a link is cut."""
        engine, loader = self.service.engine, self.service.loader
        silence = engine.silence
        if silence < max(SUSPECT_AFTER, 4 * engine.usual_step):
            return None
        for index in await loader.silent():
            return loader.broken(index, say("silent_stage", seconds=silence))
        return await self._cut_link()

    async def _cut_link(self) -> RingBroken | None:
        """Neighbours in the ring that the head reaches, but that do not reach each other."""
        loader = self.service.loader
        nodes = [stage.node for stage in loader.plan.stages]
        found = await cut_pairs(nodes, self._membership, self.service.machines.where)
        for pair in found.values():
            self._surveyor.cut(*pair)
            self.service.speeds = Speeds.KNOWN  # only a plan that looks at links avoids this one
        return loader.broken(min(found), say("cut_link")) if found else None

    # --- mending ------------------------------------------------------------------------------------------------------

    async def _mend(self, error: RingBroken) -> None:
        """Try until a ring serves or the service is closed. Open requests wait; they end only when nothing helps."""
        service, clock = self.service, asyncio.get_running_loop().time
        service.show(ServingState.RECOVERING, cause=error.sentence, step=say("step_looking"), progress=0.0)
        broke = clock()
        await self._settle(error)
        if self._is_hopeless():
            service.engine.drop(error)
        problem: TogetherError = error
        tries, began = 0, clock()
        steady = began  # since when all machines of the ring answer
        while not service.closed:
            tries += 1
            try:
                if await self._rebuild():
                    plan = service.loader.plan
                    service.show(ServingState.READY, plan=plan, cause=NOTHING, step=NOTHING, progress=1.0)
                    return
                steady = steady if await self._all_answer() else clock()
                back = self._is_silent() and clock() - broke < BACK_WITHIN
                if back or (self._lost_memory() and clock() - steady < FREED_WITHIN):
                    await asyncio.sleep(LOOK_EVERY)
                    await service.loader.give_up(self._out_of_memory(error))  # which its node may say only now
                else:
                    await self._wait_for_machines(problem)
            except StageLost as lost:
                problem = lost
                await self._blame(lost)
            except TogetherError as other:
                problem = other
                await asyncio.sleep(LOOK_EVERY)
            if tries >= MEND_TRIES and clock() - began > MEND_WITHIN:
                await self._wait_for_machines(problem)

    def _is_hopeless(self) -> bool:
        """The ring has broken MEND_TRIES times in a row without a new token in between."""
        stats = self.service.engine.stats()
        tokens = stats.generated_tokens + stats.scored_tokens
        self._failures = self._failures + 1 if tokens == self._tokens else 1
        self._tokens = tokens
        return self._failures >= MEND_TRIES

    async def _settle(self, error: RingBroken) -> None:
        """Give nodes a moment to report what they lost, then end stages that do not answer."""
        loader = self.service.loader
        await self.service.ring.close()
        await self.service.machines.where.look()  # what looks like a cut may be this machine's own move
        _, frozen = await asyncio.gather(self._news(CAUSE_WITHIN / 2), loader.frozen())
        if frozen:  # its node may itself have stood still, and say only now how the stage ended
            await self._news(CAUSE_WITHIN / 2)
        await loader.give_up({*self._out_of_memory(error), *frozen})

    async def _all_answer(self) -> bool:
        """Whether each node of the ring answers, or is lost: what is known of them is no news of long ago."""
        loader = self.service.loader
        return all(await asyncio.gather(*map(loader.is_certain, {stage.node for stage in loader.plan.stages})))

    def _is_silent(self) -> bool:
        """Whether a machine of the ring went without a word: it may stand still for lack of memory, and come back."""
        return any(self._membership.is_silent(stage.node) for stage in self.service.loader.plan.stages)

    def _lost_memory(self) -> bool:
        """Whether a machine that is there lost a stage: it offers what that stage had only a moment later."""
        loader = self.service.loader
        living = loader.living()
        return any(stage not in living and self._membership.alive(stage.node) for stage in loader.plan.stages)

    async def _news(self, within: float) -> None:
        """Return once a node reports what it lost, or after so many seconds."""
        changed = self._membership.changed
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self.service.loader.trouble() is None:
                    await changed.wait(changed.version, timeout=LOOK_EVERY)

    def _out_of_memory(self, error: RingBroken) -> list[int]:
        """The stages that ran out of memory. For a while, plans ask less of their devices."""
        found, loader = [], self.service.loader
        for index, (stage, status) in enumerate(zip(loader.plan.stages, loader.stages(), strict=True)):
            failed = status is not None and status.state is StageState.FAILED
            report = status if status and failed else error if error.stage == index else None
            if report is not None and report.fault is Fault.OUT_OF_MEMORY:
                if self._surveyor.shortages.learn(stage, report.cause):
                    self._failures = 0  # the next plan is another one
                found.append(index)
        return found

    async def _rebuild(self) -> bool:
        """Load what is missing and join the stages again. False: no plan fits."""
        service, promises, ring = self.service, self._surveyor.promises, self.service.loader.ring
        async with promises.order:  # another ring that breaks at the same time plans with what this one leaves
            plan = await self._plan_with_what_is_left()
            if plan is None and service.keep:
                plan = await service.make_room(service)
            if plan is None:
                return False
            promises.make(ring, service.loader.missing(plan))
        try:
            service.show(ServingState.RECOVERING, plan=plan, step=say("step_missing"))
            await service.join(await service.place(plan), REJOIN_WITHIN)
        finally:
            promises.end(ring)
        return True

    async def _plan_with_what_is_left(self) -> Plan | None:
        """Keep the living stages and add others for the rest; if that does not fit, make another plan."""
        service = self.service
        plan, kept = service.loader.plan, service.loader.living()
        if len(kept) == len(plan.stages):
            return plan if await self._links_hold(plan) else await self._new_plan()
        mended = await repair(service.opened, plan, kept, self._surveyor, service.speeds.at_once) if kept else None
        return mended or await self._new_plan()

    async def _links_hold(self, plan: Plan) -> bool:
        places = [*(stage.node for stage in plan.stages), THIS_MACHINE]
        known = any(self._surveyor.is_cut(*pair) for pair in pairwise(places))
        return not known and await self._cut_link() is None

    async def _new_plan(self) -> Plan | None:
        """For the same users and context; None where none fits, or no node is there."""
        service = self.service
        with suppress(NotServing):
            planned = await plan_again(service, service.beside(service))
            return None if isinstance(planned, Infeasible) else plan_of(planned)
        return None

    async def _blame(self, lost: StageLost) -> None:
        """A stage could not take its place: blame the stage or, if it answers, its link."""
        if lost.stage is None:
            return
        if lost.fault is Fault.OUT_OF_MEMORY:
            self._surveyor.shortages.learn(lost.stage, lost.cause)
        if lost.joining and lost.fault is Fault.OUT_OF_STEP:  # as one that missed too much: only a new one helps
            await self.service.loader.give_up({lost.index})
        elif lost.joining and lost.reachable:
            self._surveyor.forget_links(lost.stage.node)
            self.service.speeds = Speeds.KNOWN  # only a plan that looks at links avoids this one
        elif lost.joining:
            frozen = await self.service.loader.frozen()
            once = lost.index not in frozen and lost.stage != self._unjoined  # its machine may just be moving
            self._unjoined = lost.stage if once else None
            await self.service.loader.give_up(frozen if once else {*frozen, lost.index})

    async def _wait_for_machines(self, error: TogetherError) -> None:
        """No plan fits: end open requests, and return on any change of the machines."""
        cause = say("no_room", error=error.sentence)
        self.service.engine.drop(RingBroken(cause))
        self.service.give_up_change(NotServing(cause))
        self.service.show(ServingState.WAITING, cause=cause, step=say("step_machines"))
        changed = self._membership.changed
        await changed.wait(changed.version, timeout=LOOK_EVERY)
