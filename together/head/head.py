"""The head: what its edges may ask. Loads models, keeps their services, and says what is going on."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from together.chats.answering import Answering
from together.chats.store import FILE, ChatStore
from together.checkout import own_version
from together.cluster.awake import Awake
from together.cluster.discovery import Tell, log_it
from together.cluster.survey import Placement, Speeds
from together.cluster_types import DeviceProfile, Endpoint, NodeStatus
from together.engine.stats import EngineStats
from together.errors import BadPlan, BadRequest, NoRoom, NotServing, TogetherError
from together.head.chats import HeadAnswers
from together.head.demand import Demands
from together.head.kept_answers import KeptAnswers
from together.head.library import Library
from together.head.machines import Machines
from together.head.needs import Needs
from together.head.orders import LoadOrders
from together.head.plan import ModelHandle, open_model, plan_model, sizings
from together.head.room import plans_without, size_of
from together.head.service import BALANCE_EVERY, Service
from together.head.services import EMPTY, Services
from together.head.sharing import cost_of_plan
from together.head.versions import version_notes
from together.models.generation import SamplingDefaults
from together.planning.explain import Infeasible
from together.planning.problem import Link, Problem
from together.planning.report import PlanReport
from together.planning.request import PlanRequest
from together.requests import LOCAL, AnswerChunk, ChatRequest, CompletionRequest, Owner
from together.sentences import NOTHING, say
from together.settings import Settings
from together.text.answers import answer_prompts
from together.tools.toolbox import Toolbox
from together.types import Dtype
from together.view import ClusterView, ServedModel
from together.wording import MOST, cut

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0  # seconds between two looks at what machines need
VIEWS_EVERY = 0.2  # seconds between two views at most


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How many conversations and cached texts were given up."""

    chats: int = 0
    caches: int = 0


