"""Gemma 4's notation of arguments, `{city:<|"|>Rome<|"|>,days:3}`: written, read as it arrives, and as a grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass

from together.text.bare_texts import BareText
from together.text.call_parts import Calls, Unread
from together.text.thinking import possible_beginning
from together.text.tool_formats import (
    GEMMA,
    QUOTE,
    as_json,
    as_list,
    is_json,
    kinds_of,
    noted,
    properties_of,
    text_of,
    typed,
)

Reading = Generator[None, None, bool]
MOST_NESTED = 8  # objects within one another that a grammar follows by their schema
_MOST_WITHIN = 64  # objects and lists within one another that are read as such
_NAMES = {"None": "null", "True": "true", "False": "false"}
_ENDS = {"{": "}", "[": "]"}


def read_notation(unread: Unread, calls: Calls, schema: object) -> Reading:
    """Pass on an object as JSON; return whether it ended.

    Texts may lack their quotes, and most names have none: one that `schema` knows may hold whatever else divides.
    What such a text means, its schema says: see bare_texts.py.
    """
    return (yield from _Reader(unread, calls).value(schema))


@dataclass(frozen=True, slots=True)
class _Reader:
    unread: Unread
    calls: Calls

    def value(self, schema: object, end: str = "", within: object = None, depth: int = 0) -> Reading:
        """One value, in something of the schema `within` that ends with `end`; False where the answer ends first."""
        if not (yield from self._ready()):
            return False
        sign = self.unread.text[0]
        if self.unread.text.startswith(QUOTE):
            return (yield from self._quoted())
        if sign in _ENDS and depth < _MOST_WITHIN:
            return (yield from self._several(sign, schema, depth + 1))
        return (yield from self._bare(schema, end, within))

    def _several(self, sign: str, schema: object, depth: int) -> Reading:
        """An object or a list."""
        self.unread.take(1)
        self.calls.write(sign)
        end, comma = _ENDS[sign], ""
        while (yield from self._ready()):
            if (next_sign := self.unread.text[0]) == end:
                self.unread.take(1)
                self.calls.write(end)
                return True
            if next_sign == "," or (comma and next_sign in "}]"):
                self.unread.take(1)
                continue
            self.calls.write(comma)
            comma = ", "
            inner: object = schema.get("items") if isinstance(schema, Mapping) else None
            if sign == "{":
                name = yield from self._name(_properties(schema))
                if name is None:
                    return False
                inner = _properties(schema).get(name)
            if not (yield from self.value(inner, end, schema, depth)) or not (yield from self._up_to(end)):
                return False
        return False

    def _name(self, known: Mapping[str, object]) -> Generator[None, None, str | None]:
        """A property's name, and what comes between it and its value; None where the answer ends in it."""
        if self.unread.text.startswith(QUOTE):
            start = len(QUOTE)
            while (stop := self.unread.text.find(QUOTE, start)) < 0 and not self.unread.ended:
                yield
            name, end = self.unread.text[start : stop if stop >= 0 else None], max(stop, start) + len(QUOTE)
            self.unread.take(end if stop >= 0 else None)
        else:
            while (found := _bare_name(self.unread, known)) is None:
                yield
            name = self.unread.take(len(found)).rstrip()
            name = text_of(name) or name  # some write a name as JSON does
        self.calls.write(as_json(name))
        if not (yield from self._ready()):
            return None
        if self.unread.text[0] == ":":
            self.unread.take(1)
        self.calls.write(": ")
        return name

    def _bare(self, schema: object, end: str, within: object) -> Reading:
        """JSON, or else a text without its quotes, up to what divides it from the next."""
        known = _properties(within)
        names = (*known, *map(as_json, known))
        bare = BareText(end, names if end == "}" else None, _is_open(within), GEMMA.closings[0])
        while (stop := bare.stop(self.unread.text, self.unread.ended)) is None and not self.unread.ended:
            yield
        word = self.unread.take(stop).strip()
        plain = _NAMES.get(word, word)
        value = as_json(json.loads(word)) if word[:1] == '"' and is_json(word) else typed(word, schema)
        # A number keeps its digits, of which a float may have fewer.
        self.calls.write(value if value[:1] == '"' else plain)
        return stop is not None

    def _quoted(self) -> Reading:
        self.unread.take(len(QUOTE))
        self.calls.write('"')
        while (end := self.unread.text.find(QUOTE)) < 0:
            held = 0 if self.unread.ended else possible_beginning(self.unread.text, (QUOTE,))
            self.calls.write(_inside(self.unread.take(len(self.unread.text) - held)))
            if self.unread.ended:
                return False
            yield
        self.calls.write(_inside(self.unread.take(end)) + '"')
        self.unread.take(len(QUOTE))
        return True

    def _up_to(self, end: str) -> Reading:
        """Leave out what stands between a value and what divides it from the next."""
        while (yield from self._ready()):
            if self.unread.text[0] in (",", end):
                return True
            self.unread.take(1)
        return False

    def _ready(self) -> Reading:
        """Wait for a letter that is no space, and for what may become a quote; False where there is none."""
        while True:
            self.unread.text = self.unread.text.lstrip()
            text = self.unread.text
            if text and (text.startswith(QUOTE) or not self.unread.may_become(QUOTE, 0)):
                return True
            if self.unread.ended:
                return False
            yield


