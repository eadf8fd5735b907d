"""An order to load a model, its retries, and the last one, which the app's home keeps for the next start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from together.cluster.membership import Membership
from together.cluster.survey import Speeds, Surveyor
from together.cluster_types import NodeStatus
from together.errors import NotEnoughMemory, NotServing, StageLost, TogetherError, Unreachable
from together.head.plan import NEED_SPEEDS, ModelHandle, PlannedModel, open_model, plan_model
from together.jsonfile import BrokenFile, read_json, write_json
from together.models.manifest import CONFIG
from together.planning.explain import Infeasible
from together.planning.problem import Assignment
from together.planning.request import PlanRequest, parse_request
from together.sentences import NOTHING, Sentence, say
from together.settings import Settings
from together.types import Dtype, Fault, LayerRange, ModelRef, Plan
from together.view import Serving, ServingState

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

VERSION: Literal[1] = 1
FILE = "last-plan.json"
BY_HAND = ("custom", "ratio")  # splits tied to specific machines, so not reusable elsewhere


@dataclass(frozen=True, slots=True)
class LastStage:
    """One stage of the last plan. A node keeps its id over restarts, but not always its name."""

    node: str
    name: str
    backend: str
    device: str
    layers: LayerRange

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.node, self.backend, self.device)


@dataclass(frozen=True, slots=True)
class KeptRequest:
    """A request as the file has it; what was split by hand is in the stages."""

    strategy: str = "recommend"
    users: int | None = None
    context: int | None = None
    max_memory: str | None = None
    tolerance: float | None = None

    @classmethod
    def of(cls, request: PlanRequest) -> KeptRequest:
        size = None if request.max_bytes is None else f"{request.max_bytes}B"
        return cls(request.strategy, request.users, request.context, size, request.tolerance)

    def request(self, usual: str) -> PlanRequest:
        """`usual` is the strategy where the split was made by hand."""
        most = self.max_memory
        size = f"{most}B" if most and most.isdecimal() else most  # older files have bytes without a unit
        return parse_request(
            usual,
            None if self.strategy in BY_HAND else self.strategy,
            users=self.users,
            context=self.context,
            max_memory=size,
            tolerance=self.tolerance,
        )


@dataclass(frozen=True, slots=True)
class LastPlan:
    """A model, what was asked for it, and what came of that."""

    version: Literal[1]
    model: ModelRef
    dtype: Dtype
    context: int
    users: int
    request: KeptRequest
    stages: tuple[LastStage, ...]
    keep: bool = False  # as in `Service`
    beside: tuple[LastPlan, ...] = ()  # of models that served beside it, in their order

    @property
    def place(self) -> str:
        """Where to load it from: the same files while they exist, else the hub, or what was made of them."""
        path, elsewhere = self.model.path, bool(self.model.revision or self.model.form)
        return self.model.name if elsewhere and not (Path(path) / CONFIG).is_file() else path

    @classmethod
    def of(cls, request: PlanRequest, plan: Plan, nodes: Iterable[NodeStatus], *, keep: bool = False) -> LastPlan:
        """What is loaded now; `request` is what was asked for."""
        names = {node.id: node.name for node in nodes}
        stages = (
            LastStage(stage.node, names.get(stage.node, stage.node), stage.backend, stage.device, stage.layers)
            for stage in plan.stages
        )
        asked = KeptRequest.of(request)
        return cls(VERSION, plan.model, plan.dtype, plan.context, plan.users, asked, tuple(stages), keep)

    def again(self, places: dict[tuple[str, str, str], str]) -> PlanRequest | None:
        """The very same split, where all its machines are among `places`: (node id, backend, device) → their names."""
        if any(stage.key not in places for stage in self.stages):
            return None
        split = tuple(Assignment(places[stage.key], stage.layers) for stage in self.stages)
        same = replace(self.request.request("custom"), form=self.model.form or None)
        return replace(same, strategy="custom", assignments=split, context=self.context, users=self.users)

    def gone(self, nodes: Iterable[NodeStatus]) -> list[str]:
        """The plan's machines that are missing now, by name."""
        there = {(node.id, device.backend, device.name) for node in nodes for device in node.devices}
        return list(dict.fromkeys(stage.name for stage in self.stages if stage.key not in there))


@dataclass(slots=True)
class LastPlans:
    """The last plan of one home folder. A file that cannot be read, or written, is no reason to stop anything."""

    home: Path
    last: LastPlan | None = None

    @classmethod
    def read(cls, home: Path) -> LastPlans:
        try:
            return cls(home, read_json(home / FILE, LastPlan))
        except BrokenFile as error:
            log.warning("the last plan is ignored: %s", error)
            return cls(home)

    def keep(self, last: LastPlan) -> None:
        if last == self.last:
            return
        self.last = last
        try:
            write_json(self.home / FILE, last)
        except OSError as error:
            log.warning("the plan is not remembered for the next start: %s", error)

    def offer(self, serving: Iterable[Serving], nodes: Iterable[NodeStatus]) -> Sentence:
        """What to load again; empty if there is no last plan, if it serves, or while something is being loaded."""
        all_of_them = tuple(serving)
        served = {each.plan.model.key for each in all_of_them if each.plan}
        settled = {ServingState.EMPTY, ServingState.READY, ServingState.FAILED} >= {each.state for each in all_of_them}
        if self.last is None or not settled or self.last.model.key in served:
            return NOTHING
        offer, beside = _offer(self.last, tuple(nodes)), tuple(each.model.name for each in self.last.beside)
        return say("last_beside", last=offer, models=beside) if beside else offer