class Head:
    """One head. `start` before anything else, `stop` at the end; all methods belong to one event loop.

    `name` is a model's wherever a method takes one; without it the only one is meant, and BadRequest says where there
    are several.
    """

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
        self.services = Services(self.machines)
        self.answers = KeptAnswers()
        self.orders = LoadOrders(self.machines, self.services, local_nodes)
        self.demands = Demands(self.services, self.orders, settings)
        self.library = Library(self.machines, self.services, self.demands)
        self._awake, self._needs = Awake(), Needs(self.machines, self.services, self.services.clock)
        answers = HeadAnswers(self.machines, self.services, self.demands, self.on_demand)
        toolbox = Toolbox(settings.config_path)
        self.chats = Answering(lambda: ChatStore(settings.data_path / FILE), answers, toolbox)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def service(self) -> Service | None:
        """The first one that serves."""
        return self.services.first

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen for answers, look for nodes, start the local ones."""
        await self.machines.listen()
        jobs = (self._membership.run(), self.machines.where.follow(), self._renew_leases(), self._keep_balance())
        more = (self.machines.follow_code(), self.demands.run(), self._look_after_machines())
        self._tasks = [asyncio.create_task(job) for job in (*jobs, *more)]
        for task in self._tasks:
            task.add_done_callback(_tell_end)
        await self.local.start(self._wanted_local) if self._wanted_local else None

    async def stop(self) -> None:
        """Unload, end the local nodes, leave nothing behind."""
        for task in (*(service.task for service in self.services.all()), *self._tasks[1:]):
            if task is not None:
                task.cancel()
        await self.chats.close()
        await self.library.close()
        cancelled = self.orders.cancel()
        with suppress(TogetherError, TimeoutError):
            async with asyncio.timeout(2.0):
                for ended in cancelled:  # a load that was cancelled gives back what it has
                    await ended.wait()
                await asyncio.gather(*map(self.services.end, tuple(self.services.by_name.values())))
                await self.services.ended()
        await self.services.give_up_ending()
        self._tasks[0].cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._awake.close()
        await self.machines.close()

    async def _renew_leases(self) -> None:
        while True:
            await asyncio.sleep(self.settings.lease / 6)
            await self.services.end_strays()
            await self._membership.renew()

    async def _keep_balance(self) -> None:
        """Compare plans with what stages take; move layers only if the settings say so, and between requests."""
        while True:
            await asyncio.sleep(BALANCE_EVERY)
            for service in tuple(self.services.by_name.values()):
                service.look_at_pace()
                idle = service.look_at_balance()
                if self.settings.balance and idle and service.balance and service.balance.advice:
                    with suppress(TogetherError):
                        await self.rebalance(service.name)

    async def _look_after_machines(self) -> None:
        """This one does not fall asleep while answers are made, wherever their layers are; none lacks memory for us."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            await self._awake.look(any(service.computing for service in self.services.by_name.values()))
            await self._needs.look()

    async def rebalance(self, name: str = "") -> str:
        """Move to the plan that the view advises; returns the model's name. Raises NotServing where it advises none."""
        service = self.services.only(name)
        if service is None or service.balance is None or service.balance.advice is None:
            raise NotServing(say("no_better_split"))
        shares = service.balance.advice.split.shares
        request = replace(service.wanted.request, strategy="custom", assignments=shares)
        return (await self.orders.change(service, service.wanted.otherwise(request))).name

    # --- what is seen -------------------------------------------------------------------------------------------------

    def view(self) -> ClusterView:
        """Nodes and serving state now."""
        services = self.services.shown()
        first = services[0] if services else ServedModel(EMPTY)
        offer = (
            NOTHING
            if self.orders.open
            else self.orders.last.offer((shown.serving for shown in services), self._membership.living())
        )
        nodes = self._membership.reached()
        return ClusterView(
            head=self.id,
            nodes=nodes,
            serving=first.serving,
            advice=first.advice,
            offer=offer,
            limits=self._surveyor.shortages.shown(),
            endpoint=self._membership.where(),
            pace=first.pace,
            notes=(*self._needs.notes, *version_notes(nodes)),
            let_go=self.machines.gone.shown(),
            services=services,
            version=own_version(),
            locked=self._membership.locked(),
            on_demand=self.demands.on,
        )

    async def changes(self) -> AsyncIterator[ClusterView]:
        """The view at once, on every change, and at least every second."""
        changed = self._membership.changed
        while True:
            seen = changed.version
            yield self.view()
            await asyncio.sleep(VIEWS_EVERY)
            await changed.wait(seen, timeout=1.0 - VIEWS_EVERY)

    # --- plans --------------------------------------------------------------------------------------------------------

    async def problem(self, model: str | Path | None, request: PlanRequest) -> Problem:
        """The living cluster, measured, and a model (None: the one that serves), as the planner takes them."""
        opened, surveyor = await self._open(model, request), self._surveyor
        sizing = next(sizings(opened, request, self.settings))
        placements = surveyor.reclaimed(surveyor.placements(), self._kept(opened))
        survey = await surveyor.survey(opened.spec, opened.config, sizing, Speeds.MEASURE, placements)
        return survey.problem

    async def measured(
        self, config: bytes, dtype: Dtype, size: int
    ) -> tuple[dict[Placement, DeviceProfile], tuple[Link, ...]]:
        """The devices and links of the living cluster, at the shape of that config.json and with `size` bytes."""
        await self.machines.settle(1)
        return await self._surveyor.measured(config, dtype, size)

    async def plan(
        self, model: str | Path | None, request: PlanRequest, beside: bool = False
    ) -> PlanReport | Infeasible:
        """Who would take which layers of a model (None: the one that serves), with times measured. Raises BadInput.

        `beside`: what serves goes on; else its memory counts as free where it is the only one.
        """
        await self.machines.settle(1)
        served = str(model) if model is not None and str(model) in self.services.by_name else ""
        request = self.sized(request, served) if model is None or served else request
        opened = await self._open(model, request)
        kept = self._kept(opened, beside)
        outcome = await plan_model(opened, request, self.settings, self._surveyor, Speeds.MEASURE, kept=kept)
        if isinstance(outcome, Infeasible):
            replaced = next((s for s in self.services.by_name.values() if s.serving.ring not in kept), None)
            return (await self.orders.with_room(outcome, opened, request, replaced))[0]
        for service in self.services.by_name.values():
            service.expect(outcome)
        others = {each.name: each.places for each in self.services.by_name.values() if each.serving.ring in kept}
        cost = cost_of_plan(outcome, others)
        return replace(outcome.answer, why=(*outcome.answer.why, cost)) if cost else outcome.answer

    def sized(self, request: PlanRequest, name: str = "") -> PlanRequest:
        """The request for a model that serves: what it leaves open is as it was asked for when that was loaded.

        Without a name the first one's.
        """
        service = self.services.by_name.get(name) if name else self.services.first
        return self.orders.wanted(service).otherwise(request).request

    async def _open(self, model: str | Path | None, request: PlanRequest) -> ModelHandle:
        service = self.services.only() if model is None else self.services.by_name.get(str(model))
        if service is not None and request.form in (None, service.opened.ref.form):
            return service.opened
        wanted = self.orders.wanted(service)
        return await open_model(wanted.model if model is None else model, self.settings, request.form)

    def _kept(self, opened: ModelHandle, beside: bool = False) -> frozenset[str]:
        """The rings that a plan for that model leaves their memory."""
        served = self.services.by_name
        alone = self.services.first if len(served) == 1 and not beside else None
        return self.services.beside(served.get(opened.ref.name, alone))

    # --- loading ------------------------------------------------------------------------------------------------------

    async def load(
        self,
        model: str | Path | None = None,
        request: PlanRequest | None = None,
        *,
        beside: bool = False,
        keep: bool | None = None,
    ) -> str:
        """Load a model (a folder, a known name, a hub id), or the last one again; `request` says who takes what.

        The last one is what a person asked for, also before a restart, and not the demo that came by itself. It takes
        the place of its own service or of the only one, or it is loaded `beside` what serves. What it replaces is
        unloaded once the model has proved readable and a plan for it is found. `keep`: no other model may have its
        memory. Returns the model's name. Raises TogetherError; where nothing serves then, the view has the cause, too.
        """
        return (await self.orders.load(model, request, beside=beside, keep=keep)).name

    async def load_again(self) -> str:
        """Load what was loaded last or failed to, also the demo. Raises TogetherError."""
        return (await self.orders.load_again()).name

    async def load_last(self) -> str:
        """Load what was applied last, by the same split where its machines are there. Raises TogetherError."""
        return (await self.orders.load_last()).name

    async def load_demo(self, request: PlanRequest | None = None) -> None:
        """Load the bundled model, unless somebody asked for another one: what was loaded last is still offered then."""
        await self.orders.load_demo(request)

    async def unload(self, name: str = "") -> None:
        """End what serves, and give up what is being loaded. Raises BadInput."""
        await self.orders.unload(name)

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
            services = self.on(node)
            await self._check_room_without(node.id, services)  # else some would move, and then one cannot
            for service in services:
                await self.move(service)
        except BaseException:
            self._surveyor.drained.discard(node.id)
            raise

    def on(self, node: NodeStatus) -> list[Service]:
        """The services that have layers on a node, the largest first: it fits into the fewest places."""
        rings = {stage.ring for stage in node.stages}
        return sorted((each for each in self.services.all() if each.serving.ring in rings), key=size_of, reverse=True)

    async def move(self, service: Service) -> None:
        """Split a service anew, over nodes that are not drained."""
        await self.orders.change(service, service.wanted.elsewhere(self.settings.strategy))

    async def _check_room_without(self, node: str, services: list[Service]) -> None:
        """Raises NoRoom where the others have none for all of them, NotServing where no other is there."""
        for service, outcome in zip(services, await plans_without(node, services), strict=True):
            if isinstance(outcome, Infeasible):
                request = service.wanted.elsewhere(self.settings.strategy).request
                missing, goers = await self.orders.with_room(outcome, service.opened, request, service)
                raise NoRoom(missing.sentence, goers)

    def forget(self, name: str) -> None:
        """Plans may use all of a node's memory again, though it ran out. Raises BadPlan where nothing is to forget."""
        self._surveyor.shortages.forget(name)

    async def forget_texts(self, owner: Owner | None = None) -> Forgotten:
        """Give up what is kept of an owner's chats, or of everybody's."""
        kept = await self.chats.work(ChatStore.owners) if owner is None else (owner,)
        chats = sum([await self.chats.forget(each) for each in kept])
        chats += self.answers.forget(owner)
        if owner not in (None, LOCAL):  # a key's; of this machine's user they stay, with what its terminal added
            await self.chats.toolbox.forget(str(owner))
        return Forgotten(chats, sum(service.engine.forget(owner) for service in self.services.by_name.values()))

    # --- serving ------------------------------------------------------------------------------------------------------

    def chat(self, request: ChatRequest, name: str = "") -> AsyncGenerator[AnswerChunk, None]:
        """The answer in chunks; closing it cancels. Raises NotServing; its first step QueueFull or BadRequest."""
        service = self.ready(name)
        return service.held(service.chat(request))

    def complete(self, request: CompletionRequest, name: str = "") -> AsyncGenerator[AnswerChunk, None]:
        """As `chat`, for prompts as they are."""
        service = self.ready(name)
        return service.held(answer_prompts(service.engine, service.opened.text, request))

    async def on_demand(
        self, name: str, answer: Callable[[Service], AsyncGenerator[AnswerChunk, None]], within: float | None = None
    ) -> AsyncGenerator[AnswerChunk, None]:
        """What `answer` says of a model's service, which is loaded first where it is not there.

        Its first step raises BadRequest for a name that no model has here, NotServing after `within` seconds, or where
        the model cannot be loaded.
        """
        target = await self.demands.target(name)
        if target is None:
            raise BadRequest("there is no model {name} here", param="model", name=cut(name, MOST))
        async with self.demands.held(target, within) as service, aclosing(answer(service)) as chunks:
            async for chunk in chunks:
                yield chunk

    def sampling_defaults(self, name: str = "") -> SamplingDefaults:
        """What holds where a request for a model that serves says nothing of sampling; without a name the first's."""
        service = self.services.by_name.get(name) if name else self.services.first
        return service.opened.defaults if service is not None else SamplingDefaults()

    def stats(self, name: str = "") -> EngineStats | None:
        """The engine's counters and times; None while there is none. Without a name the first model's."""
        service = self.services.by_name.get(name) if name else self.services.first
        return service.engine.stats() if service is not None else None

    def ready(self, name: str = "") -> Service:
        """The service that answers now. Raises NotServing where there is none."""
        return self.services.ready(name)


def _tell_end(task: asyncio.Task[None]) -> None:
    """None of a head's tasks ends before it: one that does has a bug, and nobody would wait for its error."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a task of the head has ended; restart together", exc_info=error)
