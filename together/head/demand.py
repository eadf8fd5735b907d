"""Models that are loaded when a request asks for them, and that go when nobody does.

A request holds its model from its arrival to its end. Who waits for a model that is loaded gets it before it can go
again, so two models that do not fit together take turns, and each turn answers somebody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from together.errors import BadSetting, NoRoom, NotServing, TogetherError
from together.head.load import ModelLoad
from together.head.orders import LoadOrders
from together.head.service import Service
from together.head.services import Services
from together.jsonfile import BrokenFile, read_json, write_json
from together.planning.request import PlanRequest
from together.sentences import Sentence, say
from together.settings import Settings, parse_aliases, parse_seconds
from together.weights.find import known_models
from together.wording import MOST, quoted

log = logging.getLogger(__name__)

ALIASES = "aliases.json"
LOOK_EVERY = 0.5  # seconds
IDLE_EVERY = 5.0  # seconds between looks for services that nobody uses
COME_BACK = 5.0  # seconds after which a request that could not wait may ask again
SPARED = 20.0  # seconds that a model stays for those: else two models could take turns and answer nobody
QUIET = 15.0  # seconds without a sequence in its engine after which a hold of a service is no use of it
LEAVE_WITHIN = 60.0  # seconds that requests wait for a model that is to go; then it takes them for SPARED seconds


@dataclass(slots=True, eq=False)
class Hold:
    """One request's claim to a model; `service` is set once it may use it."""

    service: Service | None = None

    def take(self, service: Service) -> None:
        self.service = service
        service.holds += 1

    def release(self) -> None:
        if self.service is not None:
            self.service.let_go()
            self.service = None


@dataclass(slots=True, eq=False)
class ModelDemand:
    """A model that requests wait for."""

    target: str
    loaded: asyncio.Future[Service]
    holds: set[Hold] = field(default_factory=set)
    missed: bool = False  # one of them could not wait so long

    @property
    def wanted(self) -> bool:
        """Whether somebody waits, or was told to ask again."""
        return bool(self.holds) or self.missed


