"""Plain data of a cluster: devices, addresses, stages, measurements."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from enum import StrEnum
from math import isfinite

from together.sentences import Sentence, say
from together.types import PLAIN, Dtype, Fault, LayerRange, ModelRef, PackedAs, StagePlan, Threads


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
class Endpoint:
    """Where a service listens: the addresses of one machine and a port; peers use the address that answers fastest.

    `id` is the name in its certificate; empty for a plain port of this machine, and where a person gave an address.
    """

    addresses: tuple[str, ...]
    port: int
    id: str = ""

    def beginning_with(self, address: str) -> Endpoint:
        """The same, with that one of its addresses first; as it is where it has no such one."""
        others = tuple(other for other in self.addresses if other != address)
        return self if len(others) == len(self.addresses) else Endpoint((address, *others), self.port, self.id)

    def __str__(self) -> str:
        """As `--peer` takes it, by its first address."""
        return address_text(next(iter(self.addresses), "nowhere"), self.port)


LOOPBACK = ("127.0.0.1", "::1", "localhost")  # what is bound to one of these nobody reaches from another machine


def is_address(text: str) -> bool:
    """Whether that is an IP address, and no name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def address_text(address: str, port: int) -> str:
    """`"192.168.1.20:47600"` or `"[::1]:47600"`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls a node: a head's id; other clusters and protocol versions are refused with both values."""

    head: str
    cluster: str
    protocol: int
    endpoint: Endpoint | None = None  # where the head listens, for a node that moves; None: it does not say
    name: str = ""  # of the head's machine
    page: int = 0  # the port of its page; 0: it has none
    version: str = ""  # of its program
    oldest: int = 0  # the oldest protocol that it still speaks; 0: its own alone
    made: int = 0  # Unix time of its program's commit; 0: not known


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
    exact: bool = False  # products of quantized matrices keep activations in `dtype`
    epoch: int = 0  # the ring's last one, from which the stage counts


@dataclass(frozen=True, slots=True)
class StageLink:
    """What a loaded stage must know to take its place in one epoch of its ring, which runs `model`.

    `sharing` stages of the ring compute on its processor, itself included. `previous` is the id of who pushes to it.
    """

    ring: str
    epoch: int
    index: int
    next: Endpoint
    model: ModelRef
    sharing: int = 1
    previous: str = ""  # empty where that is this machine's own, over a plain port


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
    converting: bool = False  # those bytes are made here, from the published weights
    cause: str = ""  # while FAILED
    waiting: str = ""  # whom its fetch waits for, as a phrase; empty while bytes come
    endpoint: Endpoint | None = None
    pid: int = 0
    capacity: int = 0  # KV tokens the shard can hold, in whole blocks
    block: int = 1  # tokens per KV block
    rewind: int | None = None  # None: unbounded
    shares: bool = False  # whether its forks share whole blocks with their sources
    per_sequence: int = 0  # tokens that each sequence counts for beside its own
    broken_epoch: int = -1  # the epoch in which its link to the next stage broke, while READY
    fault: Fault = Fault.OTHER  # while FAILED
    threads: Threads | None = None  # that its steps get, once it has a place in its ring; None: it does not choose


def require_figures(what: str, figures: Iterable[float]) -> None:
    """Raises ValueError unless all that another machine measured are finite and at least 0."""
    if not all(isfinite(figure) and figure >= 0 for figure in figures):
        raise ValueError(f"not a {what}")


@dataclass(frozen=True, slots=True)
class Strain:
    """How hard a node's machine worked in the last seconds. Shares are of all its processors, 0 to 1.

    Raises ValueError for a figure that is negative or not finite.
    """

    processors: float = 0.0  # in use by anybody
    own: float = 0.0  # of that, by this node and its stages
    paged: float = 0.0  # bytes per second that its stages read back from the disk: more than none is lack of memory

    def __post_init__(self) -> None:
        require_figures("strain", astuple(self))


class LinkKind(StrEnum):
    """What a machine is connected by."""

    UNKNOWN = ""
    CABLE = "cable"
    WIFI = "wifi"


