"""Grammars that hold a model to its tools: it has to call one, or its calls have to match their schemas.

They are in llguidance's dialect of lark (its docs/syntax.md). Schemas are `%json`. Tags that are tokens of their own
are written by id, because the library takes all added tokens for special ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from together.requests import Grammar, Tool, ToolUse
from together.text.grammar import STYLE
from together.text.tool_formats import ARGUMENTS_TAG, ToolFormat, kinds_of, properties_of

Ids = Mapping[str, int]  # of tags that are tokens of their own

_OPEN = frozenset(("allOf", "anyOf", "oneOf", "$ref", "patternProperties"))  # may name more properties
_ANY_TEXT = r"TEXT: /(.|\n)*/"
_TEXT_NOT_BARE = r"TEXT: /([^{\s](.|\n)*)?/"


def call_grammar(tool_format: ToolFormat, use: ToolUse, ids: Ids, answer: Grammar | None) -> Grammar | None:
    """The grammar of an answer with tools; `answer` is the request's own grammar for text.

    The answer is a call if the request requires one. Otherwise it is a call or text by the `answer` schema, or with
    strict tools, text with calls that match their schemas, or anything.
    """
    if not use.tools:
        return answer
    if use.required:
        tools = [replace(tool, strict=True) for tool in use.tools if use.name in ("", tool.name)]
        rules = [f"start: {_several(use)}", *_calls(tool_format, tools, ids)]
    elif answer is not None and answer.kind == "json_schema":
        text = f"answer: %json {_schema(json.loads(answer.source))}"
        rules = [f"start: {_several(use)} | answer", text, *_calls(tool_format, use.tools, ids)]
    elif answer is None and any(tool.strict for tool in use.tools):
        rules = list(_among_text(tool_format, use, ids))
    else:
        return answer
    return Grammar("lark", "\n".join(rules), param="tools")


def _several(use: ToolUse) -> str:
    return "calls" if use.parallel and not use.name else "one"


def _calls(tool_format: ToolFormat, tools: Sequence[Tool], ids: Ids) -> Iterator[str]:
    """The rules `calls`, for some calls, and `one`, for exactly one."""
    opening, closing, spaces = (
        _tag(part, ids) for part in (tool_format.openings[0], tool_format.closing, tool_format.spaces)
    )
    if tool_format.bare:
        yield "one: body"
        yield "calls: one"  # its template takes no more
    elif tool_format.body == "list":
        yield f'one: {opening} "[" body "]" {closing}'
        yield f'calls: {opening} "[" body (", " body)* "]" {closing}'
    else:
        yield f"one: {opening} {spaces} body {spaces} {closing}"
        yield f"calls: one ({spaces} one)*"
    yield from _bodies(tool_format, tools, ids)


def _among_text(tool_format: ToolFormat, use: ToolUse, ids: Ids) -> Iterator[str]:
    """Any text with calls in it: a call has to follow the opening tag."""
    opening, closing = tool_format.openings[0], _tag(tool_format.closing, ids)
    gap = r"/[ \n]{0,2}/"
    if tool_format.bare:
        yield from ("start: TEXT | body", _TEXT_NOT_BARE)
    else:
        inside = f'"[" body (", " body)* "]" {closing}' if tool_format.body == "list" else f"{gap} body {gap} {closing}"
        if opening in ids:
            yield from (f"one: TEXT {_tag(opening, ids)} {inside}", _ANY_TEXT)
        else:
            yield from (f"head[lazy]: TEXT {_text(opening)}", f"one: head {inside}", _ANY_TEXT)
        yield from ("start: one* rest", "rest: TEXT")
    yield from _bodies(tool_format, use.tools, ids)


def _bodies(tool_format: ToolFormat, tools: Sequence[Tool], ids: Ids) -> Iterator[str]:
    yield "body: " + " | ".join(f"tool{number}" for number in range(len(tools)))
    for number, tool in enumerate(tools):
        schema = _closed(tool.parameters) if tool.strict else {"type": "object"}
        if tool_format.body == "function":
            yield from _function(number, tool.name, _closed(tool.parameters))
        elif tool_format.body == "named":
            yield f"tool{number}: {_text(tool.name)} {_tag(ARGUMENTS_TAG, ids)} %json {_schema(schema)}"
        else:
            head = f'{{"name": {json.dumps(tool.name)}, "{tool_format.arguments}": '
            yield f"tool{number}: {_text(head)} %json {_schema(schema)} {_text('}')}"


def _function(number: int, name: str, schema: Mapping[str, object]) -> Iterator[str]:
    """`<function=name>` with the parameters in the schema's order, strings without quotes."""
    known, required = properties_of(schema), schema.get("required")
    needed = set(required) if isinstance(required, list) else set()
    names = [f"tool{number}p{place}{'' if key in needed else '?'}" for place, key in enumerate(known)]
    yield f"tool{number}: {_text(f'<function={name}>' + chr(10))} {' '.join(names)} {_text('</function>')}"
    for place, (key, value) in enumerate(known.items()):
        yield f"tool{number}p{place}: {_text(f'<parameter={key}>' + chr(10))} tool{number}v{place}"
        yield _parameter(f"tool{number}v{place}", value, schema)


def _parameter(rule: str, value: object, schema: Mapping[str, object]) -> str:
    """A string may be anything of its length; its pattern is ignored."""
    end = _text("\n</parameter>\n")
    known = value if isinstance(value, Mapping) else {}
    choices = known.get("enum")
    if "string" not in kinds_of(known):
        shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        return f"{rule}: %json {_schema({**shared, **known})} {end}"
    if isinstance(choices, list) and choices:
        return f"{rule}: ({' | '.join(_text(str(choice)) for choice in choices)}) {end}"
    return f"{rule}[suffix={end}]: /(.|\\n){_times(known)}/"


def _times(schema: Mapping[str, object]) -> str:
    least, most = schema.get("minLength"), schema.get("maxLength")
    if not isinstance(least, int) and not isinstance(most, int):
        return "*"
    return f"{{{least if isinstance(least, int) else 0},{most if isinstance(most, int) else ''}}}"


def _closed(parameters: Mapping[str, object]) -> dict[str, object]:
    """The schema of an object without properties that it does not name, as a tool has no use for them."""
    is_open = bool(_OPEN.intersection(parameters)) or (bool(parameters) and "properties" not in parameters)
    return {"type": "object", **({} if is_open else {"additionalProperties": False}), **parameters}


def _schema(schema: Mapping[str, object]) -> str:
    """The schema with our options of the library; requests may not set them."""
    return json.dumps({**schema, "x-guidance": STYLE})


def _tag(tag: str, ids: Ids) -> str:
    if not tag:
        return ""
    return f"<[{ids[tag]}]>" if tag in ids else _text(tag)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
