"""Random JSON schemas of bounded size, as programs ask for them. Knows no grammar library and no model."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

WORDS = ("name", "city", "kind", "size", "notes", "x", "is open", "größe", "unit", "tag", "item-2", "owner")
PATTERNS = ("^[a-z]{1,8}$", "^[A-Z]{2}-[0-9]{3}$", r"^\d{4}-\d{2}-\d{2}$", "^(red|green|blue)+$", "^[^ ]{2,6}$")
LEAVES = 10  # values that one answer can have, about: what 512 tokens are enough for


def random_schema(seed: int) -> Schema:
    """An object with closed, bounded values in it: every answer fits a few hundred letters."""
    maker = _Maker(random.Random(seed))
    schema = maker.object(depth=0)
    return schema | ({"$defs": maker.shared} if maker.shared else {})


class _Maker:
    def __init__(self, random_: random.Random) -> None:
        self._random = random_
        self._left = LEAVES
        self.shared: dict[str, Schema] = {}

    def object(self, depth: int) -> Schema:
        names = self._random.sample(WORDS, self._random.randint(1, 4))
        properties = {name: self.value(depth + 1) for name in names}
        required = [name for name in names if self._random.random() < 0.7]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def value(self, depth: int) -> Schema:
        self._left -= 1
        leaves = [self._string, self._string, self._integer, self._choice, self._boolean]
        nested = [self._array, self.object, self._any_of, self._shared]
        if depth > 2 or self._left < 1:
            return self._random.choice(leaves)(depth)
        return self._random.choice([*leaves, *nested])(depth)

    def _string(self, _: int) -> Schema:
        kind = self._random.randrange(4)
        if kind == 0:
            return {"type": "string", "pattern": self._random.choice(PATTERNS)}
        if kind == 1:
            return {"type": "string", "format": self._random.choice(["uuid", "ipv4"])}
        least = self._random.choice([0, 0, 3])
        return {"type": "string", "minLength": least, "maxLength": self._random.randint(4, 16)}

    def _integer(self, _: int) -> Schema:
        low = self._random.randint(-1000, 1000)
        return {"type": "integer", "minimum": low, "maximum": low + self._random.randint(0, 10**6)}

    def _choice(self, _: int) -> Schema:
        values = ["small", "large", 'a "quoted" one', "naïve 🙂", 7, -1.5, None, True]
        if self._random.random() < 0.2:
            return {"const": self._random.choice(values)}
        return {"enum": self._random.sample(values, self._random.randint(1, 5))}

    def _boolean(self, _: int) -> Schema:
        return {"type": self._random.choice(["boolean", "boolean", "null"])}

    def _array(self, depth: int) -> Schema:
        least = self._random.randint(0, 2)
        most = least + self._random.randint(0, 2)
        self._left -= most
        return {"type": "array", "items": self.value(depth + 1), "minItems": least, "maxItems": most}

    def _any_of(self, depth: int) -> Schema:
        return {"anyOf": [self.value(depth + 1) for _ in range(self._random.randint(2, 3))]}

    def _shared(self, depth: int) -> Schema:
        name = f"part{len(self.shared)}"
        self.shared[name] = {}  # its place, so that what it holds does not take its name
        self.shared[name] = self.object(depth)
        return {"$ref": f"#/$defs/{name}"}