@dataclass(frozen=True, slots=True)
class MachineLife:
    """What a node's machine does beside our work. Raises ValueError for a battery that is more than full."""

    lacking: int = 0  # bytes of main memory that other programs need and do not have
    battery: int | None = None  # percent that are left where it runs on its battery; None: it does not, or has none
    link: LinkKind = LinkKind.UNKNOWN

    def __post_init__(self) -> None:
        if self.battery is not None and not 0 <= self.battery <= 100:
            raise ValueError("not a battery")


@dataclass(frozen=True, slots=True)
class LetGo:
    """A form of a model that a full cache let go by itself."""

    model: str
    form: str  # for a person, as in Serving
    bytes: int
    at: float  # Unix time of its machine

    @property
    def sentence(self) -> Sentence:
        return say("let_go", model=self.model, form=self.form, size=self.bytes)


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
    owner: str = ""  # the head that started it; other heads use it only if a person gave them its address
    strain: Strain | None = None  # None: it does not say
    let_go: tuple[LetGo, ...] = ()  # by its cache in the last minutes, the newest last
    life: MachineLife | None = None  # None: it does not say
    made: int = 0  # Unix time of its program's commit; 0: not known


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
    """A unit of the model of this key (`ModelRef.key`), from byte `offset` on."""

    key: str
    unit: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class UnitDigest:
    """What a whole unit must be: its bytes, and their sha256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class MeasureOrder:
    """Measure a device at a model's shape."""

    backend: str
    device: str
    dtype: Dtype
    config: bytes  # its config.json
    packed: PackedAs = PLAIN


@dataclass(frozen=True, slots=True)
class KeptChoices:
    """What trials of a machine's kernels chose, by what was to be chosen; of one build: processor and libraries."""

    build: str
    chosen: dict[str, str]


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """What a device does at one model's shape and dtype, warm, with one token of one sequence.

    Raises ValueError for a figure that is negative or not finite: a plan with one would be nonsense.
    """

    ms_per_layer: float
    ms_per_stage: float  # fixed cost of a step beside its layers
    ms_per_head: float  # norm, LM head and drawing, on the last stage
    memory_bytes_per_s: float
    matrix_flops_per_s: float
    disk_bytes_per_s: float = 0.0  # 0: unknown
    overhead_bytes: int = 0  # of the device's memory: a stage process of this backend before it has weights
    ms_per_step: float = 0.0  # what its process does for a message: takes it, reads it, writes the next
    shared: float = 0.0  # the part of a step's time that several rows share, 0 to 1

    def __post_init__(self) -> None:
        require_figures("profile", astuple(self))
        if self.shared > 1:
            raise ValueError("not a profile: rows cannot share more than all of a step")


@dataclass(frozen=True, slots=True)
class HeadCost:
    """Milliseconds of a head's own between an answer and the next frame: for a frame, and for each row in it."""

    step_ms: float = 0.0
    row_ms: float = 0.0


UNKNOWN_PROFILE = DeviceProfile(0.0, 0.0, 0.0, 0.0, 0.0)  # for splits that do not depend on speed


@dataclass(frozen=True, slots=True)
class LinkOrder:
    """Time messages of `size` bytes to `target`."""

    target: Endpoint
    size: int


@dataclass(frozen=True, slots=True)
class LinkSpeed:
    """A link, measured: the round trip of an empty message, one way of a message of the asked size, bulk bytes/s.

    Raises ValueError for a figure that is negative or not finite.
    """

    rtt_ms: float
    hop_ms: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        require_figures("link", astuple(self))


TELLING = 4  # letters of an id that usually tell two nodes of one name apart


def unique_names(names: Mapping[str, str]) -> dict[str, str]:
    """Of nodes, by id: a name that several have gets as much of the id as tells all of them apart."""
    times = Counter(names.values())
    longest = max(map(len, names), default=0)
    for length in range(min(TELLING, longest), longest + 1):
        shown = {node: name if times[name] == 1 else f"{name}-{node[:length]}" for node, name in names.items()}
        if len(set(shown.values())) == len(names):
            return shown
    return {node: node for node in names}  # only where somebody calls a node so as to be taken for another one
