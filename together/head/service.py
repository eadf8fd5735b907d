"""A model that serves: one engine over one ring through all its epochs. Mends the ring and changes its plan under way.

Knows no page, no HTTP and no other model.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

from together.cluster.identity import Whereabouts
from together.cluster.loading import Placed, RingLoader
from together.cluster.membership import Membership
from together.cluster.survey import THIS_MACHINE, Speeds, Surveyor
from together.cluster_types import Source, StageState
from together.engine.engine import Engine
from together.errors import NotServing, RingBroken, StageLost, TogetherError
from together.head.machines import cut_pairs
from together.head.model import ModelHandle
from together.head.plan import plan_model, plan_of, repair
from together.planning.explain import Infeasible
from together.planning.request import PlanRequest
from together.ring.client import RingClient
from together.ring.links import Inlets
from together.sentences import NOTHING, Sentence, say
from together.settings import Settings
from together.types import DTYPE_BYTES, Fault, ModelRef, Plan, StagePlan
from together.view import Serving, ServingState

log = logging.getLogger(__name__)

CAUSE_WITHIN = 1.0  # seconds from a broken link to the news of the stage that broke it
SUSPECT_AFTER = 2.0  # seconds without an answer, and four times what is usual: then every stage is asked
LOOK_EVERY = 0.5
NODE_PATIENCE = 120.0  # seconds that a first load waits for a node which went silent
MEND_TRIES = 4  # failures in a row without a new token: then it is the request, or the model
MEND_WITHIN = 8.0  # seconds after which attempts that fail make open requests end
REJOIN_WITHIN = 5.0  # seconds for a stage to take its place again


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a service uses of its head."""

    settings: Settings
    membership: Membership
    surveyor: Surveyor
    inlets: Inlets
    where: Whereabouts
    sources: Callable[[ModelRef], Awaitable[tuple[Source, ...]]]


@dataclass(frozen=True, slots=True)
class Change:
    """Another plan that is to take its place as soon as nothing is on its way; `done` is for whoever waits for it."""

    plan: Plan
    done: asyncio.Future[None]


