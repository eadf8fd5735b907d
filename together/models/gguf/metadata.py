"""Values of a GGUF file's metadata, checked. Keys are those of llama.cpp's `gguf-py/gguf/constants.py`. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from together.errors import BrokenModel, UnsupportedModel
from together.wording import quoted

_NO_GATE, _SIGMOID = 0, 2  # of `expert_gating_func`


@dataclass(frozen=True, slots=True)
class MetadataReader:
    """Values of one file, checked, by their names after the architecture's."""

    name: str
    metadata: Mapping[str, Any]
    architecture: str
    tensors: Mapping[str, tuple[int, ...]]  # shapes, by canonical names
    factors: Sequence[float] = ()  # by which the periods of rope are stretched

    def stores(self, part: str, layer: int = 0) -> bool:
        """Whether a layer has this tensor, as a bias: files say nothing of them in their metadata."""
        return f"model.layers.{layer}.{part}" in self.tensors

    def has(self, key: str) -> bool:
        return self._key(key) in self.metadata

    def count(self, key: str, default: int | None = None, *, some: bool = False) -> int:
        """A whole number above 0. Some files have one for each layer: they must be the same.

        `some`: only those that some layers have, of which it is the first.
        """
        value = self.metadata.get(self._key(key), default)
        if isinstance(value, list) and some:
            value = next((item for item in value if item != 0), 0)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if type(value) is not int or value <= 0:
            raise self._bad(key, value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.metadata.get(self._key(key), default)
        if type(value) not in (int, float) or not (value > 0 and isfinite(value)):
            raise self._bad(key, value)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.metadata.get(self._key(key), default)
        if type(value) is not bool:
            raise self._bad(key, value)
        return value

    def factor(self, key: str, usual: float) -> float:
        """A number; 0 stands for none."""
        return usual if self.metadata.get(self._key(key), 0) == 0 else self.number(key)

    def none_or(self, key: str) -> int | None:
        """A count; None where it is absent or 0."""
        return self.count(key) if self.metadata.get(self._key(key), 0) != 0 else None

    def of_layers(self, key: str, layers: int) -> list[int]:
        """A count for each layer, 0 where it has none of it; files may say one for all. Raises BrokenModel."""
        value = self.metadata.get(self._key(key))
        found: list[Any] = value if isinstance(value, list) else [value] * layers
        if len(found) < layers or any(type(item) is not int or item < 0 for item in found):
            raise self.unfit(key, found)
        return found[:layers]

    def unfit(self, key: str, value: object) -> BrokenModel:
        return BrokenModel(
            "{model} has {key} = {value} in its metadata; get this file again, or another one",
            model=self.name,
            key=self._key(key),
            value=quoted(value),
        )

    def sliding(self, layers: int, usual: int) -> list[bool]:
        """Which layers have a window: one flag for each, or of every so many all but the last."""
        value = self.metadata.get(self._key("attention.sliding_window_pattern"), usual)
        if isinstance(value, list):
            if len(value) != layers or any(type(item) is not bool for item in value):
                raise self._bad("attention.sliding_window_pattern", len(value))
            return value
        step = self.count("attention.sliding_window_pattern", usual)
        return [(layer + 1) % step != 0 for layer in range(layers)]

    def flags(self, key: str, layers: int) -> list[bool]:
        """One for each layer; some programs write numbers. Raises UnsupportedModel and BrokenModel."""
        value = self.metadata.get(self._key(key))
        if not isinstance(value, list) or len(value) != layers or any(item not in (True, False) for item in value):
            raise self._bad(key, value)
        return [bool(item) for item in value]

    def sigmoid(self, *, silent: bool = True) -> None:
        """Raises UnsupportedModel for a router that weighs experts in another way; `silent` files mean this one."""
        value = self.metadata.get(self._key("expert_gating_func"), _NO_GATE)
        if value not in ((_NO_GATE, _SIGMOID) if silent else (_SIGMOID,)):
            raise self.refuse(self._key("expert_gating_func"), value)

    def neutral(self, key: str) -> bool:
        """Whether a factor is absent, or changes nothing; 0 stands for none."""
        return self.metadata.get(self._key(key), 0) in (0, 1)

    def scaling(self) -> dict[str, Any]:
        """What is said of rope's scaling, by the last part of each key."""
        start = self._key("rope.scaling.")
        return {key[len(start) :]: value for key, value in self.metadata.items() if key.startswith(start)}

    def refuse(self, what: str, value: object) -> UnsupportedModel:
        return UnsupportedModel(
            "{model} has {what} {value}, which does not run here; choose another model",
            model=self.name,
            what=what,
            value=quoted(value),
        )

    def _bad(self, key: str, value: object) -> BrokenModel | UnsupportedModel:
        if isinstance(value, list) and value:
            return self.refuse(self._key(key), value[:3])
        return self.unfit(key, value)

    def _key(self, key: str) -> str:
        return f"{self.architecture}.{key}"
