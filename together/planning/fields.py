"""Objects of a cluster file, read key by key: each mistake is a sentence that names its place. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from typing import Any

from together.errors import BadSetting
from together.planning.units import Quantity
from together.sentences import NOTHING, Sentence, template

SHOWN = 60  # characters of a value in a sentence
LONGEST = 1000  # characters of a text, far above any name: what it is compared with takes time
LARGEST, LARGEST_COUNT = 1e18, 10**9  # far above anything real: products of a few stay finite
SMALLEST = 1e-6  # of what is divided by


@dataclass(frozen=True, slots=True)
class Fields:
    """An object of the file, its path for sentences, and the keys it may have. Raises BadSetting for anything else."""

    path: str
    data: Any
    known: tuple[str, ...]

    def __post_init__(self) -> None:
        where = self.path or "the cluster file"
        if not isinstance(self.data, dict):
            raise BadSetting("{where} must be an object with {known}", where=where, known=self.known)
        for key in self.data:
            if key not in self.known:
                raise BadSetting(
                    "{key} is not known; {nearest}{where} may have {known}",
                    key=self.name(shown_key(key)),
                    nearest=nearest(key, self.known),
                    where=where,
                    known=self.known,
                )

    def name(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def take(self, key: str, default: Any = None) -> Any:
        """`default` None: the key must be there."""
        if key not in self.data and default is None:
            raise BadSetting("{key} is missing", key=self.name(key))
        return self.data.get(key, default)

    def text(self, key: str, default: str | None = None) -> str:
        value = self.take(key, default)
        if not isinstance(value, str) or (key in self.data and not value.strip()):
            raise BadSetting("{key} must be a name, not {value}", key=self.name(key), value=shown(value))
        if len(value) > LONGEST:
            raise BadSetting("{key} must have at most {most} characters", key=self.name(key), most=LONGEST)
        return value

    def one_of(self, key: str, names: Collection[str], what: str) -> str:
        """`what`: the kind of thing that has these names."""
        name = self.text(key)
        if name not in names:
            raise BadSetting(
                "{key}: there is no {what} {name}{nearest}",
                key=self.name(key),
                what=template(what),
                name=shown_key(name),
                nearest=closing_nearest(name, names),
            )
        return name

    def number(self, key: str, default: float | None = None, unit: Quantity | None = None) -> float:
        """A finite number, at least 0; with a unit also text, as `120MB`. Whole ones stay exact."""
        return number_of(self.name(key), self.take(key, default), unit)

    def share(self, key: str) -> float:
        """A number from 0 to 1, by default 0."""
        value = self.number(key, 0)
        if value > 1:
            raise BadSetting("{key} must be at most 1, not {value}", key=self.name(key), value=shown(value))
        return value

    def each(
        self, key: str, count: int, default: float | None = None, unit: Quantity | None = None
    ) -> float | tuple[float, ...]:
        """One number, or a list of `count` numbers."""
        value = self.take(key, default)
        if not isinstance(value, list):
            return self.number(key, default, unit)
        name = f"{self.path}.{key}"
        if len(value) != count:
            wrong = "{key} has {count} numbers, and model.layers is {layers}"
            raise BadSetting(wrong, key=name, count=len(value), layers=count)
        return tuple(number_of(f"{name}[{i}]", item, unit) for i, item in enumerate(value))

    def more_than_zero(self, key: str, unit: Quantity) -> float:
        """As `number`, for what is divided by."""
        value = self.number(key, unit=unit)
        if value < SMALLEST:
            raise BadSetting("{key} must be more than 0, not {value}", key=self.name(key), value=shown(value))
        return value

    def whole(self, key: str, default: int | None = None, least: int = 0) -> int:
        value = self.take(key, default)
        number, name = number_of(self.name(key), value), self.name(key)
        if number != int(number) or not least <= number <= LARGEST_COUNT:
            wrong = "{key} must be a whole number, at least {least} and at most {most}, not {value}"
            raise BadSetting(wrong, key=name, least=least, most=LARGEST_COUNT, value=shown(value))
        return int(number)

    def items(self, key: str, required: bool = False) -> list[Any]:
        value = self.take(key, None if required else [])
        if not isinstance(value, list):
            raise BadSetting("{key} must be a list, not {value}", key=self.name(key), value=shown(value))
        return value


def number_of(name: str, value: object, unit: Quantity | None = None) -> float:
    """As `Fields.number`, of a value by itself; plain numbers stay as they are."""
    found = unit.read(value) if unit is not None and isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, int | float) or not _is_finite(found) or found < 0:
        how = NOTHING if unit is None else template(", or with its unit as {example}", example=unit.example)
        wrong = "{name} must be a number, at least 0{how}, not {value}"
        raise BadSetting(wrong, name=name, how=how, value=shown(value))
    if found > LARGEST:
        raise BadSetting("{name} must be at most {most:g}, not {value}", name=name, most=LARGEST, value=shown(value))
    return int(found) if found == int(found) else found


def _is_finite(value: float) -> bool:
    try:
        return isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def shown(value: object) -> str:
    """A value of the file as JSON writes it, cut; dates, which only TOML has, as text."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except ValueError:  # TOML has numbers in base 16, too, and Python does not write the longest of them in base 10
        return "a number of thousands of digits"
    return shown_key(text)


def shown_key(key: str) -> str:
    return key if len(key) <= SHOWN else key[: SHOWN - 3] + "..."


def nearest(word: str, known: Collection[str]) -> Sentence:
    """`did you mean studio?` as a part of a sentence, with a semicolon; empty where nothing is near."""
    near = near_names(word, known, 1)
    return template("did you mean {name}? ", name=near[0]) if near else NOTHING


def closing_nearest(word: str, known: Collection[str]) -> Sentence:
    """The nearest, or what there is, to end a sentence with."""
    near = near_names(word, known, 3)
    if near:
        return template("; the nearest: {names}", names=near)
    return template("; there are: {names}", names=tuple(known)[:8])


def near_names(word: str, known: Collection[str], most: int) -> tuple[str, ...]:
    """The names that are written most alike, the nearest first, whatever their case."""
    by_folded = {name.casefold(): name for name in known}
    found = get_close_matches(word.casefold()[:SHOWN], by_folded, most, 0.5)
    return tuple(by_folded[name] for name in found)
