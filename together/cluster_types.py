"""Plain data of a cluster: devices, addresses, stages, measurements, and the view that a head shows of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from together.sentences import NOTHING, Sentence, say
from together.types import Dtype, Fault, LayerRange, ModelRef, Plan, StagePlan


class NodeState(StrEnum):
    IDLE = "IDLE"
    LOADING = "LOADING"
    READY = "READY"
    DRAINING = "DRAINING"
    FAILED = "FAILED"


class StageState(StrEnum):
    LOADING = "LOADING"
    READY = "READY"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Device:
    """Something that can hold a shard. Bytes are those a stage could use now."""

    backend: str
    name: str
    description: str
    total_bytes: int
    free_bytes: int

    @property
    def key(self) -> str:
        return f"{self.backend}/{self.name}"


@dataclass(frozen=True, slots=True)
class Placement:
    """A device that layers can be placed on, under the name that plans call it by."""

    name: str
    device: Device
    node: str = ""  # node id; empty in a program that runs its partitions without nodes
    machine: str = ""  # the node's


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service listens: the addresses of one machine and a port; peers use the address that answers fastest."""

    addresses: tuple[str, ...]
    port: int


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls a node: a head's id; other clusters and protocol versions are refused with both values."""

    head: str
    cluster: str
    protocol: int
    endpoint: Endpoint | None = None  # where the head listens, for a node that moves; None: it does not say


@dataclass(frozen=True, slots=True)
class RingName:
    """A ring and the head it belongs to; `slots` are stages of it, none means all."""

    ring: str
    head: str
    slots: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """A machine that gives away units of a model: the pieces that models/units.py cuts it into."""

    endpoint: Endpoint
    units: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StageOrder:
    """Everything a node must know to start a stage. `slot` names it in its ring as long as it lives.

    Its place in the ring may change with an epoch: StageLink gives it.
    """

    ring: str
    head: str
    slot: int
    model: ModelRef
    stage: StagePlan
    dtype: Dtype
    sources: tuple[Source, ...] = ()  # where to fetch what this machine lacks


@dataclass(frozen=True, slots=True)
class StageLink:
    """What a loaded stage must know to take its place in one epoch of its ring."""

    ring: str
    epoch: int
    index: int
    next: Endpoint


@dataclass(frozen=True, slots=True)
class StageStatus:
    """A stage as its node sees it. `capacity` and what follows are known once READY."""

    ring: str
    slot: int
    head: str
    model: str
    total_layers: int
    layers: LayerRange
    device: str
    state: StageState
    memory_bytes: int = 0  # what was granted
    progress: float = 0.0  # 0 to 1 while LOADING
    fetched_bytes: int = 0  # of the model's bytes that came from elsewhere
    fetch_bytes: int = 0  # of those that have to
    cause: str = ""  # while FAILED
    waiting: str = ""  # whom its fetch waits for, as a phrase; empty while bytes come
    endpoint: Endpoint | None = None
    pid: int = 0
    capacity: int = 0  # KV tokens the shard can hold, in whole blocks
    block: int = 1  # tokens per KV block
    rewind: int | None = None  # None: unbounded
    broken_epoch: int = -1  # the epoch in which its link to the next stage broke, while READY
    fault: Fault = Fault.OTHER  # while FAILED


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node's whole state; every heartbeat carries all of it, so the newest one is the truth."""

    id: str
    name: str
    machine: str
    endpoint: Endpoint
    protocol: int
    state: NodeState
    cause: str = ""
    devices: tuple[Device, ...] = ()
    stages: tuple[StageStatus, ...] = ()
    ports: tuple[int, ...] = ()  # first and last port of its block: the range to open in a firewall
    memory_bytes: int = 0  # all that this node may grant
    free_bytes: int = 0  # of that, what is left now
    version: str = ""
    peers: tuple[Endpoint, ...] = ()  # nodes that introduced themselves here: hints for heads that hear no multicast
    run: str = ""  # names this run of its process: another one after a restart


@dataclass(frozen=True, slots=True)
class Blob:
    """Plain bytes."""

    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Holding:
    """What a node has of a model: every unit of it, or some; `path` is local to it, empty where it has none."""

    path: str = ""
    units: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UnitRequest:
    """A unit of a model, from byte `offset` on."""

    fingerprint: str
    unit: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class UnitDigest:
    """What a whole unit must be: its bytes, and their sha256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class MeasureOrder:
    """Measure a device at a model's shape. `config` is its config.json."""

    backend: str
    device: str
    dtype: Dtype
    config: bytes


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """What a device does at one model's shape and dtype, warm, with one token of one sequence."""

    ms_per_layer: float
    ms_per_stage: float  # fixed cost of a step beside its layers
    ms_per_head: float  # norm, LM head and drawing, on the last stage
    memory_bytes_per_s: float
    matrix_flops_per_s: float
    disk_bytes_per_s: float = 0.0  # 0: unknown
    overhead_bytes: int = 0  # of the device's memory: a stage process of this backend before it has weights


UNKNOWN_PROFILE = DeviceProfile(0.0, 0.0, 0.0, 0.0, 0.0)  # for splits that do not depend on speed


@dataclass(frozen=True, slots=True)
class LinkOrder:
    """Time messages of `size` bytes to `target`."""

    target: Endpoint
    size: int


@dataclass(frozen=True, slots=True)
class LinkSpeed:
    """A link, measured: the round trip of an empty message, one way of a message of the asked size, bulk bytes/s."""

    rtt_ms: float
    hop_ms: float
    bytes_per_s: float


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
