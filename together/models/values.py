"""Values of one config.json, checked. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from together.errors import BrokenModel, UnsupportedModel
from together.wording import quoted

MOST_SHOWN = 60  # characters of a value in an error
LARGEST = 10**9


@dataclass(frozen=True, slots=True)
class Values:
    """What the config.json of the model called `name` says; null is as good as absent."""

    name: str
    found: Mapping[str, Any]

    def count(self, key: str, default: int | None, most: int = LARGEST) -> int:
        """A number of things, from 1 on. Raises BrokenModel."""
        value = self.found.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None:
            value = default
        if type(value) is not int or not 0 < value <= most:
            raise bad_value(self.name, key, value)
        return value

    def count_or_none(self, key: str, default: int, most: int = LARGEST) -> int:
        """As `count`, where 0 is said by 0. Raises BrokenModel."""
        return 0 if self.found.get(key, default) == 0 else self.count(key, default, most)

    def number(self, key: str, default: float | None) -> float | None:
        """A positive number. Raises BrokenModel."""
        value = self.found.get(key)
        if value is None:
            return default
        if type(value) not in (int, float) or not isfinite(value) or value <= 0:
            raise bad_value(self.name, key, value)
        return float(value)

    def switch(self, key: str, default: bool = False) -> bool:
        """Raises BrokenModel."""
        value = self.found.get(key)
        if value not in (None, True, False):
            raise bad_value(self.name, key, value)
        return default if value is None else bool(value)

    def choice(self, key: str, default: str, known: Iterable[str]) -> str:
        """Raises UnsupportedModel for one that is not known."""
        value = self.found.get(key) or default
        if value not in known:
            raise UnsupportedModel(
                "{model} has {key} {found}; {known} run here",
                model=self.name,
                key=key,
                found=quoted(value, MOST_SHOWN),
                known=tuple(known),
            )
        return str(value)

    def numbers(self, key: str) -> list[int]:
        """A list of whole numbers; empty where it is absent. Raises BrokenModel."""
        listed = self.found.get(key) or []
        if not isinstance(listed, list) or not all(type(item) is int for item in listed):
            raise bad_value(self.name, key, listed)
        return list(listed)


def bad_value(model: str, key: str, value: object) -> BrokenModel:
    """The error for a value of config.json that is none."""
    return BrokenModel(
        "config.json of {model} has {key} = {value}; take config.json from where the model was published",
        model=model,
        key=key,
        value=quoted(value, MOST_SHOWN),
    )
