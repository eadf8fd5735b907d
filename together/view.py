"""What a head shows of its cluster: the nodes, the model that it serves, advice, limits. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from together.cluster_types import Endpoint, LetGo, NodeStatus
from together.sentences import NOTHING, Sentence, say
from together.types import Plan
from together.wording import titled


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
    since: float = 0.0  # Unix time at which it served first; 0: not yet
    form: str = ""  # that machines made of it, for a person: `4 bit`; empty as published
    sees: bool = False  # whether it takes pictures

    @property
    def sentence(self) -> Sentence:
        """The state for a person; wherever none is READY, also why."""
        match self.state:
            case ServingState.EMPTY:
                return say("no_model")
            case ServingState.LOADING:
                step = self.step or say("step_loading")
                return say("loading", model=self.model, step=step, done=self._done)
            case ServingState.READY:
                stages = len(self.plan.stages) if self.plan else 0
                busy = say("busy", running=self.running, waiting=self.waiting) if self.running else NOTHING
                ready = say("ready", model=titled(self.model, self.form), stages=stages, busy=busy)
                return say("changing", ready=ready, step=self.step) if self.step else ready
            case ServingState.RECOVERING:
                return say("recovering", model=self.model, step=self.step, done=self._done, cause=self.cause)
            case ServingState.WAITING:
                return say("waiting", model=self.model, cause=self.cause)
            case ServingState.FAILED:
                return self.cause or say("not_loaded", model=self.model)

    @property
    def _done(self) -> Sentence:
        return say("done", progress=self.progress) if self.progress else NOTHING


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A device that plans use less of, because a stage there ran out of memory."""

    node: str  # node id
    name: str  # of the node
    device: str  # "torch/cpu"
    memory_bytes: int  # what plans may use of it
    seconds: float  # until it counts no more
    text: Sentence  # reason, end and remedy


class NoteKind(StrEnum):
    """What a note about a machine is about."""

    MEMORY = "memory"  # other programs need what layers have
    BATTERY = "battery"
    LINK = "link"
    VERSION = "version"  # it runs another version of the program


@dataclass(frozen=True, slots=True)
class MachineNote:
    """What a person should know of a machine now, because it costs."""

    node: str  # node id
    kind: NoteKind
    text: Sentence


class PaceCause(StrEnum):
    """Why tokens take another time than planned."""

    NONE = ""  # they take about as long
    BUSY = "busy"  # other programs use a machine's processors
    PAGING = "paging"  # a machine lacks memory, and a stage waits for its disk
    LINKS = "links"  # messages take longer than when the links were measured
    FASTER = "faster"  # the machines were slower when they were measured
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class TokenPace:
    """What a token of a short text takes for one person alone: as the last answers had it, and as planned."""

    measured_ms: float
    expected_ms: float  # 0: the plan did not look at speeds
    cause: PaceCause
    node: str  # the name of the node that the cause is about; empty where it is about none
    text: Sentence


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One of the models that a head serves or loads."""

    serving: Serving
    advice: Sentence = NOTHING  # a better plan than the one that serves
    pace: TokenPace | None = None  # None: until the first answers
    keep: bool = False  # no other model may have its memory
    sharing: Sentence = NOTHING  # which models compute on its machines, too, and what that costs


@dataclass(frozen=True, slots=True)
class ClusterView:
    """Everything a page or `status` shows, at one moment."""

    head: str
    nodes: tuple[NodeStatus, ...] = ()
    serving: Serving = Serving()  # the first model's, as are `advice` and `pace`
    advice: Sentence = NOTHING  # a better plan than the one that serves
    offer: Sentence = NOTHING  # what was loaded last and is not now
    limits: tuple[MemoryLimit, ...] = ()
    endpoint: Endpoint | None = None  # where the head listens for nodes
    pace: TokenPace | None = None  # None: until the first answers
    notes: tuple[MachineNote, ...] = ()
    let_go: tuple[LetGo, ...] = ()  # by the head's own use of the cache; nodes say what they let go
    services: tuple[ServedModel, ...] = ()  # all models, in the order in which they came
    version: str = ""  # of the head's program; nodes say their own
    locked: tuple[Sentence, ...] = ()  # machines that were heard of and have another join code
    on_demand: bool = False  # whether a request loads the model that it names
