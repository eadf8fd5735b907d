"""What a call's texts mean: names, arguments and parameters as JSON for a client. Knows no tag and no stream."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn


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
