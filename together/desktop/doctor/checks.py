"""`doctor`: what is wrong with this machine and its cluster, and how to fix it, as pure decisions over facts.

Knows not how the facts were found (doctor_facts.py) nor how they are shown (doctor_show.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from together.cluster_types import Device, DeviceProfile
from together.wording import size_text, sizes_text, times_text

LEAST_MEMORY = 2 * 10**9  # bytes that a stage of even a small model needs
LEAST_DISK = 5 * 10**9
OLDEST_DRIVER = 525  # NVIDIA's first for CUDA 12
APPLE_GPUS = ("mps", "gpu")


# --- facts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Nvidia:
    """An NVIDIA driver that answers, and its GPUs."""

    gpus: tuple[str, ...]
    driver: str  # "580.95.05"


@dataclass(frozen=True, slots=True)
class Measured:
    """A device at the shape in question: its profile, or why there is none."""

    device: str  # its key
    profile: DeviceProfile | None = None
    trouble: str = ""
    busy: float = 0.0  # the share of all processors that others used meanwhile, where it was enough to disturb


@dataclass(frozen=True, slots=True)
class MeasuredShape:
    """Whose shape was measured."""

    model: str
    layers: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Disk:
    """Where the app keeps models."""

    folder: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Ports:
    """What the app would listen on; `nodes` is the first free block, None where all are taken."""

    host: str
    page: int
    page_is_free: bool
    nodes: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Multicast:
    """Whether a record of our own came back, on the addresses that the app uses."""

    heard: bool
    network: bool  # of all interfaces; else of loopback alone
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A node as the running app sees it."""

    name: str
    state: str
    cause: str
    version: str


@dataclass(frozen=True, slots=True)
class NodeRoute:
    """A link as the app measured it: one way of a token's hidden state. None: they do not reach each other."""

    a: str
    b: str
    ms: float | None


@dataclass(frozen=True, slots=True)
class RingStage:
    """A stage of the ring that serves, in its order; `ms` is what a token takes there, 0 where that is not known."""

    place: str  # as in links: a node, or one of its devices
    layers: str
    ms: float


@dataclass(frozen=True, slots=True)
class App:
    """The app that runs here; `ring` is empty where no model is loaded, `place` is the head's in links."""

    url: str
    nodes: tuple[Neighbour, ...] = ()
    links: tuple[NodeRoute, ...] = ()
    ring: tuple[RingStage, ...] = ()
    place: str = ""
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that was looked at. Bytes and plain words."""

    version: str
    system: str  # "Linux", "Darwin", "Windows"
    processor: str  # "x86_64", "arm64", …, as this Python sees it
    emulated: bool  # the machine's own is another one
    libraries: dict[str, str]  # name → version, of those installed
    backend: str  # "" where none can be used
    backend_trouble: str
    nvidia: Nvidia | None
    devices: tuple[Device, ...]
    memory_total: int
    memory_free: int
    memory_usable: int  # free less the reserve: what nodes may grant
    busy_percent: float  # of the processors, before anything was measured
    shape: MeasuredShape
    measured: tuple[Measured, ...]
    disk: Disk
    ports: Ports
    multicast: Multicast
    app: App | None


# --- decisions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong, and what to do about it; together one sentence."""

    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}: {self.fix}"


def problems(facts: Facts) -> tuple[Diagnosis, ...]:
    """All that needs fixing, what is most fundamental first."""
    checks = (_emulation, _apple, _backend, _nvidia, _memory, _disk, _measuring, _ports, _multicast, _cluster, _links)
    return tuple(problem for check in checks for problem in check(facts))


def _emulation(facts: Facts) -> Iterator[Diagnosis]:
    if facts.emulated:
        yield Diagnosis(
            f"this Python is built for {facts.processor} and runs under emulation, at a fraction of the speed",
            "install Python for ARM (arm64), delete the folder .venv and run python3 launch.py with it",
        )


def _apple(facts: Facts) -> Iterator[Diagnosis]:
    apple = facts.system == "Darwin" and (facts.processor == "arm64" or facts.emulated)
    if apple and not facts.emulated and "mlx" not in facts.libraries:
        yield Diagnosis(
            "this is Apple Silicon and MLX, which uses its GPU best, is not installed", "run python3 launch.py again"
        )


def _backend(facts: Facts) -> Iterator[Diagnosis]:
    if facts.backend_trouble:
        yield Diagnosis(f"no device can be used ({facts.backend_trouble})", "run python3 launch.py again")


