"""What was last applied here, kept in the app's home, so that a head that starts anew can offer it.

Knows no cluster: it is told which machines are there, and loads nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from together.cluster_types import NodeStatus
from together.jsonfile import BrokenFile, read_json, write_json
from together.models.manifest import CONFIG
from together.planning.parse import parse_request
from together.planning.problem import Assignment
from together.planning.request import PlanRequest
from together.sentences import NOTHING, Sentence, say
from together.types import Dtype, LayerRange, ModelRef, Plan
from together.view import Serving, ServingState
from together.wording import layers_text

log = logging.getLogger(__name__)

VERSION: Literal[1] = 1
FILE = "last-plan.json"
BY_HAND = ("custom", "ratio")  # strategies whose layers are meant for the machines of then


@dataclass(frozen=True, slots=True)
class LastStage:
    """One stage of then. The node's id stays the same over restarts, its name need not."""

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
        size = None if request.max_bytes is None else str(request.max_bytes)
        return cls(request.strategy, request.users, request.context, size, request.tolerance)

    def request(self, usual: str) -> PlanRequest:
        """`usual` is the strategy where the split was made by hand."""
        return parse_request(
            usual,
            None if self.strategy in BY_HAND else self.strategy,
            users=self.users,
            context=self.context,
            max_memory=self.max_memory,
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

    @property
    def place(self) -> str:
        """Where to load it from: the very files of then while they are there, else the hub."""
        path, on_the_hub = self.model.path, bool(self.model.revision)
        return self.model.name if on_the_hub and not (Path(path) / CONFIG).is_file() else path

    @classmethod
    def of(cls, request: PlanRequest, plan: Plan, nodes: Iterable[NodeStatus]) -> LastPlan:
        """What is loaded now; `request` is what was asked for."""
        names = {node.id: node.name for node in nodes}
        stages = (
            LastStage(stage.node, names.get(stage.node, stage.node), stage.backend, stage.device, stage.layers)
            for stage in plan.stages
        )
        return cls(VERSION, plan.model, plan.dtype, plan.context, plan.users, KeptRequest.of(request), tuple(stages))

    def again(self, places: dict[tuple[str, str, str], str]) -> PlanRequest | None:
        """The very same split, where all its machines are among `places`: (node id, backend, device) → their names."""
        if any(stage.key not in places for stage in self.stages):
            return None
        split = tuple(Assignment(places[stage.key], stage.layers) for stage in self.stages)
        same = self.request.request("custom")
        return replace(same, strategy="custom", assignments=split, context=self.context, users=self.users)

    def anew(self, usual: str) -> PlanRequest:
        """What was asked for, for other machines; `usual` is the strategy where the split was made by hand."""
        return self.request.request(usual)

    def gone(self, nodes: Iterable[NodeStatus]) -> list[str]:
        """The machines of then that are not there, by name."""
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

    def offer(self, serving: Serving, nodes: Iterable[NodeStatus]) -> Sentence:
        """What to load again; empty if there is no last plan, if it serves, or while something is being loaded."""
        served = serving.plan.model.fingerprint if serving.plan else None
        settled = serving.state in (ServingState.EMPTY, ServingState.READY, ServingState.FAILED)
        if self.last is None or not settled or served == self.last.model.fingerprint:
            return NOTHING
        return _offer(self.last, tuple(nodes))


def _offer(last: LastPlan, nodes: tuple[NodeStatus, ...]) -> Sentence:
    """Nodes have the names that they have now."""
    names = {node.id: node.name for node in nodes}
    shares = tuple(
        say("share", node=names.get(stage.node, stage.name), layers=layers_text(stage.layers)) for stage in last.stages
    )
    if gone := tuple(last.gone(nodes)):
        return say("last_plan_gone", model=last.model.name, shares=shares, gone=gone)
    return say("last_plan", model=last.model.name, shares=shares)
