"""What a node may give away of each device's memory, and to whom it gave it. Pure bookkeeping; measures nothing.

A grant is made before a stage starts and returned when its process is gone, so nothing is promised twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from together.errors import BadPlan, NotEnoughMemory
from together.types import Device, StageOrder, StagePlan
from together.wording import layers_text, sizes_text

StageName = tuple[str, int]  # ring, slot


@dataclass(slots=True)
class Grants:
    """`limits` are bytes per device key, fixed when the node starts."""

    node_name: str
    devices: tuple[Device, ...]
    limits: dict[str, int]
    _given: dict[StageName, tuple[str, int]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes of the first device, which plans use."""
        return self.limits[self.devices[0].key]

    def free(self, key: str) -> int:
        return self.limits[key] - sum(size for device, size in self._given.values() if device == key)

    def take(self, order: StageOrder) -> None:
        """Reserve what the order asks for. Raises BadPlan for an unknown device, NotEnoughMemory with both numbers."""
        stage = order.stage
        key = f"{stage.backend}/{stage.device}"
        if key not in self.limits:
            raise BadPlan(f"node {self.node_name} has no device {key}; it has {', '.join(self.limits)}")
        if stage.memory_bytes > self.free(key):
            raise NotEnoughMemory(self._too_little(stage, self.free(key)))
        self._given[order.ring, order.slot] = (key, stage.memory_bytes)

    def give_back(self, name: StageName) -> None:
        self._given.pop(name, None)

    def shown(self) -> tuple[Device, ...]:
        """The devices with what is free of each now."""
        return tuple(replace(device, free_bytes=self.free(device.key)) for device in self.devices)

    def _too_little(self, stage: StagePlan, free: int) -> str:
        need, have = sizes_text(stage.memory_bytes, free)
        return (
            f"node {self.node_name}: needs {need} for layers {layers_text(stage.layers)}, has {have} free; "
            "lower the context, give it fewer layers, or unload what it holds"
        )
