"""All that a head serves: a ring and an engine for each model, by its name. What one of them does is its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from together.errors import BadRequest, NotServing
from together.head.machines import Machines
from together.head.plan import plan_of
from together.head.recovery import Recovery
from together.head.room import plan_again, room_for
from together.head.service import Service
from together.head.sharing import Place, shares_of
from together.sentences import NOTHING, Sentence, say
from together.types import Plan
from together.view import ServedModel, Serving, ServingState

log = logging.getLogger(__name__)

EMPTY = Serving()


@dataclass(slots=True)
class Services:
    """Those of one head, in the order in which they came. At most one more is being loaded at a time."""

    machines: Machines
    clock: Callable[[], float] = time.monotonic
    by_name: dict[str, Service] = field(default_factory=dict)
    starting: Service | None = None  # has a ring that is being loaded
    loading: Serving = EMPTY  # what is loaded before it has a ring, or why that failed
    fallen: dict[str, Serving] = field(default_factory=dict)  # what ended by itself, and why
    _ending: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def first(self) -> Service | None:
        return next(iter(self.by_name.values()), None)

    def show(self, loading: Serving) -> None:
        self.loading = loading
        self.machines.membership.changed.notify()

    # --- one of them --------------------------------------------------------------------------------------------------

    def only(self, name: str = "") -> Service | None:
        """The service of that name, or the only one; None where there is none. Raises BadRequest where several are."""
        if name:
            return self.by_name.get(name)
        if len(self.by_name) > 1:
            names = tuple(self.by_name)
            raise BadRequest("several models serve here: {names:and}; name one of them", param="model", names=names)
        return self.first

    def ready(self, name: str = "") -> Service:
        """The service that answers now. Raises NotServing where it does not, BadRequest as `only` does."""
        service = self.only(name)
        if service is None or service.serving.state is not ServingState.READY:
            serving = self._serving(name)
            if serving.state is ServingState.EMPTY and self.by_name:
                raise BadRequest(
                    "{name} is not loaded here; loaded are: {names}", "model", name=name, names=tuple(self.by_name)
                )
            comes = serving.state in (ServingState.LOADING, ServingState.RECOVERING)
            raise NotServing(say("try_again", state=serving.sentence) if comes else serving.sentence)
        return service

    def _serving(self, name: str) -> Serving:
        known = [shown.serving for shown in self.shown()]
        return next((serving for serving in known if name in ("", serving.model)), EMPTY)

    def shown(self) -> tuple[ServedModel, ...]:
        """All, also what is being loaded, what could not be, and what ended by itself."""
        return tuple(self._shown())

    def _shown(self) -> Iterator[ServedModel]:
        yield from (service.shown(self.places(service)) for service in self.by_name.values())
        coming = self.starting.serving if self.starting is not None else self.loading
        if coming != EMPTY:
            yield ServedModel(coming, keep=self.starting is not None and self.starting.keep)
        again = {*self.by_name, coming.model}  # what comes back is shown once
        yield from (ServedModel(serving) for name, serving in self.fallen.items() if name not in again)

    # --- what they hold -----------------------------------------------------------------------------------------------

    def beside(self, service: Service | None) -> frozenset[str]:
        """The rings of all but that one."""
        return frozenset(each.serving.ring for each in self.all() if each is not service)

    def all(self) -> list[Service]:
        """Those that serve, and the one that is being loaded."""
        return [*self.by_name.values(), *([self.starting] if self.starting else [])]

    def places(self, but: Service | None = None) -> dict[str, tuple[Place, ...]]:
        """Where each model computes, but for that one."""
        return {each.name: each.places for each in self.by_name.values() if each is not but}

    def shares(self, service: Service) -> tuple[int, ...]:
        """What each of its stages may use of its processors now: as in `Frame`."""
        ready = [each for each in self.by_name.values() if each.serving.state is ServingState.READY]
        others = [each.at_work for each in ready if each is not service and each.computing]
        return shares_of(service.at_work, others) if others else ()

    async def end_strays(self) -> None:
        """End stages of this head that none of its rings has."""
        held = {each.loader.ring: each.loader.slots for each in self.all()}
        await self.machines.membership.end_strays(held)

    # --- life ---------------------------------------------------------------------------------------------------------

    def run(self, service: Service) -> None:
        """Let it serve, until `end`."""
        self.by_name[service.name] = service
        service.task = asyncio.create_task(self._run(service))

    async def _run(self, service: Service) -> None:
        try:
            await Recovery(service).run()
        except Exception:  # a bug of ours: open requests have ended, the model can be loaded again
            log.exception("the engine of %s failed", service.name)
            failed = replace(service.serving, state=ServingState.FAILED, cause=say("engine_failed"), progress=0.0)
            self._take(service)
            self.fallen[service.name] = failed
            self.machines.membership.changed.notify()
            await service.close()

    def _take(self, service: Service) -> None:
        if self.by_name.get(service.name) is service:
            del self.by_name[service.name]

    def rename(self, service: Service, name: str) -> None:
        """The same bytes were loaded under another name."""
        if name != service.name:
            self._take(service)
            service.show(service.serving.state, model=name)
            self.by_name[name] = service

    async def make_room(self, service: Service) -> Plan | None:
        """A plan for a kept service whose ring lost its place; what has to go for that very plan ends, and says so.

        None, and nobody goes, where no plan fits even then.
        """
        room = await room_for(partial(plan_again, service), service, self.by_name.values(), self.beside(service))
        if room is None or any(goer.keep or goer.closed for goer in room.goers):  # since the plan was begun
            return None
        for goer in room.goers:
            cause = say("room_taken", model=goer.name, kept=service.name)
            log.warning("%s", cause)
            self.fallen[goer.name] = replace(goer.serving, state=ServingState.FAILED, cause=cause, step=NOTHING)
            await self.end(goer, self.loading, cause)
        return plan_of(room.planned)

    async def end(self, service: Service, meanwhile: Serving = EMPTY, cause: Sentence = NOTHING) -> None:
        """Return when all its stages are gone, also those of a ring that just broke; show `meanwhile`.

        What was begun goes on even if the caller is cancelled; `ended` waits for it.
        """
        self._take(service)
        service.end_requests(cause)  # before anything can be cancelled: nobody else would end them
        self.show(meanwhile)
        task = asyncio.create_task(self._end(service, cause))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        await asyncio.shield(task)

    async def _end(self, service: Service, cause: Sentence) -> None:
        if service.task is not None:  # first, so that nothing is mended while it is taken apart
            service.task.cancel()
            await asyncio.gather(service.task, return_exceptions=True)
        await service.close(cause)
        await self.end_strays()

    async def ended(self) -> None:
        """Return when all that was being ended is gone."""
        if self._ending:
            await asyncio.wait(self._ending)

    async def give_up_ending(self) -> None:
        """The app ends: nodes end what has no head."""
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)
