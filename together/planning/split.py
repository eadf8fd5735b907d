"""Plans: which node takes which layers. `uniform` and `custom` so far; pure, no clock, no sockets.

Nodes come in the order in which the ring should visit them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from together.errors import BadPlan, NotEnoughMemory
from together.models.spec import ModelSpec
from together.planning.memory import stage_memory
from together.planning.problem import Assignment
from together.planning.score import Constraints, Room, complaints, range_complaints
from together.types import Dtype, LayerRange, ModelRef, NodeStatus, Plan, StagePlan


@dataclass(frozen=True, slots=True)
class Sizing:
    """What a plan is made for: tokens of context, people at once, and the dtype of compute and cache."""

    context: int
    users: int
    dtype: Dtype


def uniform_ranges(layers: int, parts: int) -> tuple[LayerRange, ...]:
    """`layers` cut into `parts` ranges that differ by at most one layer, larger ones first; fewer if layers run out."""
    parts = min(parts, layers)
    if parts < 1:
        raise BadPlan("there is no node to take the layers; start one with: python3 launch.py node")
    small, extra = divmod(layers, parts)
    starts = [index * small + min(index, extra) for index in range(parts + 1)]
    return tuple(LayerRange(start, stop) for start, stop in pairwise(starts))


def check_ranges(ranges: tuple[LayerRange, ...], layers: int) -> None:
    """Raises BadPlan unless the ranges, in this order, are exactly layers 0 to `layers`."""
    for complaint in range_complaints(ranges, layers):
        raise BadPlan(str(complaint))


def make_plan(
    spec: ModelSpec,
    model: ModelRef,
    nodes: tuple[NodeStatus, ...],
    sizing: Sizing,
    ranges: tuple[LayerRange, ...] | None = None,
) -> Plan:
    """`ranges` on the nodes in order (`custom`), or equal parts on all of them (`uniform`).

    Raises BadPlan, or NotEnoughMemory for a stage that is larger than all that its node may use.
    """
    ranges = ranges or uniform_ranges(spec.layers, len(nodes))
    if len(ranges) > len(nodes):
        raise BadPlan(f"the plan has {len(ranges)} ranges and there are {len(nodes)} nodes; start more, or give fewer")
    shares = [Assignment(node.id, layers) for node, layers in zip(nodes, ranges, strict=False)]
    for complaint in complaints(shares, _terms(spec, nodes, sizing)):
        raise NotEnoughMemory(str(complaint)) if complaint.kind == "memory" else BadPlan(str(complaint))
    stages = tuple(_stage(spec, node, layers, sizing) for node, layers in zip(nodes, ranges, strict=False))
    return Plan(model, stages, sizing.context, sizing.users, sizing.dtype)


def _terms(spec: ModelSpec, nodes: tuple[NodeStatus, ...], sizing: Sizing) -> Constraints:
    def needs(layers: LayerRange) -> float:
        return stage_memory(spec, layers, sizing.dtype, sizing.context, sizing.users)

    # What others use of a node's memory may be free again by then: the node itself decides on that.
    rooms = {node.id: Room(node.name, node.memory_bytes) for node in nodes}
    return Constraints(spec.layers, rooms, needs, f" with a context of {sizing.context} for {sizing.users} users")


def _stage(spec: ModelSpec, node: NodeStatus, layers: LayerRange, sizing: Sizing) -> StagePlan:
    device = node.devices[0]
    memory = stage_memory(spec, layers, sizing.dtype, sizing.context, sizing.users)
    return StagePlan(node.id, device.backend, device.name, layers, memory)
