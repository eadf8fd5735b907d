"""From machines, their network and a model to a planner's problem. Pure.

A layer takes the time to read its weights from memory, or to compute with them where that takes longer. Published
figures are peaks that nothing reaches, so shares of them are assumed. They are assumptions of ours, not measurements
of each kind; measured machines need none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf

from together.cluster_types import DeviceProfile
from together.errors import BadSetting
from together.planning.demand import Demand
from together.planning.network import OWN_HOP_MS, WIRES, Way, Wire, hop_ms
from together.planning.problem import Link, NodeProfile, Problem, Split

# Of the memory bandwidth, while one token is computed. Public measurements, bytes of the weights × tokens/s ÷ published
# bandwidth: M1 Max 58 % (llama.cpp issue 27525), M2 Pro 73 % in fp16 and 66 % in 4 bits, M4 86 %, i9-13900K with
# DDR5-6400 68 % (llama.cpp issue 34), RTX 3090 50 % on a model of 4 billion parameters.
REACHED = 0.65
REACHED_FLOPS = 0.5  # of the TFLOP/s, while a prompt is computed
LEAST_LAYER_MS = 0.5  # however small a layer is: frameworks start its dozen of operations one after another
STAGE_MS = 0.7  # of a step beside its layers, as measured on a processor
OVERHEAD_BYTES = 500_000_000  # of a stage process before its weights; measured on a processor: 0.41 GB


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine can do in practice. `inside` names the machine that it is a part of: a graphics card's PC."""

    name: str
    usable_bytes: float
    bytes_per_s: float
    flops_per_s: float
    wire: Wire = WIRES["gigabit ethernet"]
    inside: str = ""
    measured: bool = False
    layer_ms: float = 0.0  # on top of what each layer reads
    least_ms: float = LEAST_LAYER_MS
    stage_ms: float = STAGE_MS
    overhead_bytes: float = OVERHEAD_BYTES
    processor: str = ""  # this and what follows as NodeProfile's
    ms_per_step: float = 0.0
    shared: float = 0.0

    @classmethod
    def published(cls, name: str, usable_gb: float, gb_per_s: float, tflops: float) -> Machine:
        """By published figures: peaks, of which a share is reached."""
        return cls(name, usable_gb * 1e9, gb_per_s * 1e9 * REACHED, tflops * 1e12 * REACHED_FLOPS)

    @classmethod
    def of_profile(cls, name: str, profile: DeviceProfile, free_bytes: float, layer_bytes: float) -> Machine:
        """A device that was measured with layers of `layer_bytes`; what they took beside reading stays the same."""
        rate = max(profile.memory_bytes_per_s, 1e3 * layer_bytes / profile.ms_per_layer)
        return cls(
            name,
            free_bytes,
            rate,
            profile.matrix_flops_per_s,
            measured=True,
            layer_ms=max(profile.ms_per_layer - 1e3 * layer_bytes / rate, 0.0),
            least_ms=0.0,
            stage_ms=profile.ms_per_stage,
            overhead_bytes=profile.overhead_bytes,
            ms_per_step=profile.ms_per_step,
            shared=profile.shared,
        )

    @property
    def home(self) -> str:
        return self.inside or self.name

    def layer_time(self, read_bytes: float, flops: float) -> float:
        """Milliseconds of one token in one layer."""
        return max(self.layer_ms + 1e3 * max(read_bytes / self.bytes_per_s, flops / self.flops_per_s), self.least_ms)

    def node(self, demand: Demand) -> NodeProfile:
        return NodeProfile(
            self.name,
            self.layer_time(demand.read_bytes, demand.layer_flops),
            self.stage_ms,
            free_bytes=self.usable_bytes,
            reserve_bytes=self.overhead_bytes + demand.workspace_bytes,
            ms_per_head=1e3 * demand.size.head_bytes / self.bytes_per_s,
            processor=self.processor,
            ms_per_step=self.ms_per_step,
            shared=self.shared,
        )


def problem_of(
    machines: Sequence[Machine], demand: Demand, ways: Sequence[Way] = (), head: str | None = None
) -> Problem:
    """The problem of running a model on these machines for one user; `ways` count before the machines' networks."""
    by_name = {machine.name: machine for machine in machines}
    size = demand.state_bytes
    given = {frozenset((by_name[way.a].home, by_name[way.b].home)): way.hop_ms(size) for way in ways}
    links = [Link(a.name, b.name, _way(a, b, given, size, by_name)) for a, b in combinations(machines, 2)]
    usual = Counter(link.ms for link in links if link.ms is not None).most_common(1)
    hop = usual[0][0] if usual and usual[0][0] is not None else 0.0
    nodes = tuple(machine.node(demand) for machine in machines)
    apart = tuple(link for link in links if link.ms != hop)
    return Problem(demand.size, nodes, apart, hop, head or machines[0].name, smaller=demand.smaller)


def _way(
    a: Machine, b: Machine, given: dict[frozenset[str], float | None], size: float, by_name: dict[str, Machine]
) -> float | None:
    if a.home == b.home:
        return OWN_HOP_MS
    pair = frozenset((a.home, b.home))
    if pair in given:
        return given[pair]
    one, other = (by_name.get(machine.home, machine).wire for machine in (a, b))
    return hop_ms(one, other, size)


def prompt_seconds(machines: Sequence[Machine], split: Split, demand: Demand, tokens: int) -> float:
    """Until a prompt has gone through all stages once, computing alone: one after another."""
    by_name = {machine.name: machine for machine in machines}
    flops = tokens * demand.layer_flops
    return sum(len(share.layers) * flops / by_name[share.node].flops_per_s for share in split.shares)


def machines_of(problem: Problem) -> tuple[Machine, ...]:
    """The nodes of a measured file, for another model: by the bytes a second that its layers were read with.

    Raises BadSetting where that is not known.
    """
    layers = problem.model.layer_bytes
    mean = sum(layers) / len(layers)
    return tuple(_machine_of(node, mean, len(layers)) for node in problem.nodes)


def _machine_of(node: NodeProfile, layer_bytes: float, layers: int) -> Machine:
    free = node.free_bytes if node.free_bytes is not None else (node.max_layers or 0) * layer_bytes
    if node.max_layers == 0:
        return Machine(node.name, 0.0, 1.0, 1.0, measured=True)  # the head's, where no node runs
    if not layer_bytes or not node.ms_per_layer:
        raise BadSetting(
            "node {node} has no ms_per_layer or the model no layer_bytes, so its speed with another model is not known",
            node=node.name,
        )
    rate = 1e3 * layer_bytes / node.ms_per_layer
    return replace(
        Machine(node.name, free, rate, inf, measured=True),  # how fast it computes is not in the file
        least_ms=0.0,
        stage_ms=node.ms_per_stage,
        overhead_bytes=node.reserve_bytes,
        processor=node.processor,
        ms_per_step=node.ms_per_step,
        shared=node.shared,
    )
