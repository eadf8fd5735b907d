"""An order to load a model, and its retries: a machine that is away for a moment is no reason to fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from together.cluster.membership import Membership
from together.cluster.survey import Speeds, Surveyor
from together.errors import NotEnoughMemory, NotServing, StageLost, TogetherError, Unreachable
from together.head.last_plan import BY_HAND, LastPlan
from together.head.model import ModelHandle, open_model
from together.head.plan import NEED_SPEEDS, PlannedModel, plan_model
from together.planning.explain import Infeasible
from together.planning.request import PlanRequest
from together.sentences import Sentence, say
from together.settings import Settings
from together.types import Fault

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
        return cls(last.place, last.anew(usual), last.dtype, last)

    @property
    def name(self) -> str:
        return self.last.model.name if self.last else Path(self.model).name

    @property
    def needs_speeds(self) -> bool:
        return self.request.strategy in NEED_SPEEDS

    def otherwise(self, request: PlanRequest) -> ModelLoad:
        """The same model by another request."""
        return replace(self, request=request, last=None)

    def elsewhere(self, usual: str) -> ModelLoad:
        """The same model on other nodes; a split by hand names its nodes, so `usual` replaces that strategy."""
        strategy = usual if self.request.strategy in BY_HAND else self.request.strategy
        return self.otherwise(replace(self.request, strategy=strategy, assignments=()))

    async def open(self, settings: Settings) -> ModelHandle:
        """Raises BadInput or Unreachable with a sentence."""
        return await open_model(self.model, replace(settings, dtype=settings.dtype or self.dtype))

    async def plan_model(
        self,
        opened: ModelHandle,
        settings: Settings,
        surveyor: Surveyor,
        show: Callable[[Sentence], None],
        speeds: Speeds,
    ) -> PlannedModel:
        """Who takes what; `show` is told why it is not as last time. Raises BadInput, NotEnoughMemory, NotServing."""
        same = self._same(opened, surveyor)
        if same is not None:
            found = await plan_model(opened, same, settings, surveyor, speeds)
            if isinstance(found, PlannedModel):
                return found
            show(say("step_other_split"))
        found = await plan_model(opened, self.request, settings, surveyor, speeds)
        if isinstance(found, Infeasible):
            raise NotEnoughMemory(found.sentence)
        return found

    def _same(self, opened: ModelHandle, surveyor: Surveyor) -> PlanRequest | None:
        """Layers of another version of the model are other layers."""
        if self.last is None or self.last.model.fingerprint != opened.ref.fingerprint:
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

    async def run(self, load: Callable[[], Awaitable[None]], serves: Callable[[], bool]) -> None:
        """Until `load` succeeds. What it raises while something `serves` is raised: that goes on."""
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
