"""Orders to load, change and unload models: one is carried out after another, so no memory is promised to two."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from together.cluster.survey import Speeds
from together.errors import BadInput, BadSetting, NoRoom, NotServing, TogetherError
from together.head.balance import Balance
from together.head.load import LastPlan, LastPlans, LoadRetries, ModelLoad
from together.head.machines import Machines
from together.head.plan import ModelHandle, PlannedModel, plan_model, plan_of, refuse
from together.head.room import remedies, room_for
from together.head.service import Service
from together.head.services import EMPTY, Services
from together.planning.explain import Infeasible
from together.planning.request import PlanRequest
from together.sentences import Sentence, say
from together.types import Plan
from together.view import Serving, ServingState
from together.weights.find import BUNDLED
from together.wording import MOST, cut

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class LoadOrder:
    """One load, from when it was asked for to its end."""

    wanted: ModelLoad
    beside: bool  # what serves goes on; else it takes the place of the only one
    keep: bool | None  # None: as before
    task: asyncio.Task[object]
    name: str  # the model's; what its folder is called until that is known
    known: bool = False
    given_up: bool = False  # an unload came meanwhile
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def give_up(self) -> None:
        self.given_up = True
        self.task.cancel()


class LoadOrders:
    """Those of one head. `replaced` is which service a load takes the place of."""

    def __init__(self, machines: Machines, services: Services, wanted_local: int) -> None:
        self.machines, self.services = machines, services
        self._wanted_local = wanted_local
        self._settings = machines.settings
        self.opened = self._usual(BUNDLED, by_itself=True)  # the last one
        self._ordered = self.opened  # the last one ordered, also if it could not be opened
        self.last = LastPlans.read(machines.settings.home_path)
        self._orders: list[LoadOrder] = []
        self._one_by_one = asyncio.Lock()
        self._asked = False  # a person has ordered a model

    def _usual(self, model: str | Path, request: PlanRequest | None = None, *, by_itself: bool = False) -> ModelLoad:
        return ModelLoad(model, request or PlanRequest(strategy=self._settings.strategy), by_itself=by_itself)

    @property
    def open(self) -> bool:
        """Whether there is any."""
        return bool(self._orders)

    def cancel(self) -> list[asyncio.Event]:
        """All of them, as the app ends; what is returned is set once each gave back what it had."""
        for order in self._orders:
            order.task.cancel()
        return [order.ended for order in self._orders]

    def wanted(self, service: Service | None) -> ModelLoad:
        """How it was ordered; without one, what was opened last."""
        return service.wanted if service is not None else self.opened

    # --- what may be ordered ------------------------------------------------------------------------------------------

    async def load(
        self,
        model: str | Path | None = None,
        request: PlanRequest | None = None,
        *,
        beside: bool = False,
        keep: bool | None = None,
    ) -> Service:
        """As `Head.load`."""
        self._asked = True
        if model is not None:
            served = self.services.by_name.get(str(model))
            return await self.carry_out(self._usual(served.wanted.model if served else model, request), beside, keep)
        if request is not None:
            again = self.wanted(self.services.only()).otherwise(request)
            return await self.carry_out(replace(again, by_itself=False), beside, keep)
        if self._ordered.by_itself and self.last.last is not None:
            return await self.load_last()
        return await self.carry_out(self._ordered, beside, keep)

    async def load_again(self) -> Service:
        return await self.carry_out(self._ordered)

    async def load_last(self) -> Service:
        self._asked, last = True, self.last.last
        if last is None:
            raise NotServing(say("no_last_plan"))
        first = await self.carry_out(ModelLoad.again(last, self._settings.strategy), keep=last.keep or None)
        failed: TogetherError | None = None
        for other in last.beside:
            try:
                await self.carry_out(ModelLoad.again(other, self._settings.strategy), True, other.keep or None)
            except TogetherError as error:  # the others may have room
                failed = failed or error
        if failed is not None:
            await asyncio.to_thread(self.last.keep, last)  # not what came of it
            raise failed
        return first

    async def load_demo(self, request: PlanRequest | None = None) -> None:
        if not self._asked:
            await self.carry_out(self._usual(BUNDLED, request, by_itself=True))

    async def unload(self, name: str = "") -> None:
        """End a model's service and give up its loads; without a name the only one's.

        Raises BadRequest without a name where several serve, BadSetting for a model that is not here.
        """
        beside = any(order.beside for order in self._orders)
        if not name and (len(self.services.by_name) > 1 or (beside and self.services.by_name)):
            self.services.only(name)
            raise BadSetting("more than one model is loaded here; name the one to unload")
        loads = [order for order in self._orders if not name or self._is_of(order, name)]
        served = [service for service in self.services.by_name.values() if name in ("", service.name)]
        known = self.services.loading.model == name or name in self.services.fallen
        if name and not (loads or served or known):
            names = tuple(shown.serving.model for shown in self.services.shown()) or "none"
            raise BadSetting("no model {name} is loaded here; loaded are: {names}", name=cut(name, MOST), names=names)
        for order in loads:
            order.give_up()
        for order in loads:
            await order.ended.wait()
        for service in [each for each in self.services.by_name.values() if name in ("", each.name)]:
            await self.services.end(service, self.services.loading)
        await self.services.ended()  # also what an order that was given up had begun to end
        self._forget(name)
        await self._remember()

    def _is_of(self, order: LoadOrder, name: str) -> bool:
        """Whether a load is of the model of that name. Until it is read, another one may have a folder so called."""
        served = self.services.by_name.get(name)
        guessed = served is None or str(served.wanted.model) == str(order.wanted.model)
        return order.name == name and (order.known or guessed)

    def concern(self, service: Service) -> bool:
        """Whether an order for that model is open."""
        return any(order.name == service.name for order in self._orders)

    async def end(self, service: Service, may: Callable[[], bool]) -> bool:
        """End a service, after all that was ordered before, where it still `may`; whether it did. Gives up no order."""
        async with self._one_by_one:
            if service.closed or self.concern(service) or not may():
                return False
            await self.services.end(service, self.services.loading)
            return True

    def _forget(self, name: str) -> None:
        """What failed is no longer shown."""
        for gone in [each for each in self.services.fallen if name in ("", each)]:
            del self.services.fallen[gone]
        shown = self.services.loading
        self.services.show(EMPTY if name in ("", shown.model) else shown)

    # --- carrying out -------------------------------------------------------------------------------------------------

    async def keep(self, name: str, on: bool) -> None:
        """Whether other models may have the memory of a service. Raises BadSetting for one that is not here."""
        service = self.services.by_name.get(name)
        if service is None:
            known = tuple(self.services.by_name) or "none"
            raise BadSetting("no model {name} is loaded here; loaded are: {known}", name=cut(name, MOST), known=known)
        service.keep = on
        self.machines.membership.changed.notify()
        await self._remember()

    async def change(self, service: Service, wanted: ModelLoad) -> Service:
        """Run the same model by another plan."""
        return await self.carry_out(wanted, beside=True, name=service.name)

    async def carry_out(
        self, wanted: ModelLoad, beside: bool = False, keep: bool | None = None, name: str = ""
    ) -> Service:
        """Load it, after all that was ordered before; `name` is the model's where it is known.

        Raises NotServing where an unload came meanwhile.
        """
        task: asyncio.Task[object] | None = asyncio.current_task()
        assert task is not None, "orders are given by tasks"
        order = LoadOrder(wanted, beside, keep, task, name or wanted.name, known=bool(name))
        self._orders.append(order)
        try:
            async with self._one_by_one:
                return await self._carry_out(order)
        except asyncio.CancelledError:
            if not order.given_up:
                raise
            task.uncancel()
            raise NotServing(say("load_given_up", model=order.name)) from None
        finally:
            self._orders.remove(order)
            order.ended.set()

    async def _carry_out(self, order: LoadOrder) -> Service:
        before, self._ordered = self._ordered, order.wanted
        try:
            return await self._load(order)
        except (TogetherError, asyncio.CancelledError) as error:
            if isinstance(error, BadInput):
                self._ordered = before  # another try would end the same way
            if self.services.first is None:
                stopped = say("load_stopped", model=order.name)
                cause = error.sentence if isinstance(error, TogetherError) else stopped
                model = self.services.loading.model or order.name
                self.services.show(Serving(ServingState.FAILED, model, cause=cause))
            else:
                self.services.show(EMPTY)
            raise

    async def _load(self, order: LoadOrder) -> Service:
        self._step(order, say("step_reading"))
        opened = await order.wanted.open(self._settings)
        order.name, order.known = opened.ref.name, True
        self._refuse_same_name(order, opened)
        self.opened = order.wanted
        for odd in opened.remarks:
            log.warning("%s", odd)
        self.machines.store.offer(opened.ref, opened.folder)
        membership, surveyor = self.machines.membership, self.machines.surveyor
        tries = LoadRetries(membership, surveyor, partial(self._step, order))
        return await tries.run(partial(self._place, order, opened), lambda: self._replaced(order) is not None)

    def _refuse_same_name(self, order: LoadOrder, opened: ModelHandle) -> None:
        """Raises BadSetting for another model with the name of one that is to go on."""
        served, new = self.services.by_name.get(order.name), opened.ref
        if order.beside and served and new.path != served.opened.ref.path and new.key != served.opened.ref.key:
            raise BadSetting(
                "another {model} serves here, from {folder}; unload it first, or rename the folder of the new one",
                model=order.name,
                folder=served.opened.ref.path,
            )

    def _replaced(self, order: LoadOrder) -> Service | None:
        """The service whose place a load takes. Raises BadSetting where that may be any of several."""
        served = self.services.by_name
        if order.name in served:
            return served[order.name]
        if order.beside or not served:
            return None
        if len(served) > 1:
            raise BadSetting(
                "{names:and} serve here; to load {model} as well, add --beside, or unload one of them first",
                names=tuple(served),
                model=order.name,
            )
        return self.services.first

    async def _place(self, order: LoadOrder, opened: ModelHandle) -> Service:
        surveyor, wanted, replaced = self.machines.surveyor, order.wanted, self._replaced(order)
        self._step(order, say("step_machines"))
        await self.machines.settle(self._wanted_local)
        watched = replaced is not None and replaced.balance is not None
        looks = len(surveyor.placements()) > 1 and (wanted.needs_speeds or watched)
        speeds = Speeds.MEASURE if looks else Speeds.NONE
        self._step(order, say("step_measuring") if looks else say("step_loading"))
        show, kept = partial(self._step, order), self.services.beside(replaced)
        decision = await wanted.plan_model(opened, self._settings, surveyor, show, speeds, kept)
        if isinstance(decision, Infeasible):
            missing, goers = await self.with_room(decision, opened, wanted.request, replaced)
            raise NoRoom(missing.sentence, goers)
        plan = plan_of(decision)
        refuse(opened, plan)
        service = await self._put_in_service(order, opened, plan, speeds)
        service.wanted, service.keep = wanted, service.keep if order.keep is None else order.keep
        service.balance = Balance(decision) if looks else None
        service.expect(decision) if looks else None
        self._forget(service.name if order.beside else "")
        if not wanted.by_itself:
            await self._remember()
        return service

    async def _remember(self) -> None:
        """All that serves and was asked for is what is offered after a restart; without any, what was before."""
        nodes = self.machines.membership.nodes()
        served = [each for each in self.services.by_name.values() if not each.wanted.by_itself]
        plans = [LastPlan.of(each.wanted.request, each.loader.plan, nodes, keep=each.keep) for each in served]
        if plans:
            await asyncio.to_thread(self.last.keep, replace(plans[0], beside=tuple(plans[1:])))

    async def with_room(
        self, missing: Infeasible, opened: ModelHandle, request: PlanRequest, replaced: Service | None
    ) -> tuple[Infeasible, tuple[str, ...]]:
        """The same, and where others have the memory, first which would have to go; and their names."""
        machines, services = self.machines, self.services

        async def plan_beside(kept: Collection[str]) -> PlannedModel | Infeasible:
            return await plan_model(opened, request, self._settings, machines.surveyor, Speeds.NONE, kept=kept)

        room = await room_for(plan_beside, replaced, services.by_name.values(), services.beside(replaced))
        if room is None:
            return missing, ()
        suggestions = (*await remedies(room), *missing.suggestions)
        return replace(missing, suggestions=suggestions), tuple(each.name for each in room.goers)

    async def _put_in_service(self, order: LoadOrder, opened: ModelHandle, plan: Plan, speeds: Speeds) -> Service:
        """If the same model serves, change its plan: open answers go on."""
        services, replaced = self.services, self._replaced(order)
        if replaced is not None and await replaced.serves(plan):
            await replaced.change_to(plan, speeds)
            replaced.reopen(opened)
            services.rename(replaced, opened.ref.name)
            return replaced
        keep = replaced.keep if replaced is not None and replaced.name == order.name else False
        if replaced is not None:
            step = say("step_ending", model=replaced.name)
            await services.end(replaced, Serving(ServingState.LOADING, opened.ref.name, step=step))
        else:
            await services.ended()
            await services.end_strays()
        services.starting = service = Service(
            self.machines,
            opened,
            speeds,
            order.wanted,
            services.beside,
            services.make_room,
            services.shares,
            services.clock,
            keep,
        )
        try:
            await service.start(plan)
            services.run(service)
        finally:
            services.starting = None
        return service

    def _step(self, order: LoadOrder, step: Sentence) -> None:
        """What goes on before a ring is there; what still serves and is replaced is not hidden by it."""
        if self.services.first is None or (order.beside and order.name not in self.services.by_name):
            self.services.show(Serving(ServingState.LOADING, order.name, step=step))
