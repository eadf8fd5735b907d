"""How models write tool calls, and what the values in a call mean as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

# What stands between the tags: {"name", "arguments"}, a list of these, name and arguments, or <function=name>.
Body = Literal["object", "list", "named", "function"]
FUNCTION = "<function="
ARGUMENTS_TAG = "[ARGS]"


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One way to write calls. `body` is what the model was taught; what is read is any body that can be told apart."""

    name: str
    openings: tuple[str, ...]  # the first one is what a forced call begins with
    closing: str = ""
    body: Body = "object"
    arguments: str = "arguments"  # the key of an object
    spaces: str = ""  # between a tag and the body, and between calls
    bare: bool = False  # an object at the beginning of the answer is a call without any tag
    single: bool = False  # the template takes one call in a turn
    short_ids: bool = False  # the template takes ids of exactly nine letters and digits

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags that a tokenizer may have as special tokens, which no decoder shows."""
        return (*self.openings, self.closing, ARGUMENTS_TAG, "[CALL_ID]")


HERMES = ToolFormat("hermes", ("<tool_call>",), "</tool_call>", spaces="\n")
CODER = ToolFormat("coder", ("<tool_call>", FUNCTION), "</tool_call>", "function", spaces="\n")
LLAMA = ToolFormat("llama", ("<|python_tag|>",), arguments="parameters", bare=True, single=True)
MISTRAL = ToolFormat("mistral", ("[TOOL_CALLS]",), body="list", short_ids=True)
MISTRAL_NAMED = ToolFormat("mistral-named", ("[TOOL_CALLS]",), body="named", short_ids=True)
NEMOTRON = ToolFormat("nemotron", ("<TOOLCALL>",), "</TOOLCALL>", "list")


def tool_format_of(template: str) -> ToolFormat | None:
    """The way that a template's own text shows; None if it shows none of these."""
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
    """A parameter's text as JSON of the type that its schema asks for; as a string where it is none."""
    kinds = kinds_of(schema)
    word = {"True": "true", "False": "false", "None": "null"}.get(text.strip(), text)  # as templates write them
    try:
        value = _loads(word)
        is_text = kinds == {"string"} or ("string" in kinds and value is not None)
        return as_json(text if is_text else value)
    except ValueError:
        return as_json(text)


def kinds_of(schema: object) -> set[str]:
    """The types that a schema names, also as one of several schemas; empty where it names none."""
    if not isinstance(schema, Mapping):
        return set()
    named, values = schema.get("type"), _listed(schema.get("enum"))
    kinds = {kind for kind in (named, *_listed(named)) if isinstance(kind, str)}
    choices = (*_listed(schema.get("anyOf")), *_listed(schema.get("oneOf")))
    if values and not kinds and not choices:
        return {"string"} if all(isinstance(value, str) for value in values) else set()
    return kinds.union(*map(kinds_of, choices))


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def text_of(quoted: str) -> str:
    try:
        text = str(_loads(quoted))
        text.encode()
        return text
    except ValueError:
        return ""


def call_of(text: str) -> tuple[str, str] | None:
    """Name and arguments of an object that is a call in some order of keys, or in OpenAI's own nesting."""
    try:
        value = _loads(text)
        inner = value.get("function") if isinstance(value, dict) else None
        value = inner if isinstance(inner, dict) else value
        name = inner if isinstance(inner, str) else value.get("name")
        arguments = _arguments_of(value.get("arguments", value.get("parameters")))
    except ValueError:
        return None
    return (name, arguments) if isinstance(name, str) and arguments is not None else None


def _arguments_of(value: object) -> str | None:
    """As JSON text of an object; None if they are something else. Raises ValueError for what is no JSON."""
    if isinstance(value, str):
        return value if isinstance(_loads(value), dict) else None
    return as_json({} if value is None else value) if value is None or isinstance(value, dict) else None


def _loads(text: str) -> Any:
    """Raises ValueError for what is no JSON, also for what only Python takes for it."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def as_json(value: object) -> str:
    """JSON that can be encoded; half a surrogate stays escaped. Raises ValueError for a number that JSON has not."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if text.isascii() or _is_encodable(text) else json.dumps(value)


def _is_encodable(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