@dataclass(slots=True)
class Service:
    """`start`, then `run` until `close`. `serving` is how it is; `changed` is called whenever that is another."""

    cluster: Cluster
    opened: ModelHandle
    speeds: Speeds  # what its next plan looks at
    changed: Callable[[], None]
    serving: Serving = field(default_factory=Serving)
    loader: RingLoader = field(init=False)
    engine: Engine = field(init=False)
    _client: RingClient | None = None
    _change: Change | None = None
    _unjoined: StagePlan | None = None  # what answered, and could not be joined
    _closed: bool = False
    _failures: int = 0
    _tokens: int = 0  # generated when the last failure came

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self, plan: Plan) -> None:
        """Load and join the ring. Raises TogetherError; then nothing of it is left."""
        cluster, spec = self.cluster, self.opened.spec
        timeout = cluster.settings.load_timeout
        self.loader = RingLoader(cluster.membership, cluster.inlets, timeout)
        self._show(
            ServingState.LOADING, model=self.opened.ref.name, plan=plan, ring=self.loader.ring, step=say("step_loading")
        )
        try:
            self.loader.placed = await self._prepare(plan, patience=NODE_PATIENCE)
            self._client = await self.loader.connect(spec.hidden_size)
        except BaseException:
            await self.loader.unload()
            raise
        token_bytes = spec.hidden_size * DTYPE_BYTES[plan.dtype]
        settings, eos = cluster.settings, self.opened.text.eos
        self.engine = Engine(
            self._client, eos, settings.max_waiting, settings.step_timeout, spec.vocab_size, token_bytes
        )
        self.opened.text.template.warm()
        self._show(ServingState.READY, step=NOTHING, progress=1.0)

    async def run(self) -> None:
        """Serve until `close`; mend the ring whenever it breaks."""
        while not self._closed:
            try:
                if self._change is None:  # else it came while the ring was mended
                    await self._serve()
                if self._change is not None and not self._closed:
                    await self._switch(self._change)
            except RingBroken as error:
                if not self._closed:
                    log.warning("%s", error)
                    await self._mend(error)

    async def close(self) -> None:
        """End all requests and all stages."""
        self._closed = True
        self._give_up_change(NotServing(say("unloaded")))
        self.engine.close()
        self.opened.text.template.close()
        if self._client is not None:
            await self._client.close()
        await self.loader.unload()

    async def _serve(self) -> None:
        assert self._client is not None
        watcher = asyncio.create_task(self._watch(self._client))
        try:
            await self.engine.serve(self._client)
        finally:
            watcher.cancel()

    def _show(self, state: ServingState, **values: object) -> None:
        self.serving = replace(self.serving, state=state, **values)  # type: ignore[arg-type]
        self.changed()

    async def _prepare(self, plan: Plan, patience: float = 0.0) -> Placed:
        """The plan's stages, ready; what it waits for is shown beside what goes on."""
        doing = self.serving.step

        def show(done: float, waiting: Sentence) -> None:
            self._show(
                self.serving.state,
                progress=done,
                step=say("step_waiting", step=doing, waiting=waiting) if waiting else doing,
            )

        return await self.loader.prepare(plan, partial(self.cluster.sources, self.opened.ref), show, patience)

    # --- trouble ------------------------------------------------------------------------------------------------------

    async def _watch(self, client: RingClient) -> None:
        """Tell the engine when the ring is broken: by what nodes say, or because nobody answers any more."""
        changed = self.cluster.membership.changed
        while True:
            seen = changed.version
            trouble = self.loader.trouble() or await self._broken_link() or await self._suspicion()
            if trouble is not None:
                client.fail(trouble)
                return
            await changed.wait(seen, timeout=LOOK_EVERY)

    async def _broken_link(self) -> RingBroken | None:
        link = self.loader.broken_link()
        if link is not None:
            await asyncio.sleep(CAUSE_WITHIN)  # the neighbour's own end may be the cause, and its node says so soon
            return self.loader.trouble() or link
        return None

    async def _suspicion(self) -> RingBroken | None:
        """No answer for much longer than usual: a stage that is frozen answers nothing, a link that is cut nobody."""
        silence, usual = self.engine.silence, self.engine.usual_step
        if silence < max(SUSPECT_AFTER, 4 * usual):
            return None
        for index in await self.loader.silent():
            return self.loader.broken(index, say("silent_stage", seconds=silence))
        return await self._cut_link()

    async def _cut_link(self) -> RingBroken | None:
        """Neighbours of the ring that the head reaches, and that do not reach each other."""
        nodes, cluster = [stage.node for stage in self.loader.plan.stages], self.cluster
        found = await cut_pairs(nodes, cluster.membership, cluster.where)
        for pair in found.values():
            cluster.surveyor.cut(*pair)
            self.speeds = Speeds.KNOWN  # only a plan that looks at links can get around it
        return self.loader.broken(min(found), say("cut_link")) if found else None

    # --- mending ------------------------------------------------------------------------------------------------------

    async def _mend(self, error: RingBroken) -> None:
        """Until a ring serves again, or this is closed. Open requests wait; they end only when nothing can be done."""
        self._show(ServingState.RECOVERING, cause=error.sentence, step=say("step_looking"), progress=0.0)
        await self._settle(error)
        if self._is_hopeless():
            self.engine.drop(error)
        problem: TogetherError = error
        tries, began = 0, asyncio.get_running_loop().time()
        while not self._closed:
            tries += 1
            try:
                if await self._rebuild():
                    self._show(ServingState.READY, plan=self.loader.plan, cause=NOTHING, step=NOTHING, progress=1.0)
                    return
                await self._wait_for_machines(problem)
            except StageLost as lost:
                problem = lost
                await self._blame(lost)
            except TogetherError as other:
                problem = other
                await asyncio.sleep(LOOK_EVERY)
            if tries >= MEND_TRIES and asyncio.get_running_loop().time() - began > MEND_WITHIN:
                await self._wait_for_machines(problem)

    def _is_hopeless(self) -> bool:
        """The same again and again, without one new token in between."""
        tokens = self.engine.stats().generated_tokens
        self._failures = self._failures + 1 if tokens == self._tokens else 1
        self._tokens = tokens
        return self._failures >= MEND_TRIES

    async def _settle(self, error: RingBroken) -> None:
        """A moment for nodes to say what they lost; then end what does not answer."""
        if self._client is not None:
            await self._client.close()
        await self.cluster.where.look()  # what looks like a cut may be this machine's own move
        _, frozen = await asyncio.gather(self._news(), self.loader.frozen())  # a frozen stage is asked for a while, too
        await self.loader.give_up({*self._out_of_memory(error), *frozen})

    async def _news(self) -> None:
        changed = self.cluster.membership.changed
        with suppress(TimeoutError):
            async with asyncio.timeout(CAUSE_WITHIN / 2):
                while self.loader.trouble() is None:
                    await changed.wait(changed.version, timeout=LOOK_EVERY)

    def _out_of_memory(self, error: RingBroken) -> list[int]:
        """Which stages ran out of memory: their devices are not asked for as much again for a while."""
        found = []
        for index, (stage, status) in enumerate(zip(self.loader.plan.stages, self.loader.stages(), strict=True)):
            failed = status is not None and status.state is StageState.FAILED
            told = status if status and failed else error if error.stage == index else None
            if told is not None and told.fault is Fault.OUT_OF_MEMORY:
                if self.cluster.surveyor.shortages.learn(stage, told.cause):
                    self._failures = 0  # the next plan is another one
                found.append(index)
        return found

    async def _rebuild(self) -> bool:
        """Load what is missing and join anew. False: there is no room for it anywhere."""
        plan = await self._plan_with_what_is_left()
        if plan is None:
            return False
        self._show(ServingState.RECOVERING, plan=plan, step=say("step_missing"))
        placed = await self._place(plan)
        self.loader.placed = placed
        self._client = await self.loader.connect(self.opened.spec.hidden_size, REJOIN_WITHIN)
        await self.loader.prune()
        return True

    async def _plan_with_what_is_left(self) -> Plan | None:
        """The living stages and others for the rest; where that cannot be, another plan altogether."""
        plan, surveyor = self.loader.plan, self.cluster.surveyor
        kept = self.loader.living()
        if len(kept) == len(plan.stages):
            return plan if await self._links_hold(plan) else await self._decided()
        mended = await repair(self.opened, plan, kept, surveyor, self.speeds.at_once) if kept else None
        return mended or await self._decided()

    async def _links_hold(self, plan: Plan) -> bool:
        places = [*(stage.node for stage in plan.stages), THIS_MACHINE]
        known = any(self.cluster.surveyor.is_cut(*pair) for pair in pairwise(places))
        return not known and await self._cut_link() is None

    async def _decided(self) -> Plan | None:
        """A plan from nothing, for the same people and context."""
        plan = self.loader.plan
        strategy = "uniform" if self.speeds is Speeds.NONE else "recommend"
        request = PlanRequest(strategy=strategy, users=plan.users, context=plan.context)
        with suppress(NotServing):
            cluster = self.cluster
            decision = await plan_model(self.opened, request, cluster.settings, cluster.surveyor, self.speeds.at_once)
            return None if isinstance(decision, Infeasible) else plan_of(decision)
        return None

    async def _place(self, plan: Plan) -> Placed:
        """The plan's stages, loaded; stages that it does not use go first where there is no room beside them."""
        if not self._fits_beside(plan):
            await self.loader.prune(keep=plan)
        return await self._prepare(plan)

    def _fits_beside(self, plan: Plan) -> bool:
        needed: dict[tuple[str, str], int] = {}
        for stage in self.loader.missing(plan):
            place = (stage.node, f"{stage.backend}/{stage.device}")
            needed[place] = needed.get(place, 0) + stage.memory_bytes
        return all(size <= self._free(*place) for place, size in needed.items())

    def _free(self, node: str, device: str) -> int:
        status = self.cluster.membership.status(node)
        return next((each.free_bytes for each in status.devices if each.key == device), 0) if status else 0

    async def _blame(self, lost: StageLost) -> None:
        """A stage that could not take its place: it or, where it answers, its link."""
        if lost.stage is None:
            return
        if lost.fault is Fault.OUT_OF_MEMORY:
            self.cluster.surveyor.shortages.learn(lost.stage, lost.cause)
        if lost.joining and lost.reachable:
            self.cluster.surveyor.forget_links(lost.stage.node)
            self.speeds = Speeds.KNOWN  # only a plan that looks at links can get around it
        elif lost.joining:
            frozen = await self.loader.frozen()
            once = lost.index not in frozen and lost.stage != self._unjoined  # its machine may just be moving
            self._unjoined = lost.stage if once else None
            await self.loader.give_up(frozen if once else {*frozen, lost.index})

    async def _wait_for_machines(self, error: TogetherError) -> None:
        """No plan fits: open requests end, and every news of the machines is a new chance."""
        cause = say("no_room", error=error.sentence)
        self.engine.drop(RingBroken(cause))
        self._give_up_change(NotServing(cause))
        self._show(ServingState.WAITING, cause=cause, step=say("step_machines"))
        changed = self.cluster.membership.changed
        await changed.wait(changed.version, timeout=LOOK_EVERY)

    # --- planned changes ----------------------------------------------------------------------------------------------

    def reopen(self, opened: ModelHandle) -> None:
        """The same weights, read again: requests from now on get its words, ends of text and sampling defaults."""
        self.opened.text.template.retire()
        self.opened = opened
        opened.text.template.warm()
        self.engine.use_ends(opened.text.eos)

    async def serves(self, plan: Plan) -> bool:
        """Whether it is the same model in the same dtype, so that a change of plan is enough.

        A ring that is being mended is waited for: its open answers wait, too, and would end with it.
        """
        mine, changed = self.loader.plan, self.cluster.membership.changed
        if (mine.model.fingerprint, mine.dtype) != (plan.model.fingerprint, plan.dtype):
            return False
        while self.serving.state is ServingState.RECOVERING and not self._closed:
            await changed.wait(changed.version, timeout=LOOK_EVERY)
        return self.serving.state is ServingState.READY and not self._closed

    async def change(self, plan: Plan, speeds: Speeds) -> None:
        """The same model by another plan while people chat: their answers go on.

        Raises TogetherError; then the old plan goes on, or what is left of it is mended. Once all is loaded the change
        happens, also where whoever waits for it is cancelled.
        """
        if self._fits_beside(plan):
            await self._place(plan)  # loaded while answers go on; else room must be made first
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(_heard)
        self._change = Change(plan, done)
        self.engine.pause()
        await asyncio.shield(done)
        self.speeds = speeds

    def _give_up_change(self, error: TogetherError) -> None:
        change, self._change = self._change, None
        if change is not None:
            change.done.set_exception(error)

    async def _switch(self, change: Change) -> None:
        self._show(ServingState.READY, step=say("step_changing"))
        self._change = None
        try:
            self.loader.placed = await self._place(change.plan)
            assert self._client is not None
            await self._client.close()
            self._client = await self.loader.connect(self.opened.spec.hidden_size)
            await self.loader.prune()
        except TogetherError as error:
            change.done.set_exception(error)
            raise RingBroken(say("not_changed", error=error.sentence)) from error
        self._show(ServingState.READY, plan=self.loader.plan, step=NOTHING, progress=1.0)
        change.done.set_result(None)


def _heard(done: asyncio.Future[None]) -> None:
    """Its error counts as heard, also where nobody waits any more."""
    if not done.cancelled():
        done.exception()