def _nvidia(facts: Facts) -> Iterator[Diagnosis]:
    """A GPU that torch does not see; with another backend nobody wants it."""
    if facts.nvidia is None or facts.backend != "torch" or any(d.name.startswith("cuda") for d in facts.devices):
        return
    gpus, torch = ", ".join(facts.nvidia.gpus) or "an NVIDIA GPU", facts.libraries.get("torch", "")
    major = facts.nvidia.driver.partition(".")[0]
    if major.isdecimal() and int(major) < OLDEST_DRIVER:
        fix = f"update the NVIDIA driver, which is {facts.nvidia.driver}, and run python3 launch.py again"
        yield Diagnosis(f"{gpus} is not used, as the driver is too old for torch {torch}", fix)
    elif "+cpu" in torch or (facts.system == "Windows" and "+cu" not in torch):
        fix = "run python3 launch.py again, which installs the build for this GPU"
        yield Diagnosis(f"{gpus} is not used, as torch {torch} is a build for CPUs alone", fix)
    else:
        fix = f"update the NVIDIA driver, which is {facts.nvidia.driver}, restart the machine and run this again"
        yield Diagnosis(f"{gpus} is there and torch {torch} cannot use it", fix)


def _memory(facts: Facts) -> Iterator[Diagnosis]:
    loaded = facts.app is not None and bool(facts.app.ring)  # then it is us who took it
    if facts.memory_usable < LEAST_MEMORY and not loaded:
        usable, total = sizes_text(facts.memory_usable, facts.memory_total)
        yield Diagnosis(
            f"only {usable} of {total} memory can be used for layers",
            "close other programs",
        )


def _disk(facts: Facts) -> Iterator[Diagnosis]:
    if facts.disk.free_bytes < LEAST_DISK:
        yield Diagnosis(
            f"only {size_text(facts.disk.free_bytes)} are free on the disk of {facts.disk.folder}",
            "delete what you do not need, models with together models rm, or set TOGETHER_HOME to another disk",
        )


def _measuring(facts: Facts) -> Iterator[Diagnosis]:
    for item in facts.measured:
        if item.trouble:
            yield Diagnosis(f"{item.device} was not measured ({item.trouble})", "remedy that and run this again")


def _ports(facts: Facts) -> Iterator[Diagnosis]:
    if facts.ports.nodes is None:
        yield Diagnosis(
            f"no block of ports for a node is free on {facts.ports.host}",
            "stop nodes that you do not need, or set TOGETHER_NODE_PORT to another first port",
        )


def _multicast(facts: Facts) -> Iterator[Diagnosis]:
    if facts.multicast.heard:
        return
    where = "on this network" if facts.multicast.network else "on loopback"
    why = f" ({facts.multicast.trouble})" if facts.multicast.trouble else ""
    fix = "allow UDP port 5353 in the firewall and leave VPNs, or name machines with --peer host:port"
    yield Diagnosis(f"multicast is silent {where}{why}, so machines do not find each other by themselves", fix)


def _cluster(facts: Facts) -> Iterator[Diagnosis]:
    if facts.app is None:
        return
    if facts.app.trouble:
        yield Diagnosis(f"the links of the running app were not measured ({facts.app.trouble})", "run this again")
    for node in facts.app.nodes:
        if node.state == "FAILED":
            yield Diagnosis(f"node {node.name} has failed", node.cause or "see its log")
        if node.version != facts.version:
            fix = "update both to the same version"
            yield Diagnosis(f"node {node.name} runs together {node.version} and this machine {facts.version}", fix)


def _links(facts: Facts) -> Iterator[Diagnosis]:
    """Links that cannot be used, and those of the ring that are slower than the stage they feed."""
    if facts.app is None:
        return
    for way in facts.app.links:
        if way.ms is None:
            fix = "open the ports that together status shows in both firewalls, and put both on one network"
            yield Diagnosis(f"{way.a} and {way.b} do not reach each other", fix)
    times = {frozenset((way.a, way.b)): way.ms for way in facts.app.links}
    before = facts.app.place
    for stage in facts.app.ring:
        ms = times.get(frozenset((before, stage.place)))
        if before != stage.place and ms is not None and 0 < stage.ms < ms:
            hop, compute = times_text(ms, stage.ms)
            yield Diagnosis(
                f"the link from {before} to {stage.place} takes {hop} for each token, longer than the "
                f"{compute} of the layers {stage.layers} that it feeds",
                "use a cable instead of Wi-Fi there, or give these layers to another machine",
            )
        before = stage.place
