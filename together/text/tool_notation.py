"""Gemma 4's notation of arguments, `{city:<|"|>Rome<|"|>,days:3}`: written, read as it arrives, and as a grammar."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass

from together.text.call_parts import Calls, Unread
from together.text.thinking import possible_beginning
from together.text.tool_formats import QUOTE, as_json, as_list, is_json, kinds_of, noted, properties_of

MOST_NESTED = 8  # objects within one another that a grammar follows by their schema
_SIGNS = {",": ", ", ":": ": "}
_WORD = re.compile(r"<|[^\s{}\[\],:<]+")
_NAMES = {"None": "null", "True": "true", "False": "false"}


def read_notation(unread: Unread, calls: Calls) -> Generator[None, None, bool]:
    """Pass on an object as JSON; return whether it ended."""
    depth = 0
    while True:
        text = unread.text
        if not text.strip() or (unread.may_become(QUOTE, 0) and not text.startswith(QUOTE)):
            if unread.ended:
                return False
            yield
        elif text.startswith(QUOTE):
            unread.take(len(QUOTE))
            calls.write('"')
            if not (yield from _read_string(unread, calls)):
                return False
            calls.write('"')
        elif text[0].isspace():
            unread.take(1)
        elif (sign := text[0]) in "{}[],:":
            unread.take(1)
            calls.write(_SIGNS.get(sign, sign))
            depth += (sign in "{[") - (sign in "}]")
            if depth == 0:
                return True
        else:
            yield from _read_word(unread, calls)


def _read_string(unread: Unread, calls: Calls) -> Generator[None, None, bool]:
    while (end := unread.text.find(QUOTE)) < 0:
        held = 0 if unread.ended else possible_beginning(unread.text, (QUOTE,))
        calls.write(_inside(unread.take(len(unread.text) - held)))
        if unread.ended:
            return False
        yield
    calls.write(_inside(unread.take(end)))
    unread.take(len(QUOTE))
    return True


def _read_word(unread: Unread, calls: Calls) -> Generator[None, None, None]:
    """A word before a colon is a key; another is JSON, or else a text without its quotes."""
    while True:
        found = _WORD.match(unread.text)
        assert found is not None, "all other letters are read before"
        rest = unread.text[found.end() :].lstrip()
        if rest or unread.ended:
            break
        yield
    word = unread.take(found.end())
    plain = _NAMES.get(word, word)
    calls.write(as_json(word) if rest.startswith(":") or not is_json(plain) else plain)


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
