"""What HTTP and the page need of a head, as a protocol. Knows no head: `together.head.head.Head` has these methods."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from together.engine.stats import EngineStats
from together.models.generation import SamplingDefaults
from together.planning.explain import Infeasible
from together.planning.problem import Problem
from together.planning.report import PlanReport
from together.planning.request import PlanRequest
from together.requests import AnswerChunk, ChatRequest, CompletionRequest
from together.settings import Settings
from together.view import ClusterView


class HeadPort(Protocol):
    """The head as its edges see it. Every method raises TogetherError and nothing else."""

    @property
    def settings(self) -> Settings: ...

    def view(self) -> ClusterView:
        """Nodes and serving state now."""
        ...

    def changes(self) -> AsyncIterator[ClusterView]:
        """The view at once, on every change (at most about 5 a second), and at least every second."""
        ...

    def sampling_defaults(self) -> SamplingDefaults:
        """What holds where a request for the model that serves says nothing of sampling."""
        ...

    async def problem(self, model: str | Path | None, request: PlanRequest) -> Problem:
        """The living cluster, measured, and a model (None: the one that serves), as the planner takes them."""
        ...

    async def plan(self, model: str | Path | None, request: PlanRequest) -> PlanReport | Infeasible:
        """Who would take which layers of a model (None: the one that serves), or what is missing."""
        ...

    async def load(self, model: str | Path | None = None, request: PlanRequest | None = None) -> None:
        """Load a model (a folder, a known name, a hub id), or the last one again; `request` says who takes what."""
        ...

    async def load_last(self) -> None:
        """Load what was applied last, also before a restart. Raises NotServing where nothing was."""
        ...

    async def load_again(self) -> None:
        """Load what was loaded last or failed to, also the demo that came by itself."""
        ...

    async def unload(self) -> None: ...

    async def rebalance(self) -> None:
        """Move to the plan that the view advises. Raises NotServing where it advises none."""
        ...

    async def drain(self, name: str, back: bool = False) -> None:
        """Give a node's layers to others while answers go on, and give it none; `back`: it may have some again."""
        ...

    def forget(self, name: str) -> None:
        """Plans may use all of a node's memory again, though it ran out. Raises BadPlan where nothing is to forget."""
        ...

    def chat(self, request: ChatRequest) -> AsyncIterator[AnswerChunk]:
        """The answers in pieces; closing it cancels. Raises NotServing, QueueFull, BadRequest, ContextTooLong."""
        ...

    def complete(self, request: CompletionRequest) -> AsyncIterator[AnswerChunk]:
        """As `chat`, for prompts as they are."""
        ...

    def stats(self) -> EngineStats | None:
        """The engine's counters and times; None while there is none."""
        ...

    async def start_local_node(self) -> None:
        """One more node on this machine."""
        ...

    async def stop_local_node(self) -> None:
        """Stop the newest node that this app started here. Raises AppError where none runs."""
        ...
