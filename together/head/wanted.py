"""What is to be loaded, from the order to a decision: a model by a strategy, or the last plan again. Loads nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from together.cluster.survey import Surveyor
from together.errors import NotEnoughMemory
from together.head.deciding import NEED_SPEEDS, Decision, decide
from together.head.last_plan import LastPlan
from together.head.model import Opened, open_model
from together.planning.infeasible import Missing
from together.planning.report import missing_text
from together.planning.request import PlanRequest
from together.settings import Settings


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model and how it is to be split. With `last` by that very split, where its machines are there and it fits."""

    model: str | Path
    request: PlanRequest
    dtype: str = ""  # where the settings name none
    last: LastPlan | None = None
    by_itself: bool = False  # nobody asked for it, so it is not remembered

    @classmethod
    def again(cls, last: LastPlan, usual: str) -> Wanted:
        """`usual` is the strategy for other machines, where the split was made by hand."""
        return cls(last.place, last.anew(usual), last.dtype, last)

    @property
    def name(self) -> str:
        return self.last.model.name if self.last else Path(self.model).name

    @property
    def needs_speeds(self) -> bool:
        return self.request.strategy in NEED_SPEEDS

    def otherwise(self, request: PlanRequest) -> Wanted:
        """The same model by another request."""
        return replace(self, request=request, last=None)

    async def open(self, settings: Settings) -> Opened:
        """Raises BadInput or Unreachable with a sentence."""
        return await open_model(self.model, replace(settings, dtype=settings.dtype or self.dtype))

    async def decide(
        self, opened: Opened, settings: Settings, surveyor: Surveyor, say: Callable[[str], None], *, measured: bool
    ) -> Decision:
        """Who takes what; `say` is told why it is not as last time. Raises BadInput, NotEnoughMemory, NotServing."""
        same = self._same(opened, surveyor)
        if same is not None:
            found = await decide(opened, same, settings, surveyor, measured=measured)
            if isinstance(found, Decision):
                return found
            say("planning anew: the last split does not fit any more")
        found = await decide(opened, self.request, settings, surveyor, measured=measured)
        if isinstance(found, Missing):
            raise NotEnoughMemory(missing_text(found))
        return found

    def _same(self, opened: Opened, surveyor: Surveyor) -> PlanRequest | None:
        """Layers of another version of the model are other layers."""
        if self.last is None or self.last.model.fingerprint != opened.ref.fingerprint:
            return None
        return self.last.again(surveyor.places)
