"""The formats in which models write tool calls, and the JSON in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

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
