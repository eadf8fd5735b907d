"""The shared words as plain data: layer ranges, rows, frames, plans, nodes. Knows no socket, tensor library or file."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, get_args

Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
DTYPE_BYTES: dict[Dtype, int] = {"fp32": 4, "bf16": 2, "fp16": 2}

BLOCK = 256  # KV tokens of a sequence are allocated in blocks of this size: growing copies, larger blocks waste memory
STEP_TOKENS = 256  # limit of one frame: larger products gain little, and a step's own tensors grow with it


# --- layers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class LayerRange:
    """Half-open range of decoder layers; the embedding goes with layer 0, norm + LM head with the last layer."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"layer range {self.start}:{self.stop} is empty or negative")

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"

    @classmethod
    def parse(cls, text: str) -> LayerRange:
        """`"0:8"` → LayerRange(0, 8). Raises ValueError for anything else."""
        start, colon, stop = text.strip().partition(":")
        if not colon or not start.isdecimal() or not stop.isdecimal():
            raise ValueError(f"a layer range is written start:stop, as 0:8, not {text[:20]!r}")
        return cls(int(start), int(stop))


def missing_ranges(layers: int, held: list[LayerRange]) -> tuple[LayerRange, ...]:
    """The ranges of `layers` layers that none of `held` covers."""
    gaps: list[LayerRange] = []
    reached = 0
    for item in sorted(item for item in held if item.start < layers):
        if item.start > reached:
            gaps.append(LayerRange(reached, item.start))
        reached = max(reached, item.stop)
    if reached < layers:
        gaps.append(LayerRange(reached, layers))
    return tuple(gaps)


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Names one exact model on every machine; `path` is only a hint (where the head found it)."""

    name: str
    path: str
    fingerprint: str  # sha256 over config.json, headers and samples of weights, by models/fingerprint.py
    layers: int
    revision: str = ""  # the hub's commit, where `name` is an id there


# --- sampling ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. `temperature` 0 is exactly greedy; `top_k` 0 and `top_p` 1 switch those off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """Where in a row the last stage samples, and how. `offsets` count from the row's first token."""

    offsets: tuple[int, ...]
    settings: Sampling
    prompt_length: int  # tokens of the sequence that are prompt: penalties over the answer start after them
    top_logprobs: int = -1  # -1: no log-probabilities at all; 0: of the drawn token; k: of the k best as well
    allowed: bytes | None = None  # bit i (low bit first) set: token i may be drawn; for all offsets


@dataclass(frozen=True, slots=True)
class Sampled:
    """One drawn token; `logprob` and `top` are of the raw logits, filled only when asked for."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


# --- what travels -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's part in a step. The position is the truth: a shard that holds more truncates to it."""

    sequence: int
    position: int  # tokens of the sequence that must be cached already
    token_ids: tuple[int, ...]
    sample: SampleRequest | None = None


@dataclass(frozen=True, slots=True)
class Fork:
    """Make `target` a copy of the first `length` cached tokens of `source`."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True)
class Orders:
    """Cache orders, applied before the rows of the same frame: forks first, then drops; both idempotent."""

    drops: tuple[int, ...] = ()
    forks: tuple[Fork, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """All rows of one step, packed in this order, and the orders that come with them."""

    rows: tuple[Row, ...] = ()
    orders: Orders = Orders()

    @property
    def tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Activation:
    """Hidden states, packed: `[tokens, width]` row-major little-endian elements of `dtype` in `data`."""

    dtype: Dtype
    tokens: int
    width: int
    data: bytes | memoryview

    def __post_init__(self) -> None:
        if self.tokens < 0 or self.width <= 0 or len(self.data) != self.nbytes:
            shape = f"[{self.tokens}, {self.width}]"
            raise ValueError(f"an activation {shape} of {self.dtype} does not have {len(self.data)} bytes")

    @property
    def nbytes(self) -> int:
        return self.tokens * self.width * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class RowResult:
    """A row's end: what was sampled at its offsets, or why one stage left it out."""

    sequence: int
    position: int
    sampled: tuple[Sampled, ...] = ()
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class StageTiming:
    """One stage's share of a step, in milliseconds: on its compute thread, and waiting for it."""

    compute_ms: float
    wait_ms: float
    sequences: int = 0  # whose tokens it holds after the step; the head's own books say how many it should be


class Fault(StrEnum):
    """What kind of trouble a stage has. Decisions read this; the cause beside it is for people."""

    OTHER = ""
    OUT_OF_MEMORY = "out_of_memory"  # the stage caught it, or the kernel says it killed this very process for it
    KILLED = "killed"  # ended by a signal that came from outside
    NODE_LOST = "node_lost"  # its node is silent or gone, or does not hold the stage any more
    SLOW = "slow"  # nothing moved for as long as a load may stand still


@dataclass(frozen=True, slots=True)
class Failure:
    """A step that failed: on which node and stage, and why, in words for a person."""

    node: str
    stage: int
    cause: str
    fault: Fault = Fault.OTHER


@dataclass(frozen=True, slots=True)
class Frame:
    """What travels on a link: one step's batch with an activation, and results or a failure gathered on the way."""

    step: int
    batch: Batch
    activation: Activation | None = None
    results: tuple[RowResult, ...] = ()
    failure: Failure | None = None
    timings: tuple[StageTiming, ...] = ()  # one entry per stage passed


@dataclass(frozen=True, slots=True)
class StreamKey:
    """Names one link's stream; frames of another ring, epoch or sender are refused. The head's index is -1."""

    ring: str
    epoch: int
    sender: int


HEAD = -1  # the head's index as a sender


# --- plans ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage of a plan: who runs which layers on what."""

    node: str  # node id
    backend: str  # "torch", "mlx", "checksum"
    device: str  # "cpu", "cuda:0", "mps", "gpu"
    layers: LayerRange
    memory_bytes: int  # for weights and KV cache together; the node grants exactly this


@dataclass(frozen=True, slots=True)
class Plan:
    """A model and its stages in ring order, and what it was sized for."""

    model: ModelRef
    stages: tuple[StagePlan, ...]
    context: int
    users: int
    dtype: Dtype


# --- nodes ------------------------------------------------------------------------------------------------------------


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


# --- bytes of models and measurements ---------------------------------------------------------------------------------


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


# --- what a head shows and takes --------------------------------------------------------------------------------------


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
    step: str = ""  # what goes on while LOADING, in words
    progress: float = 0.0
    cause: str = ""
    running: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A device that plans use less of, because a stage there ran out of memory."""

    node: str  # node id
    name: str  # of the node
    device: str  # "torch/cpu"
    memory_bytes: int  # what plans may use of it
    seconds: float  # until it counts no more
    text: str  # reason, end and remedy, in sentences


@dataclass(frozen=True, slots=True)
class ClusterView:
    """Everything a page or `status` shows, at one moment."""

    head: str
    nodes: tuple[NodeStatus, ...] = ()
    serving: Serving = Serving()
    advice: str = ""  # a better plan than the one that serves, as a sentence; empty where there is none
    offer: str = ""  # what was loaded last and is not now, in sentences; empty where there is none
    limits: tuple[MemoryLimit, ...] = ()
