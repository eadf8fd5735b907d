"""The head: what its edges may ask. Loads models, keeps their services, and says what is going on."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from together.cluster.discovery import Tell, log_it
from together.cluster.survey import Placement, Speeds
from together.cluster_types import DeviceProfile, Endpoint
from together.engine.stats import EngineStats
from together.errors import BadInput, BadPlan, NotServing, TogetherError
from together.head.load import LastPlan, LastPlans, LoadRetries, ModelLoad
from together.head.machines import Machines
from together.head.plan import ModelHandle, PlannedModel, open_model, plan_model, plan_of, refuse, sizings
from together.head.recovery import Recovery
from together.head.service import BALANCE_EVERY, Balance, Service
from together.models.generation import SamplingDefaults
from together.planning.explain import Infeasible
from together.planning.problem import Link, Problem
from together.planning.report import PlanReport
from together.planning.request import PlanRequest
from together.requests import AnswerChunk, ChatRequest, CompletionRequest
from together.sentences import NOTHING, Sentence, say
from together.settings import Settings
from together.text.answers import answer_chat, answer_prompts
from together.types import Dtype, Plan
from together.view import ClusterView, Serving, ServingState
from together.weights.find import BUNDLED
from together.wording import MOST, cut

log = logging.getLogger(__name__)

VIEWS_EVERY = 0.2  # seconds between two views at most
EMPTY = Serving()


class Head:
    """One head. `start` before anything else, `stop` at the end; all methods belong to one event loop."""

    def __init__(
        self,
        settings: Settings,
        peers: tuple[Endpoint, ...] = (),
        local_nodes: int = 0,
        page: int = 0,
        tell: Tell = log_it,
    ) -> None:
        """`page` is the port of its page; `tell` gets what happens to its machines."""
        self.settings = settings
        self.id = secrets.token_hex(8)
        self.machines = Machines(settings, self.id, peers, page, tell)
        self.local = self.machines.local
        self._wanted_local = local_nodes
        self._membership, self._surveyor = self.machines.membership, self.machines.surveyor
        self._services: dict[str, Service] = {}  # by model name; one at most until a head serves several
        self._starting: Service | None = None  # what is being loaded
        self._serving = Serving()  # shown while there is no service
        self._opened = ModelLoad(BUNDLED, PlanRequest(strategy=settings.strategy), by_itself=True)  # the last
        self._ordered = self._opened  # the last one ordered, also if it could not be opened
        self._kept = LastPlans.read(settings.home_path)
        self._loading = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._load_task: asyncio.Task[object] | None = None
        self._given_up = False  # an unload came while a model was being loaded
        self._asked = False  # a person has ordered a model

    @property
    def service(self) -> Service | None:
        """The one that serves."""
        return next(iter(self._services.values()), None)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen for answers, look for nodes, start the local ones."""
        await self.machines.listen()
        jobs = (self._membership.run(), self.machines.where.follow(), self._renew_leases(), self._keep_balance())
        self._tasks = [asyncio.create_task(job) for job in jobs]
        await self.local.start(self._wanted_local) if self._wanted_local else None

    async def stop(self) -> None:
        """Unload, end the local nodes, leave nothing behind."""
        serving = (service.task for service in self._services.values())
        for task in (self._load_task, *serving, *self._tasks[1:]):
            if task is not None:
                task.cancel()
        with suppress(TogetherError, TimeoutError):
            async with asyncio.timeout(2.0), self._loading:  # a load that was cancelled gives back what it has
                await self._end_service()
        self._tasks[0].cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.machines.close()

    async def _renew_leases(self) -> None:
        while True:
            await asyncio.sleep(self.settings.lease / 6)
            service = self.service or self._starting
            loader = service.loader if service else None
            await self._membership.end_strays(loader.ring if loader else "", loader.slots if loader else ())
            await self._membership.renew()

    async def _keep_balance(self) -> None:
        """Compare plans with what stages take; move layers only if the settings say so, and between requests."""
        while True:
            await asyncio.sleep(BALANCE_EVERY)
            for service in tuple(self._services.values()):
                service.look_at_pace()
                idle = service.look_at_balance()
                if self.settings.balance and idle and service.balance and service.balance.advice:
                    with suppress(TogetherError):
                        await self.rebalance()

    async def rebalance(self) -> None:
        """Move to the plan that the view advises. Raises NotServing where it advises none."""
        balance = self.service.balance if self.service else None
        if balance is None or balance.advice is None:
            raise NotServing(say("no_better_split"))
        request = replace(self._opened.request, strategy="custom", assignments=balance.advice.split.shares)
        await self._order(self._opened.otherwise(request))

    # --- what is seen -------------------------------------------------------------------------------------------------

    def view(self) -> ClusterView:
        """Nodes and serving state now."""
        service, serving, advice = self.service, self._serving, NOTHING
        if service is not None:
            engine = service.engine
            serving = replace(service.serving, running=engine.running, waiting=engine.waiting)
            advice = service.balance.advice.sentence if service.balance and service.balance.advice else NOTHING
        elif self._starting is not None:
            serving = self._starting.serving
        offer = NOTHING if self._load_task else self._kept.offer(serving, self._membership.living())
        nodes, limits, here = self._membership.nodes(), self._surveyor.shortages.shown(), self._membership.where()
        pace, gone = service.pace if service else None, self.machines.gone.shown()
        return ClusterView(self.id, nodes, serving, advice, offer, limits, here, pace, gone)

    async def changes(self) -> AsyncIterator[ClusterView]:
        """The view at once, on every change, and at least every second."""
        changed = self._membership.changed
        while True:
            seen = changed.version
            yield self.view()
            await asyncio.sleep(VIEWS_EVERY)
            await changed.wait(seen, timeout=1.0 - VIEWS_EVERY)

    def _show(self, serving: Serving) -> None:
        self._serving = serving
        self._membership.changed.notify()

    # --- plans --------------------------------------------------------------------------------------------------------

    async def problem(self, model: str | Path | None, request: PlanRequest) -> Problem:
        """The living cluster, measured, and a model (None: the one that serves), as the planner takes them."""
        opened, surveyor = await self._open(model, request), self._surveyor
        sizing = next(sizings(opened, request, self.settings))
        placements = surveyor.reclaimed(surveyor.placements())
        survey = await surveyor.survey(opened.spec, opened.config, sizing, Speeds.MEASURE, placements)
        return survey.problem

    async def measured(
        self, config: bytes, dtype: Dtype, size: int
    ) -> tuple[dict[Placement, DeviceProfile], tuple[Link, ...]]:
        """The devices and links of the living cluster, at the shape of that config.json and with `size` bytes."""
        await self.machines.settle(1)
        return await self._surveyor.measured(config, dtype, size)

    async def plan(self, model: str | Path | None, request: PlanRequest) -> PlanReport | Infeasible:
        """Who would take which layers of a model (None: the one that serves), with times measured. Raises BadInput."""
        await self.machines.settle(1)
        request = self.sized(request) if model is None else request
        opened = await self._open(model, request)
        outcome = await plan_model(opened, request, self.settings, self._surveyor, Speeds.MEASURE)
        if isinstance(outcome, Infeasible):
            return outcome
        if self.service is not None:
            self.service.expect(outcome)
        return outcome.answer

    def sized(self, request: PlanRequest) -> PlanRequest:
        """The request for the model that serves: what it leaves open is as it was asked for when that was loaded."""
        return self._opened.otherwise(request).request

    async def _open(self, model: str | Path | None, request: PlanRequest) -> ModelHandle:
        service = self.service if model is None else None
        if service is not None and request.form in (None, service.opened.ref.form):
            return service.opened
        return await open_model(model or self._opened.model, self.settings, request.form)

    # --- loading ------------------------------------------------------------------------------------------------------

    async def load(self, model: str | Path | None = None, request: PlanRequest | None = None) -> None:
        """Load a model (a folder, a known name, a hub id), or the last one again; `request` says who takes what.

        The last one is what a person asked for, also before a restart, and not the demo that came by itself. What
        serves is unloaded once the model has proved readable and a plan for it is found. Raises TogetherError; where
        nothing serves then, the view has the cause, too.
        """
        self._asked = True
        if model is not None:
            await self._order(ModelLoad(model, request or PlanRequest(strategy=self.settings.strategy)))
        elif request is not None:
            await self._order(replace(self._opened.otherwise(request), by_itself=False))
        elif self._ordered.by_itself and self._kept.last is not None:
            await self.load_last()
        else:
            await self._order(self._ordered)

    async def load_again(self) -> None:
        """Load what was loaded last or failed to, also the demo. Raises TogetherError."""
        await self._order(self._ordered)

    async def load_last(self) -> None:
        """Load what was applied last, by the same split where its machines are there. Raises TogetherError."""
        self._asked, last = True, self._kept.last
        if last is None:
            raise NotServing(say("no_last_plan"))
        await self._order(ModelLoad.again(last, self.settings.strategy))

    async def load_demo(self, request: PlanRequest | None = None) -> None:
        """Load the bundled model, unless somebody asked for another one: what was loaded last is still offered then."""
        if self._asked:
            return
        await self._order(ModelLoad(BUNDLED, request or PlanRequest(strategy=self.settings.strategy), by_itself=True))

    async def _order(self, wanted: ModelLoad) -> None:
        async with self._loading:
            before, self._ordered = self._ordered, wanted
            self._load_task = asyncio.current_task()
            try:
                await self._unless_given_up(wanted)
            except (TogetherError, asyncio.CancelledError) as error:
                if isinstance(error, BadInput):
                    self._ordered = before  # another try would end the same way
                if self.service is None:
                    stopped = say("load_stopped", model=wanted.name)
                    cause = error.sentence if isinstance(error, TogetherError) else stopped
                    self._show(Serving(ServingState.FAILED, self._serving.model or wanted.name, cause=cause))
                raise
            finally:
                self._load_task = None

    async def _unless_given_up(self, wanted: ModelLoad) -> None:
        """Raises NotServing where an unload came meanwhile: a load may wait for minutes for a machine."""
        self._given_up = False
        try:
            await self._load(wanted)
        except asyncio.CancelledError:
            if not self._given_up or self._load_task is None:
                raise
            self._load_task.uncancel()
            raise NotServing(say("load_given_up", model=wanted.name)) from None

    async def unload(self) -> None:
        """End what serves, and give up what is being loaded."""
        if self._load_task is not None:
            self._given_up = True
            self._load_task.cancel()
        async with self._loading:
            await self._end_service()
            self._show(Serving())

    async def _load(self, wanted: ModelLoad) -> None:
        self._step(wanted.name, say("step_reading"))
        opened = await wanted.open(self.settings)
        self._opened = wanted
        for odd in opened.remarks:
            log.warning("%s", odd)
        self.machines.store.offer(opened.ref, opened.folder)
        tries = LoadRetries(self._membership, self._surveyor, partial(self._step, opened.ref.name))
        await tries.run(partial(self._place, wanted, opened), lambda: self.service is not None)

    async def _place(self, wanted: ModelLoad, opened: ModelHandle) -> None:
        self._step(opened.ref.name, say("step_machines"))
        await self.machines.settle(self._wanted_local)
        watched = self.service is not None and self.service.balance is not None
        looks = len(self._surveyor.placements()) > 1 and (wanted.needs_speeds or watched)
        speeds = Speeds.MEASURE if looks else Speeds.NONE
        self._step(opened.ref.name, say("step_measuring") if looks else say("step_loading"))
        show = partial(self._step, opened.ref.name)
        decision = await wanted.plan_model(opened, self.settings, self._surveyor, show, speeds)
        plan = plan_of(decision)
        refuse(opened, plan)
        service = await self._put_in_service(opened, plan, speeds)
        service.balance = Balance(decision) if looks else None
        service.expect(decision) if looks else None
        if not wanted.by_itself:
            await asyncio.to_thread(self._kept.keep, LastPlan.of(wanted.request, plan, self._membership.nodes()))

    async def _put_in_service(self, opened: ModelHandle, plan: Plan, speeds: Speeds) -> Service:
        """If the same model serves, change its plan: open answers go on."""
        service = self.service
        if service is not None and await service.serves(plan):
            await service.change_to(plan, speeds)
            service.reopen(opened)
            return service
        step = say("step_ending", model=service.serving.model) if service else NOTHING
        await self._end_service(Serving(ServingState.LOADING, opened.ref.name, step=step))
        self._starting = service = Service(self.machines, opened, speeds)
        try:
            await service.start(plan)
            self._services[opened.ref.name] = service
        finally:
            self._starting = None
        service.task = asyncio.create_task(self._serve(service))
        return service

    async def drain(self, name: str, back: bool = False) -> None:
        """Give a node's layers to others, while answers go on, and give it none; `back`: it may have some again.

        Raises BadPlan for a name that no node has, NotEnoughMemory where the others have no room: then all stays.
        """
        node = next((node for node in self._membership.living() if name in (node.name, node.id)), None)
        if node is None:
            names = tuple(node.name for node in self._membership.living()) or "none"
            raise BadPlan("there is no node {name}; there are: {names}", name=cut(name, MOST), names=names)
        if back:
            self._surveyor.drained.discard(node.id)
            return
        self._surveyor.drained.add(node.id)
        try:
            if any(stage.head == self.id for stage in node.stages):
                await self._order(self._opened.elsewhere(self.settings.strategy))
        except BaseException:
            self._surveyor.drained.discard(node.id)
            raise

    async def plan_without(self, node: str) -> PlannedModel | Infeasible:
        """What draining that node (its id) would make of what serves; nothing is measured, nothing changes.

        Raises NotServing where nothing serves, or no other node is there.
        """
        request = self._opened.elsewhere(self.settings.strategy).request
        return await plan_model(self.ready().opened, request, self.settings, self._surveyor, Speeds.NONE, {node})

    def forget(self, name: str) -> None:
        """Plans may use all of a node's memory again, though it ran out. Raises BadPlan where nothing is to forget."""
        self._surveyor.shortages.forget(name)

    def _step(self, model: str, step: Sentence) -> None:
        """What goes on before a ring is there; what still serves is not hidden by it."""
        if self.service is None:
            self._show(Serving(ServingState.LOADING, model, step=step))

    # --- serving ------------------------------------------------------------------------------------------------------

    def chat(self, request: ChatRequest) -> AsyncGenerator[AnswerChunk, None]:
        """The answer in chunks; closing it cancels. Raises NotServing; its first step QueueFull or BadRequest."""
        service = self.ready()
        return answer_chat(service.engine, service.opened.text, request)

    def complete(self, request: CompletionRequest) -> AsyncGenerator[AnswerChunk, None]:
        """As `chat`, for prompts as they are."""
        service = self.ready()
        return answer_prompts(service.engine, service.opened.text, request)

    def sampling_defaults(self) -> SamplingDefaults:
        """What holds where a request for the model that serves says nothing of sampling."""
        return self.service.opened.defaults if self.service else SamplingDefaults()

    def stats(self) -> EngineStats | None:
        """The engine's counters and times; None while there is none."""
        return self.service.engine.stats() if self.service else None

    def ready(self) -> Service:
        """The service that answers now. Raises NotServing where there is none."""
        service = self.service
        if service is None or service.serving.state is not ServingState.READY:
            serving = self.view().serving
            comes = serving.state in (ServingState.LOADING, ServingState.RECOVERING)
            raise NotServing(say("try_again", state=serving.sentence) if comes else serving.sentence)
        return service

    async def _serve(self, service: Service) -> None:
        try:
            await Recovery(service).run()
        except Exception:  # a bug of ours: open requests have ended, the model can be loaded again
            log.exception("the engine failed")
            self._services.clear()
            self._show(replace(service.serving, state=ServingState.FAILED, cause=say("engine_failed"), progress=0.0))
            await service.close()

    async def _end_service(self, meanwhile: Serving = EMPTY) -> None:
        """Return when all stages are gone, also those of a ring that just broke; show `meanwhile`."""
        services = tuple(self._services.values())
        self._services.clear()
        if services:
            self._show(meanwhile)
        for service in services:
            if service.task is not None:  # first, so that nothing is mended while it is taken apart
                service.task.cancel()
                await asyncio.gather(service.task, return_exceptions=True)
            await service.close()
        await self._membership.end_strays("")
