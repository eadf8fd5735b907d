"""What the picture of the machines is drawn from: nodes, rings, links and their figures at one moment. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from together.cluster.survey import THIS_MACHINE, Surveyor
from together.cluster_types import LinkKind, LinkSpeed, NodeState, NodeStatus, StageState, StageStatus
from together.engine.stats import EngineStats
from together.head.service import Service
from together.planning.held import held_bytes
from together.view import ClusterView, Serving


@dataclass(frozen=True, slots=True)
class PicturedStage:
    """Layers on a machine; `weights` is all that was granted where the rest is not known."""

    model: str
    ring: str
    start: int
    stop: int
    total: int  # layers of the model
    device: str
    state: str
    progress: float
    said: str  # what it waits for, or why it failed
    weights: int  # bytes
    cache: int  # bytes of conversations and of what steps need
    used: float  # the part of the cache that conversations have now
    ms: float  # computing for a token; 0: not known


@dataclass(frozen=True, slots=True)
class PicturedMachine:
    """A node. `total` is what its device has, `free` what may be granted of it now, 0 where nothing is known."""

    id: str
    name: str
    address: str
    state: str
    cause: str
    devices: tuple[str, ...]  # the best first, which `total` and `free` are of
    total: int
    free: int
    stages: tuple[PicturedStage, ...]
    notes: tuple[str, ...]
    wifi: bool


@dataclass(frozen=True, slots=True)
class PicturedRing:
    """A model with the machines of its stages in their order; empty while it has no plan."""

    model: str
    ring: str
    state: str
    sentence: str
    progress: float
    places: tuple[str, ...]  # ids of nodes
    running: int
    waiting: int
    tokens: int  # of answers, since it was loaded
    step_ms: float  # a token of an answer, as the last ones took
    link_ms: float  # of that, all links
    advice: str  # a better split


@dataclass(frozen=True, slots=True)
class PicturedLink:
    """A pair of nodes, or the app and a node, measured; `ms` is None where they do not reach each other."""

    one: str  # id of a node; empty is the app
    other: str
    ms: float | None  # for a token's hidden states, one way
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class MachinesPicture:
    """All of it. `offer` is what was loaded last and is not now, `locked` are machines with another join code."""

    machines: tuple[PicturedMachine, ...] = ()
    rings: tuple[PicturedRing, ...] = ()
    links: tuple[PicturedLink, ...] = ()
    offer: str = ""
    locked: tuple[str, ...] = ()
    on_demand: bool = False

    @property
    def calm(self) -> MachinesPicture:
        """Without the figures that change while answers are made."""
        rings = tuple(replace(ring, tokens=0, step_ms=0.0, link_ms=0.0) for ring in self.rings)
        return replace(self, rings=rings, machines=tuple(map(_calm, self.machines)))


def picture_of(
    view: ClusterView, services: Mapping[str, Service], links: Mapping[tuple[str, str], LinkSpeed | None]
) -> MachinesPicture:
    """`services` by the models' names; `links` by the ids of nodes, the app's own place by THIS_MACHINE."""
    stats = {name: service.engine.stats() for name, service in services.items()}
    return MachinesPicture(
        tuple(_machine(node, view, services, stats) for node in view.nodes),
        tuple(_ring(shown.serving, str(shown.advice), stats.get(shown.serving.model)) for shown in view.services),
        tuple(_link(pair, speed) for pair, speed in links.items()),
        str(view.offer),
        tuple(map(str, view.locked)),
        view.on_demand,
    )


def known_links(surveyor: Surveyor) -> dict[tuple[str, str], LinkSpeed | None]:
    """By two ids (or THIS_MACHINE), in order: what was measured last; None where they do not reach each other."""
    found: dict[tuple[str, str], tuple[float, LinkSpeed | None]] = {}
    for (node, other, _), (at, speed) in surveyor.links.items():
        pair = (min(node, other), max(node, other))
        if node != other and at >= found.get(pair, (at, None))[0]:
            found[pair] = at, None if surveyor.is_cut(node, other) else speed
    return {pair: speed for pair, (_, speed) in found.items()}


def _calm(machine: PicturedMachine) -> PicturedMachine:
    return replace(machine, free=0, stages=tuple(replace(stage, used=0.0, ms=0.0) for stage in machine.stages))


def _machine(
    node: NodeStatus, view: ClusterView, services: Mapping[str, Service], stats: Mapping[str, EngineStats]
) -> PicturedMachine:
    gone = node.state is NodeState.FAILED  # what it had is not what there is
    known = {service.loader.ring: service for service in services.values()}
    stages = tuple(_stage(stage, known.get(stage.ring), stats) for stage in node.stages)
    notes = [str(limit.text) for limit in view.limits if limit.node == node.id]
    notes += [str(note.text) for note in view.notes if note.node == node.id]
    notes += [str(let_go.sentence) for let_go in node.let_go]
    if view.version and node.version and node.version != view.version:
        notes.append(f"together {node.version} runs there, not {view.version}")
    first = node.devices[0] if node.devices and not gone else None
    return PicturedMachine(
        node.id,
        node.name,
        str(node.endpoint),
        node.state,
        node.cause,
        tuple(device.description or device.key for device in node.devices),
        max(first.total_bytes, node.memory_bytes) if first else 0,
        node.free_bytes if first else 0,
        () if gone else stages,
        tuple(notes),
        node.life is not None and node.life.link is LinkKind.WIFI,
    )


def _stage(stage: StageStatus, service: Service | None, stats: Mapping[str, EngineStats]) -> PicturedStage:
    weights, used, ms = stage.memory_bytes, 0.0, 0.0
    if service is not None:
        backend = stage.device.partition("/")[0]
        plan, engine = service.loader.plan, stats[service.name]
        held = held_bytes(service.opened.spec.stage_weights(stage.layers), plan.dtype, backend)
        weights = min(held, stage.memory_bytes)
        used = min(1.0, (engine.used_tokens + engine.cached_tokens) / max(engine.capacity, 1))
        places = [each.layers for each in plan.stages]
        if stage.layers in places and len(engine.stage_ms) == len(places):
            ms = engine.stage_ms[places.index(stage.layers)]
    return PicturedStage(
        stage.model,
        stage.ring,
        stage.layers.start,
        stage.layers.stop,
        stage.total_layers,
        stage.device,
        stage.state,
        round(stage.progress, 2),
        _said(stage),
        weights,
        stage.memory_bytes - weights,
        round(used, 2),
        round(ms, 2),
    )


def _said(stage: StageStatus) -> str:
    match stage.state:
        case StageState.LOADING:
            return stage.waiting
        case StageState.FAILED:
            return stage.cause
    return ""


def _ring(serving: Serving, advice: str, stats: EngineStats | None) -> PicturedRing:
    return PicturedRing(
        serving.model,
        serving.ring,
        serving.state,
        str(serving.sentence),
        round(serving.progress, 2),
        tuple(stage.node for stage in serving.plan.stages) if serving.plan else (),
        serving.running,
        serving.waiting,
        stats.generated_tokens if stats else 0,
        round(stats.step_ms, 2) if stats else 0.0,
        round(stats.link_ms, 2) if stats else 0.0,
        advice,
    )


def _link(pair: tuple[str, str], speed: LinkSpeed | None) -> PicturedLink:
    one, other = ("" if node == THIS_MACHINE else node for node in pair)
    if speed is None:
        return PicturedLink(one, other, None, 0.0)
    return PicturedLink(one, other, round(speed.hop_ms, 3), round(speed.bytes_per_s))