def _offer(last: LastPlan, nodes: tuple[NodeStatus, ...]) -> Sentence:
    """Nodes have the names that they have now."""
    names = {node.id: node.name for node in nodes}
    shares = tuple(
        say("share", node=names.get(stage.node, stage.name), layers=str(stage.layers)) for stage in last.stages
    )
    if gone := tuple(last.gone(nodes)):
        return say("last_plan_gone", model=last.model.name, shares=shares, gone=gone)
    return say("last_plan", model=last.model.name, shares=shares)


MOST = 4  # tries in all
BREATH = 1.0  # seconds between two at least
BACK_WITHIN = 20.0  # seconds for a node that was lost to come back; then the others are planned with
PASSING = (Fault.NODE_LOST, Fault.SLOW, Fault.KILLED, Fault.OUT_OF_MEMORY)


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """A model and how it is to be split. With `last` by that very split, where its machines are there and it fits."""

    model: str | Path
    request: PlanRequest
    dtype: str = ""  # where the settings name none
    last: LastPlan | None = None
    by_itself: bool = False  # nobody asked for it, so it is not remembered

    @classmethod
    def again(cls, last: LastPlan, usual: str) -> ModelLoad:
        """`usual` is the strategy for other machines, where the split was made by hand."""
        request = replace(last.request.request(usual), form=last.model.form or None)
        return cls(last.place, request, last.dtype, last)

    @property
    def name(self) -> str:
        return self.last.model.name if self.last else Path(self.model).name

    @property
    def needs_speeds(self) -> bool:
        return self.request.strategy in NEED_SPEEDS

    def otherwise(self, request: PlanRequest) -> ModelLoad:
        """The same model by another request; form, context and users that it leaves open stay as they were asked."""
        before, form = self.request, self.request.form if request.form is None else request.form
        users = request.users or before.users
        sized = replace(request, context=request.context or before.context, users=users, form=form)
        return replace(self, request=sized, last=None)

    def elsewhere(self, usual: str) -> ModelLoad:
        """The same model on other nodes; a split by hand names its nodes, so `usual` replaces that strategy."""
        strategy = usual if self.request.strategy in BY_HAND else self.request.strategy
        return self.otherwise(replace(self.request, strategy=strategy, assignments=()))

    async def open(self, settings: Settings) -> ModelHandle:
        """Raises BadInput or Unreachable with a sentence."""
        settings = replace(settings, dtype=settings.dtype or self.dtype)
        return await open_model(self.model, settings, self.request.form)

    async def plan_model(
        self,
        opened: ModelHandle,
        settings: Settings,
        surveyor: Surveyor,
        show: Callable[[Sentence], None],
        speeds: Speeds,
        kept: Collection[str] = (),
    ) -> PlannedModel | Infeasible:
        """The plan; `show` gets the reason if it is not the last one; `kept` as in `plan_model`.

        Raises BadInput or NotServing.
        """
        same = self._same(opened, surveyor)
        if same is not None:
            found = await plan_model(opened, same, settings, surveyor, speeds, kept=kept)
            if isinstance(found, PlannedModel):
                return found
            show(say("step_other_split"))
        return await plan_model(opened, self.request, settings, surveyor, speeds, kept=kept)

    def _same(self, opened: ModelHandle, surveyor: Surveyor) -> PlanRequest | None:
        """Layers of another version of the model are other layers."""
        if self.last is None or self.last.model.key != opened.ref.key:
            return None
        places = surveyor.placements()
        return self.last.again({(place.node, place.device.backend, place.device.name): place.name for place in places})


@dataclass(slots=True)
class LoadRetries:
    """The tries of one load. `show` gets what is going on."""

    membership: Membership
    surveyor: Surveyor
    show: Callable[[Sentence], None]
    count: int = 1
    _first: TogetherError | None = None

    async def run(self, load: Callable[[], Awaitable[ResultT]], serves: Callable[[], bool]) -> ResultT:
        """What `load` returns once it succeeds. What it raises while something `serves` is raised: that goes on."""
        while True:
            try:
                return await load()
            except (StageLost, Unreachable, NotServing, NotEnoughMemory) as error:
                if serves():
                    raise
                await self.after(error)

    async def after(self, error: TogetherError) -> None:
        """Wait until another try makes sense. Raises `error` where none does, or the one that it followed from."""
        if not self._passes(error):
            raise self._first or error
        self._first = self._first or error
        if self.count >= MOST:
            raise error
        self.count += 1
        if isinstance(error, StageLost) and error.stage and error.fault is Fault.OUT_OF_MEMORY:
            self.surveyor.shortages.learn(error.stage, error.cause)
        self.show(say("step_retry", count=self.count, most=MOST, error=error.sentence))
        await self._wait(error)

    def _passes(self, error: TogetherError) -> bool:
        """What one try lost may still be missing at the next: no node, or no room without that node."""
        if isinstance(error, StageLost):
            return error.fault in PASSING or error.joining
        if isinstance(error, Unreachable):
            return True
        lost = not (isinstance(self._first, StageLost) and self._first.fault is Fault.OUT_OF_MEMORY)
        return self._first is not None and lost and isinstance(error, NotServing | NotEnoughMemory)

    async def _wait(self, error: TogetherError) -> None:
        """For the node that was lost, or for any news of the machines."""
        clock, changed = asyncio.get_running_loop().time, self.membership.changed
        deadline = clock() + BACK_WITHIN
        await asyncio.sleep(BREATH)
        node = self._node(error)
        while node and not self.membership.alive(node) and clock() < deadline:
            await changed.wait(changed.version, timeout=BREATH)

    def _node(self, error: TogetherError) -> str:
        lost = error if isinstance(error, StageLost) else self._first
        return lost.stage.node if isinstance(lost, StageLost) and lost.stage else ""
