"""The formats in which models write tool calls, and the grammars that hold a model to them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

from together.requests import Grammar, Tool, ToolUse

# What is between the tags: {"name", "arguments"}, a list of these, a name and arguments, or <function=name>.
Body = Literal["object", "list", "named", "function"]
FUNCTION = "<function="
ARGUMENTS_TAG = "[ARGS]"


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One format of calls. `body` is what the model was taught; the reader accepts the others, too."""

    name: str
    openings: tuple[str, ...]  # a forced call begins with the first one
    closing: str = ""
    body: Body = "object"
    arguments: str = "arguments"  # the key of an object
    spaces: str = ""  # between a tag and the body, and between calls
    bare: bool = False  # an object at the beginning of the answer is a call, without a tag
    single: bool = False  # the template takes one call per message
    short_ids: bool = False  # the template takes ids of exactly nine letters and digits

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags: those that are special tokens, no decoder shows."""
        return (*self.openings, self.closing, ARGUMENTS_TAG, "[CALL_ID]")


HERMES = ToolFormat("hermes", ("<tool_call>",), "</tool_call>", spaces="\n")
CODER = ToolFormat("coder", ("<tool_call>", FUNCTION), "</tool_call>", "function", spaces="\n")
LLAMA = ToolFormat("llama", ("<|python_tag|>",), arguments="parameters", bare=True, single=True)
MISTRAL = ToolFormat("mistral", ("[TOOL_CALLS]",), body="list", short_ids=True)
MISTRAL_NAMED = ToolFormat("mistral-named", ("[TOOL_CALLS]",), body="named", short_ids=True)
NEMOTRON = ToolFormat("nemotron", ("<TOOLCALL>",), "</TOOLCALL>", "list")


def tool_format_of(template: str) -> ToolFormat | None:
    """The format that a template's source shows, None if it shows none of these."""
    if MISTRAL.openings[0] in template:
        return MISTRAL_NAMED if ARGUMENTS_TAG in template else MISTRAL
    if NEMOTRON.openings[0] in template:
        return NEMOTRON
    if HERMES.openings[0] in template:
        return CODER if FUNCTION in template else HERMES
    if LLAMA.openings[0] in template or '"parameters": ' in template:
        return LLAMA
    return None


def typed(text: str, schema: object) -> str:
    """A parameter's text as JSON of its schema's type, or as a JSON string if it is none."""
    kinds = kinds_of(schema)
    word = {"True": "true", "False": "false", "None": "null"}.get(text.strip(), text)  # as templates write them
    try:
        value = _loads(word)
        is_text = kinds == {"string"} or ("string" in kinds and value is not None)
        return as_json(text if is_text else value)
    except ValueError:
        return as_json(text)


def kinds_of(schema: object) -> set[str]:
    """The types that a schema names, directly or as one of several schemas; empty if it names none."""
    if not isinstance(schema, Mapping):
        return set()
    named, values = schema.get("type"), _listed(schema.get("enum"))
    kinds = {kind for kind in (named, *_listed(named)) if isinstance(kind, str)}
    choices = (*_listed(schema.get("anyOf")), *_listed(schema.get("oneOf")))
    if values and not kinds and not choices:
        return {"string"} if all(isinstance(value, str) for value in values) else set()
    return kinds.union(*map(kinds_of, choices))


def properties_of(schema: Mapping[str, object]) -> Mapping[str, object]:
    found = schema.get("properties")
    return found if isinstance(found, Mapping) else {}


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def text_of(quoted: str) -> str:
    """A JSON string's text; empty if it is no string that can be encoded."""
    try:
        text = str(_loads(quoted))
        text.encode()
        return text
    except ValueError:
        return ""


def call_of(text: str) -> tuple[str, str] | None:
    """Name and arguments of an object that is a call, with its keys in any order or in OpenAI's nesting."""
    try:
        value = _loads(text)
        inner = value.get("function") if isinstance(value, dict) else None
        value = inner if isinstance(inner, dict) else value
        name = inner if isinstance(inner, str) else value.get("name")
        arguments = value.get("arguments", value.get("parameters"))
        written = arguments if isinstance(arguments, str) else as_json({} if arguments is None else arguments)
        return (name, written) if isinstance(name, str) and isinstance(_loads(written), dict) else None
    except ValueError:
        return None


def _loads(text: str) -> Any:
    """Raises ValueError for what is not JSON, including Python's extensions of it."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def as_json(value: object) -> str:
    """JSON that can be encoded: lone surrogates are escaped. Raises ValueError for a number that JSON does not have."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return json.dumps(value)


# --- grammars ---------------------------------------------------------------------------------------------------------
#
# They are in llguidance's dialect of lark (its docs/syntax.md). Schemas are `%json`. Tags that are tokens of their own
# are written by id, because the library takes all added tokens for special ones.

Ids = Mapping[str, int]  # of tags that are tokens of their own

# At most one space after a comma or colon: where any white space is allowed, small models may write it without end.
# Schemas inside a lark grammar have this as their "x-guidance".
STYLE: dict[str, str | bool] = {"whitespace_flexible": False, "item_separator": ",[ ]?", "key_separator": ":[ ]?"}

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
