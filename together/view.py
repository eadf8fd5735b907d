"""What a head shows: the model it serves, its nodes, and what it advises."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from together.cluster_types import NodeStatus
from together.sentences import NOTHING, Sentence, say
from together.types import Plan


class ServingState(StrEnum):
    EMPTY = "EMPTY"  # no model was asked for
    WAITING = "WAITING"  # a model was asked for, nodes that could run it are not there yet
    LOADING = "LOADING"
    READY = "READY"
    RECOVERING = "RECOVERING"  # a part of the ring was lost; open answers wait, and go on
    FAILED = "FAILED"  # with a cause; load again


@dataclass(frozen=True, slots=True)
class Serving:
    """The model a head serves, or why it serves none."""

    state: ServingState = ServingState.EMPTY
    model: str = ""
    plan: Plan | None = None
    ring: str = ""
    step: Sentence = NOTHING  # what goes on while LOADING, RECOVERING, or READY and changing its plan
    progress: float = 0.0
    cause: Sentence = NOTHING  # why it is WAITING, RECOVERING or FAILED
    running: int = 0
    waiting: int = 0

    @property
    def sentence(self) -> Sentence:
        """The state for a person; wherever none is READY, also why."""
        match self.state:
            case ServingState.EMPTY:
                return say("no_model")
            case ServingState.LOADING:
                step = self.step or say("step_loading")
                return say("loading", model=self.model, step=step, progress=self.progress)
            case ServingState.READY:
                stages = len(self.plan.stages) if self.plan else 0
                ready = say("ready", model=self.model, stages=stages, running=self.running, waiting=self.waiting)
                return say("changing", ready=ready, step=self.step) if self.step else ready
            case ServingState.RECOVERING:
                step, progress = self.step, self.progress
                return say("recovering", model=self.model, step=step, progress=progress, cause=self.cause)
            case ServingState.WAITING:
                return say("waiting", model=self.model, cause=self.cause)
            case ServingState.FAILED:
                return self.cause or say("not_loaded", model=self.model)


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A device that plans use less of, because a stage there ran out of memory."""

    node: str  # node id
    name: str  # of the node
    device: str  # "torch/cpu"
    memory_bytes: int  # what plans may use of it
    seconds: float  # until it counts no more
    text: Sentence  # reason, end and remedy


@dataclass(frozen=True, slots=True)
class ClusterView:
    """Everything a page or `status` shows, at one moment."""

    head: str
    nodes: tuple[NodeStatus, ...] = ()
    serving: Serving = Serving()
    advice: Sentence = NOTHING  # a better plan than the one that serves
    offer: Sentence = NOTHING  # what was loaded last and is not now
    limits: tuple[MemoryLimit, ...] = ()