def _bare_name(unread: Unread, known: Mapping[str, object]) -> str | None:
    """A name at the beginning of the text, up to its colon: the longest known one, or up to the first colon.

    None while more text may make another of it.
    """
    text = unread.text
    whole = [name for name in known if text.startswith(name) and text[len(name) :].lstrip()[:1] == ":"]
    more = [
        name for name in known if name.startswith(text) or (text.startswith(name) and not text[len(name) :].strip())
    ]
    if not unread.ended and any(name not in whole for name in more):
        return None
    if whole:
        return max(whole, key=len)
    found = re.search("[:,}]", text)
    return text[: found.start()] if found else text if unread.ended else None


def _properties(schema: object) -> Mapping[str, object]:
    """Those of any of its choices."""
    if not isinstance(schema, Mapping):
        return {}
    found = dict(properties_of(schema))
    for choice in _choices(schema):
        found = {**_properties(choice), **found}
    return found


def _is_open(schema: object) -> bool:
    """Whether an object may have more properties than its schema names."""
    if not isinstance(schema, Mapping):
        return True
    objects = [choice for choice in _choices(schema) if _properties(choice)]
    return schema.get("additionalProperties") is not False and (not objects or any(map(_is_open, objects)))


def _choices(schema: Mapping[str, object]) -> tuple[object, ...]:
    return *as_list(schema.get("anyOf")), *as_list(schema.get("oneOf"))


def _inside(text: str) -> str:
    return as_json(text)[1:-1]


# --- a grammar --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NotationRules:
    """Rules of values by their schemas; `text` writes a literal, `schema` a schema of the library."""

    text: Callable[[str], str]
    schema: Callable[[Mapping[str, object]], str]
    root: Mapping[str, object]  # what references point into

    def value(self, rule: str, schema: object, depth: int = 0) -> Iterator[str]:
        known = self._found(schema)
        kinds, choices = kinds_of(known), known.get("enum")
        if isinstance(choices, list) and choices:
            yield f"{rule}: " + " | ".join(self.text(noted(choice)) for choice in choices)
            return
        if (several := [*as_list(known.get("anyOf")), *as_list(known.get("oneOf"))]) and depth <= MOST_NESTED:
            yield f"{rule}: " + " | ".join(f"{rule}c{place}" for place in range(len(several)))
            for place, each in enumerate(several):
                yield from self.value(f"{rule}c{place}", each, depth + 1)
            return
        if not kinds or depth > MOST_NESTED:
            yield f"{rule}: anything"
            return
        ways = []
        if "string" in kinds:
            ways.append(f"{rule}s")
            yield self._string(f"{rule}s", known)
        if "object" in kinds:
            ways.append(f"{rule}o")
            yield from self._object(f"{rule}o", known, depth)
        if "array" in kinds:
            ways.append(f"{rule}a")
            yield f'{rule}a: "[" ({rule}i ("," {rule}i)*)? "]"'
            yield from self.value(f"{rule}i", known.get("items"), depth + 1)
        if others := sorted(kinds - {"string", "object", "array"}):
            ways.append(f"%json {self.schema({**known, 'type': others})}")
        yield f"{rule}: " + " | ".join(ways)

    def anything(self) -> Iterator[str]:
        """The rule for what no schema tells."""
        yield f"anything: anytext | anylist | anyobject | %json {self.schema({'type': ['boolean', 'null', 'number']})}"
        yield self._string("anytext", {})
        yield 'anylist: "[" (anything ("," anything)*)? "]"'
        yield 'anyobject: "{" (anypair ("," anypair)*)? "}"'
        yield 'anypair: /[A-Za-z_][A-Za-z0-9_-]*/ ":" anything'

    def _string(self, rule: str, schema: Mapping[str, object]) -> str:
        quote, text = self.text(QUOTE), f"/(.|\\n){times(schema)}/"
        # No text holds a tag that is a token; any other end has to be looked for within the text.
        if quote.startswith("<["):
            return f"{rule}: {quote} {text} {quote}"
        return f"{rule}: {quote} {rule}t\n{rule}t[suffix={quote}]: {text}"

    def _object(self, rule: str, schema: Mapping[str, object], depth: int) -> Iterator[str]:
        """Named properties only, if there are some, in the order of the alphabet, as templates write them."""
        known, required = sorted(properties_of(schema).items()), schema.get("required")
        if not known and schema.get("additionalProperties") is not False:
            yield f"{rule}: anyobject"
            return
        needed = set(required) if isinstance(required, list) else set()
        yield f'{rule}: "{{" {rule}f0 "}}"'
        for place, (key, value) in enumerate(known):
            pair = f"{self.text(key + ':')} {rule}v{place} {rule}r{place + 1}"
            later = "" if key in needed else f" | {rule}f{place + 1}", "" if key in needed else f" | {rule}r{place + 1}"
            yield f"{rule}f{place}: {pair}{later[0]}"
            yield f'{rule}r{place}: "," {pair}{later[1]}'
            yield from self.value(f"{rule}v{place}", value, depth + 1)
        yield from (f'{rule}{kind}{len(known)}: ""' for kind in "fr")

    def _found(self, schema: object) -> Mapping[str, object]:
        """The schema, or what it refers to within the tool's."""
        for _ in range(MOST_NESTED):
            reference = schema.get("$ref") if isinstance(schema, Mapping) else None
            if not isinstance(reference, str):
                break
            schema = self.root
            for part in reference.removeprefix("#").strip("/").split("/"):
                schema = schema.get(part) if isinstance(schema, Mapping) else None
        return schema if isinstance(schema, Mapping) else {}


def times(schema: Mapping[str, object]) -> str:
    """How often a letter of a text may come, as grammars write it."""
    least, most = schema.get("minLength"), schema.get("maxLength")
    if not isinstance(least, int) and not isinstance(most, int):
        return "*"
    return f"{{{least if isinstance(least, int) else 0},{most if isinstance(most, int) else ''}}}"
