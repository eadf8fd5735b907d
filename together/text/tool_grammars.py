"""The grammars that hold a model to its format of tool calls and to the tools' schemas.

They are in llguidance's dialect of lark (its docs/syntax.md). Schemas are `%json`. Tags that are tokens of their own
are written by id, because the library takes all added tokens for special ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from together.errors import BadRequest
from together.requests import Grammar, Tool, ToolUse
from together.text.tool_formats import ANSWER, NUMBER, ToolFormat, kinds_of, properties_of
from together.text.tool_notation import NotationRules, times

# At most one space after a comma or colon: where any white space is allowed, small models may write it without end.
# Schemas inside a lark grammar have this as their "x-guidance".
STYLE: dict[str, str | bool] = {"whitespace_flexible": False, "item_separator": ",[ ]?", "key_separator": ":[ ]?"}

_OPEN = frozenset(("allOf", "anyOf", "oneOf", "$ref", "patternProperties"))  # may name more properties
_ANY_TEXT = r"TEXT: /(.|\n)*/"
_TEXT_NOT_BARE = r"TEXT: /([^{\s](.|\n)*)?/"
_GAP = r"/[ \n]{0,2}/"
_NUMBER = "/[0-9]{1,4}/"


def call_grammar(
    tool_format: ToolFormat, use: ToolUse, ids: Mapping[str, int], answer: Grammar | None
) -> Grammar | None:
    """The grammar of an answer with tools; `answer` is the request's own grammar for text.

    `ids` are those of tags that are tokens of their own. The answer is a call if the request requires one. Otherwise it
    is a call or text by the `answer` schema, or with strict tools, text with calls that match their schemas, or
    anything.
    """
    writer = _Writer(tool_format, ids)
    if not use.tools:
        return writer.only(answer) if answer is not None and tool_format.answer else answer
    if use.required:
        tools = [replace(tool, strict=True) for tool in use.tools if use.name in ("", tool.name)]
        rules = [f"start: {writer.lead} {_several(use)}", *writer.calls(tools)]
    elif answer is not None and answer.kind == "json_schema":
        rules = [f"start: {writer.lead} ({_several(use)} | answer)", writer.answer(answer), *writer.calls(use.tools)]
    elif answer is None and any(tool.strict for tool in use.tools):
        rules = list(writer.among_text(use.tools))
    else:
        return answer
    return Grammar("lark", "\n".join(rules), param="tools")


def _several(use: ToolUse) -> str:
    return "calls" if use.parallel and not use.name else "one"


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes the rules of one format."""

    format: ToolFormat
    ids: Mapping[str, int]

    @property
    def lead(self) -> str:
        return f"({self._text(self.format.lead)})?" if self.format.lead else ""

    def only(self, answer: Grammar) -> Grammar:
        """The grammar of an answer without tools, as the format writes it."""
        if answer.kind == "lark":
            return answer
        if answer.kind != "json_schema":  # the rules of a channel would have to be woven into it
            text = "{field}: this model's answers have channels; hold them to a JSON schema instead"
            raise BadRequest(text, answer.param, field=answer.param)
        return Grammar("lark", f"start: {self.lead} answer\n{self.answer(answer)}", param=answer.param)

    def answer(self, answer: Grammar) -> str:
        """The rule `answer`, by a schema."""
        return f"answer: {self._text(self._answer)} %json {_schema(json.loads(answer.source))}"

    def calls(self, tools: Sequence[Tool]) -> Iterator[str]:
        """The rules `calls`, for some calls, and `one`, for exactly one."""
        begin, end = map(self._text, self.format.around)
        between = self._text(self.format.between)
        yield f"one: {begin} call {end}"
        # A template that takes no more than one call was never shown several.
        yield "calls: one" if self.format.single else f"calls: {begin} call ({between} call)* {end}"
        before, _, after = self.format.parts()
        yield f"call: {self._text(before)} body {self._text(after)}"
        yield from self._bodies(tools)

    def among_text(self, tools: Sequence[Tool]) -> Iterator[str]:
        """Any text with calls in it: a call has to follow the opening tag."""
        opening, (begin, end) = self.format.openings[0], self.format.around
        before, _, after = self.format.parts()
        if self.format.answer:
            yield from self._in_channels()
        elif self.format.bare:
            yield from ("start: TEXT | call", _TEXT_NOT_BARE)
        else:
            inside = self._loose(begin.removeprefix(opening)) + self._several_calls() + self._loose(end)
            inside = inside if begin else "call"
            if opening in self.ids:
                yield from (f"one: TEXT {self._text(opening)} {inside}", _ANY_TEXT)
            else:
                yield from (f"head[lazy]: TEXT {_quoted(opening)}", f"one: head {inside}", _ANY_TEXT)
            yield from ("start: one* rest", "rest: TEXT")
        before = before if self.format.answer else before.removeprefix(opening)
        yield f"call: {self._loose(before)} body {self._loose(after)}"
        yield from self._bodies(tools)

    def _in_channels(self) -> Iterator[str]:
        """An answer, or a call after any messages."""
        thought, said = (self._text(self._answer.replace("final", name)) for name in ("analysis", "commentary"))
        again = self._text(self.format.closings[0] + self.format.lead)
        yield f"start: {self.lead} turn"
        yield f"turn: {self._text(self._answer)} TEXT | ({thought} | {said}) TEXT {again} turn | call"
        yield _ANY_TEXT

    @property
    def _answer(self) -> str:
        """What comes before an answer."""
        return self.format.answer.partition(ANSWER)[0]

    def _several_calls(self) -> str:
        return f" call ({self._loose(self.format.between)} call)* "

    def _bodies(self, tools: Sequence[Tool]) -> Iterator[str]:
        """The rule `body`: a tool's name, and arguments by its schema."""
        _, middle, _ = self.format.parts()
        yield "body: " + " | ".join(f"tool{number}" for number in range(len(tools)))
        if self.format.noted:
            yield from NotationRules(self._text, _schema, {}).anything()
        for number, tool in enumerate(tools):
            rule, schema = f"tool{number}", _closed(tool.parameters)
            name = json.dumps(tool.name)[1:-1] if self.format.is_json else tool.name
            head = f"{rule}: {self._text(name + middle)}"
            if self.format.parameter:
                yield from self._parameters(rule, head, schema)
            elif self.format.noted:
                yield f"{head} {rule}a"
                yield from NotationRules(self._text, _schema, schema).value(f"{rule}a", schema)
            else:
                yield f"{head} %json {_schema(schema if tool.strict else {'type': 'object'})}"

    def _parameters(self, rule: str, head: str, schema: Mapping[str, object]) -> Iterator[str]:
        """Parameters in the schema's order, strings without quotes."""
        known, required = properties_of(schema), schema.get("required")
        needed = set(required) if isinstance(required, list) else set()
        names = [f"{rule}p{place}{'' if key in needed else '?'}" for place, key in enumerate(known)]
        yield f"{head} {' '.join(names)}"
        before, middle, _ = self.format.parameter_parts()
        for place, (key, value) in enumerate(known.items()):
            yield f"{rule}p{place}: {self._text(before + key + middle)} {rule}v{place}"
            yield self._value(f"{rule}v{place}", value, schema)

    def _value(self, rule: str, value: object, schema: Mapping[str, object]) -> str:
        """A string may be anything of its length; its pattern is ignored."""
        _, _, after = self.format.parameter_parts()
        end = self._text(after)
        known = value if isinstance(value, Mapping) else {}
        choices = known.get("enum")
        if "string" not in kinds_of(known):
            shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
            return f"{rule}: %json {_schema({**shared, **known})} {end}"
        if isinstance(choices, list) and choices:
            return f"{rule}: ({' | '.join(_quoted(str(choice)) for choice in choices)}) {end}"
        text = f"/(.|\\n){times(known)}/"
        # No text holds a tag that is a token; any other end has to be looked for within the text.
        return f"{rule}: {text} {end}" if end.startswith("<[") else f"{rule}[suffix={end}]: {text}"

    def _loose(self, text: str) -> str:
        """`text`, with any white space where it has some at its ends, or between its lines."""
        return f" {_GAP} ".join(map(self._text, text.split("\n")))

    def _text(self, text: str) -> str:
        """`text` as quoted pieces and tags that are tokens."""
        pieces = re.split("(" + "|".join(map(re.escape, (*self.ids, NUMBER))) + ")", text)
        return " ".join(filter(None, map(self._piece, pieces)))

    def _piece(self, piece: str) -> str:
        if piece == NUMBER:
            return _NUMBER
        return f"<[{self.ids[piece]}]>" if piece in self.ids else _quoted(piece)


def _closed(parameters: Mapping[str, object]) -> dict[str, object]:
    """The schema of an object without properties that it does not name, as a tool has no use for them."""
    is_open = bool(_OPEN.intersection(parameters)) or (bool(parameters) and "properties" not in parameters)
    return {"type": "object", **({} if is_open else {"additionalProperties": False}), **parameters}


def _schema(schema: Mapping[str, object]) -> str:
    """The schema with our options of the library; requests may not set them."""
    return json.dumps({**schema, "x-guidance": STYLE})


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
