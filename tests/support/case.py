"""What a test is told of a family's tiny model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """One configuration: `settings` are the config class's keywords over the common tiny shape."""

    name: str
    family: str
    settings: dict[str, Any] = field(default_factory=dict)
    cut: int = 2  # where the default suite cuts it: different layers on both sides
    backends: tuple[str, ...] = ("torch", "mlx")  # that run it
    packed: bool = True  # whether it runs in MLX's formats, too
    wide: dict[str, Any] = field(default_factory=dict)  # settings more, so that its matrices can be quantized

    rewinds: bool = True  # whether its layers can go back to an earlier token

    @property
    def layers(self) -> int:
        found: int = self.settings.get("num_hidden_layers", 4)
        return found

    def __str__(self) -> str:
        return self.name
