"""Memory that this head has planned with, for stages that no node shows yet: two plans at once never count on the same.

Whoever plans and takes memory does both within `order`; what is promised counts as taken until the nodes show it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from together.cluster_types import Device, NodeStatus, StageState
from together.types import StagePlan


@dataclass(slots=True)
class Promises:
    """Those of one head, each for a ring or by another name."""

    order: asyncio.Lock = field(default_factory=asyncio.Lock)
    _stages: dict[str, tuple[StagePlan, ...]] = field(default_factory=dict)

    def make(self, name: str, stages: Iterable[StagePlan]) -> None:
        """In the place of what was promised by that name."""
        self._stages[name] = tuple(stages)

    def end(self, name: str) -> None:
        self._stages.pop(name, None)

    def left(self, node: NodeStatus, device: Device) -> Device:
        """A device of a node, without what is promised of it and not shown."""
        shown = [
            (stage.ring, stage.device, stage.layers) for stage in node.stages if stage.state is not StageState.FAILED
        ]
        promised = sum(
            stage.memory_bytes
            for name, stages in self._stages.items()
            for stage in stages
            if stage.node == node.id
            and f"{stage.backend}/{stage.device}" == device.key
            and (name, device.key, stage.layers) not in shown
        )
        return replace(device, free_bytes=max(0, device.free_bytes - promised)) if promised else device