class Demands:
    """Those of one head. `run` as long as the head lives."""

    def __init__(self, services: Services, orders: LoadOrders, settings: Settings) -> None:
        """Raises BadSetting."""
        self.services, self.orders = services, orders
        self.on = settings.on_demand
        self.swaps = 0  # how often a model went for another one
        self._home, self._strategy = settings.home_path, settings.strategy
        self._alias_file = settings.config_path / ALIASES
        self._set = parse_aliases(settings.aliases)
        self._given = _kept_aliases(self._alias_file)
        self._idle = parse_seconds(settings.idle) if settings.idle else 0.0
        self._turn = asyncio.Lock()
        self.open: dict[str, ModelDemand] = {}  # by what is to be loaded
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def clock(self) -> Callable[[], float]:
        return self.services.clock

    # --- names --------------------------------------------------------------------------------------------------------

    @property
    def aliases(self) -> dict[str, str]:
        """What other names stand for; those of the settings count before those that were given here."""
        return self._given | self._set

    async def alias(self, name: str, model: str) -> None:
        """Give a model another name, or with an empty `model` give the name up; kept for the next start.

        Raises BadSetting.
        """
        if not name.strip() or len(name) > MOST:
            raise BadSetting("another name has 1 to {most} characters; choose one", most=MOST)
        if name in self._set:
            raise BadSetting("{name} is set by --alias or TOGETHER_ALIASES; change it there", name=quoted(name))
        if name in self.services.by_name:
            raise BadSetting("{name} is the name of a model that serves; choose another", name=quoted(name))
        self._given.pop(name, None)
        if model:
            self._given[name] = model
        try:
            await asyncio.to_thread(write_json, self._alias_file, self._given)
        except OSError as error:
            log.warning("the name is not remembered for the next start: %s", error)

    def meant(self, name: str) -> str:
        """What an alias stands for; any other name is itself."""
        return self.aliases.get(name, name)

    async def names(self) -> dict[str, str]:
        """All names that may be asked for, with what is loaded then: aliases, and the models that are known here."""
        known = await asyncio.to_thread(known_models, self._home)
        return {model.name: str(model.folder) for model in known if not model.fault} | self.aliases

    async def target(self, name: str) -> str | None:
        """What to load for a request's `model`; None for a name that nobody here gave to a model.

        Never a folder or a hub id of the request's own: a request may come from another machine.
        """
        meant = self.meant(name)
        if meant in self.services.by_name:
            return meant
        known = await self.names()
        return known.get(meant, known.get(name))

    def _service_of(self, target: str) -> Service | None:
        served = self.services.by_name.values()
        return next((each for each in served if target in (each.name, str(each.wanted.model))), None)

    # --- a request ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def held(self, target: str, within: float | None = None) -> AsyncIterator[Service]:
        """The service of that model, which is loaded where it is not, and stays as long as this block.

        Raises NotServing after `within` seconds, or with the reason why it cannot be loaded.
        """
        hold = Hold()
        try:
            yield await self._reach(target, hold, within)
        finally:
            hold.release()

    async def _reach(self, target: str, hold: Hold, within: float | None) -> Service:
        deadline = None if within is None else self.clock() + within
        service = self._service_of(target)
        if service is not None and service.takes_more:
            hold.take(service)
            return service
        demand = self.open.get(target) or self._begin(target)
        demand.holds.add(hold)
        try:
            while not demand.loaded.done():
                if deadline is not None and self.clock() >= deadline:
                    demand.missed = True
                    raise NotServing(say("try_again", state=self._progress()), COME_BACK)
                await asyncio.wait({demand.loaded}, timeout=LOOK_EVERY)
            return demand.loaded.result()
        finally:
            demand.holds.discard(hold)

    def _progress(self) -> Sentence:
        loading = self.services.starting.serving if self.services.starting else self.services.loading
        return loading.sentence if loading.model else say("step_room")

    def _begin(self, target: str) -> ModelDemand:
        demand = self.open[target] = ModelDemand(target, asyncio.get_running_loop().create_future())
        demand.loaded.add_done_callback(_heard)
        task = asyncio.create_task(self._serve(demand))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return demand

    # --- loading ------------------------------------------------------------------------------------------------------

    async def _serve(self, demand: ModelDemand) -> None:
        """Load what is demanded and give it to all who wait for it; end with a NotServing for them where that fails."""
        try:
            await self._load(demand)
        except TogetherError as error:
            failed = error if isinstance(error, NotServing) else NotServing(error.sentence, COME_BACK)
            demand.loaded.set_exception(failed)
        except Exception:  # a bug of ours, or of the machine: those who wait are told, later ones try again
            log.exception("loading %s on request failed", demand.target)
            demand.loaded.set_exception(NotServing(say("demand_failed", model=Path(demand.target).name), COME_BACK))
        finally:
            if self.open.get(demand.target) is demand:
                del self.open[demand.target]
            if not demand.loaded.done():
                demand.loaded.cancel()

    def _hand_over(self, demand: ModelDemand, service: Service) -> None:
        """At once, so that nothing happens to it between its load and their requests."""
        for hold in demand.holds:
            hold.take(service)
        if demand.missed:
            service.spared = self.clock() + SPARED
        del self.open[demand.target]
        demand.loaded.set_result(service)

    async def _load(self, demand: ModelDemand) -> None:
        """In turn with other demands; while it waits for others to go, those that need no room pass."""
        goers: list[Service] = []
        try:
            while demand.wanted:
                async with self._turn:
                    service = self._service_of(demand.target)
                    if service is None:
                        await self._end(goers)
                        service, goers = await self._placed(demand.target, goers)
                    if service is not None and service.takes_more:
                        self._hand_over(demand, service)
                        return
                if service is not None:  # it goes, and comes back
                    await self._changed()
                elif not await self._emptied(demand, goers):
                    goers = _stay(goers)
        finally:
            _stay(goers)

    async def _placed(self, target: str, before: list[Service]) -> tuple[Service | None, list[Service]]:
        """The model's service, or who is to go for it, who are asked to; those that were asked `before` may stay."""
        wanted = ModelLoad(target, PlanRequest(strategy=self._strategy), by_itself=True)
        try:
            return await self.orders.carry_out(wanted, beside=True), _stay(before)
        except NoRoom as error:
            goers = [self.services.by_name[name] for name in error.goers if name in self.services.by_name]
            if not goers:
                raise
        for goer in goers:
            goer.leaving += 1
        _stay(before)
        return None, goers

    async def _changed(self) -> None:
        changed = self.services.machines.membership.changed
        await changed.wait(changed.version, timeout=LOOK_EVERY)

    async def _emptied(self, demand: ModelDemand, goers: list[Service]) -> bool:
        """Whether nobody uses these services any more; False once their going is no longer what is needed.

        Who asks for them meanwhile waits for them to come back. Those that are used for long take requests in between.
        """
        quiet, since = dict.fromkeys((goer.name for goer in goers), self.clock()), self.clock()
        while demand.wanted and not any(goer.closed or goer.keep for goer in goers):
            now = self.clock()
            quiet |= {goer.name: now for goer in goers if goer.computing}
            if all(self._may_end(goer, now - quiet[goer.name]) for goer in goers):
                return True
            if now - since >= LEAVE_WITHIN:
                since = now + SPARED
                for goer in goers:
                    goer.spared = max(goer.spared, since)
            await self._changed()
        return False

    def _may_end(self, service: Service, quiet: float) -> bool:
        """A client that does not read on has a hold for as long as it likes, but its tokens are made."""
        used = service.computing or (service.holds > 0 and quiet < QUIET)
        return not used and self.clock() >= service.spared

    async def _end(self, goers: list[Service]) -> None:
        """End these services, but for those that were kept or ended since."""
        for goer in goers:
            if await self.orders.end(goer, partial(_may_still_go, goer)):
                log.info("%s went, so that another model has room", goer.name)
                self.swaps += 1

    # --- idle services ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Unload what nobody uses; runs until cancelled."""
        try:
            while True:
                await asyncio.sleep(IDLE_EVERY)
                await self.look_at_idle() if self._idle else None
        finally:
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def look_at_idle(self) -> None:
        """End each service that was not used for the time that was set, but for kept ones."""
        for service in tuple(self.services.by_name.values()):
            if service.busy:
                service.used = self.clock()
            idle = self.clock() - service.used
            if self._idle and idle >= self._idle and not self.orders.concern(service):
                with suppress(TogetherError):
                    if await self.orders.end(service, partial(self._is_idle, service)):
                        log.info("%s went: nobody used it for %.0f s", service.name, idle)

    def _is_idle(self, service: Service) -> bool:
        now = self.clock()
        return not service.keep and not service.busy and now - service.used >= self._idle and now >= service.spared


def _kept_aliases(file: Path) -> dict[str, str]:
    """A file that cannot be read is no reason to stop anything."""
    try:
        return read_json(file, dict[str, str]) or {}
    except BrokenFile as error:
        log.warning("other names of models are ignored: %s", error)
        return {}


def _may_still_go(goer: Service) -> bool:
    return not goer.keep and not goer.computing and not goer.takes_more


def _stay(goers: list[Service]) -> list[Service]:
    """They need not go; returns that nobody need."""
    for goer in goers:
        goer.leaving -= 1
    return []


def _heard(loaded: asyncio.Future[Service]) -> None:
    """Retrieve the error, which nobody may await any more."""
    if not loaded.cancelled():
        loaded.exception()
