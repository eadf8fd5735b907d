"""What a model is offered: tools of several servers and functions of a conversation, under names that it can say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from together.errors import BadRequest
from together.requests import Grammar, Tool
from together.text.grammar import schema_fault
from together.tools.servers import ToolServer
from together.wording import cut, quoted

MOST_TOOLS = 64  # of one conversation: each is a part of every prompt
MOST_DESCRIPTION = 2000  # letters
MOST_SCHEMA = 20_000  # letters of JSON
MOST_EDITED = 100_000  # letters of what a user writes here
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_OTHER = re.compile(r"[^a-zA-Z0-9_-]")
EXAMPLE = '[{"name": "weather", "description": "…", "parameters": {"type": "object", "properties": {…}}}]'


@dataclass(frozen=True, slots=True)
class ChatTool:
    """A tool as the model has it. `server` is empty for a function, whose results the user gives."""

    tool: Tool
    server: str = ""
    name: str = ""  # as its server calls it
    asks: bool = True  # whether each call needs a yes


def offers(listed: Iterable[tuple[ToolServer, Sequence[Tool]]], functions: Sequence[Tool]) -> tuple[ChatTool, ...]:
    """Functions keep their names; those of servers get one that is free, of letters that formats of calls take."""
    made = [ChatTool(tool, name=tool.name) for tool in functions]
    taken = {tool.name for tool in functions}
    for server, tools in listed:
        for tool in tools:
            name = _free(tool.name, server.name, taken)
            taken.add(name)
            made.append(ChatTool(replace(tool, name=name), server.name, tool.name, not server.allows(tool)))
    return tuple(made[:MOST_TOOLS])


def _free(name: str, server: str, taken: set[str]) -> str:
    plain = _OTHER.sub("_", name)[:64] or "tool"
    longer = f"{server}_{plain}"[:60]
    tries = (plain, longer, *(f"{longer}_{number}" for number in range(2, len(taken) + 3)))
    return next(each for each in tries if each not in taken)


# --- what a server lists ----------------------------------------------------------------------------------------------


def usable(given: Sequence[Mapping[str, Any]]) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """The tools of a server's list that can be offered, and the names of the others. May take seconds."""
    found: dict[str, Tool] = {}
    odd: list[str] = []
    for each in given:
        name, description, parameters = (each.get(key) for key in ("name", "description", "parameters"))
        if not isinstance(name, str) or not name or len(name) > 200 or name in found:
            odd.append(cut(str(name)))
        elif not isinstance(parameters, dict) or fault_of(parameters):
            odd.append(cut(name))
        else:
            found[name] = Tool(name, str(description or "")[:MOST_DESCRIPTION], parameters)
    return tuple(found.values()), tuple(odd)


def fault_of(parameters: Mapping[str, Any]) -> str:
    """What is wrong with a tool's schema; empty where nothing is."""
    if parameters.get("type", "object") != "object":
        return "its type is not object"
    if len(json.dumps(parameters)) > MOST_SCHEMA:
        return f"it has more than {MOST_SCHEMA} letters"
    return schema_fault(dict(parameters))


# --- what a user writes -----------------------------------------------------------------------------------------------


def functions_of(text: str) -> tuple[Tool, ...]:
    """Functions as the editor has them: a list, each as OpenAI has it or without its wrapping. Raises BadRequest."""
    if not text.strip():
        return ()
    given = _json(text, "functions")
    made: list[Tool] = []
    for place, each in enumerate(given if isinstance(given, list) else [given], 1):
        spec = each.get("function", each) if isinstance(each, dict) else None
        if not isinstance(spec, dict):
            raise BadRequest("functions are a list as {example}", "functions", example=EXAMPLE)
        name, said, parameters = spec.get("name"), spec.get("description", ""), spec.get("parameters", {})
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            wants = "function {place} needs a name of 1 to 64 letters of a to z, digits, _ and -"
            raise BadRequest(wants, "functions", place=place)
        if name in (tool.name for tool in made):
            raise BadRequest("two functions are called {name}; rename one", "functions", name=quoted(name))
        if not isinstance(said, str):
            raise BadRequest("the description of {name} is a text", "functions", name=quoted(name))
        fault = fault_of(parameters) if isinstance(parameters, dict) else "it is no object"
        if fault:
            wants = "the parameters of {name} are no schema that a model can be held to ({fault}); change them"
            raise BadRequest(wants, "functions", name=quoted(name), fault=fault)
        made.append(Tool(name, said[:MOST_DESCRIPTION], parameters))
    if len(made) > MOST_TOOLS:
        raise BadRequest("there are more than {most} functions; take some out", "functions", most=MOST_TOOLS)
    return tuple(made)


def answer_schema(text: str) -> Grammar | None:
    """The schema of answers as the editor has it; None for no schema. Raises BadRequest."""
    if not text.strip():
        return None
    schema = _json(text, "schema")
    if not isinstance(schema, dict):
        raise BadRequest('a schema is an object, as {"type": "object", "properties": {…}}', "schema")
    if fault := schema_fault(schema):
        raise BadRequest("answers cannot be held to this schema ({fault}); change it", "schema", fault=fault)
    return Grammar("json_schema", json.dumps(schema))


def _json(text: str, field: str) -> Any:
    """Raises BadRequest with the place of the mistake."""
    if len(text) > MOST_EDITED:
        raise BadRequest("{field} has more than {most} letters; shorten it", field, field=field, most=MOST_EDITED)
    try:
        return json.loads(text)
    except RecursionError:
        raise BadRequest("{field} is nested too deeply", field, field=field) from None
    except json.JSONDecodeError as error:
        said = "{field} is no JSON in line {line}, letter {letter}: {reason}; mend it there"
        place = {"line": error.lineno, "letter": error.colno}
        raise BadRequest(said, field, field=field, reason=error.msg, **place) from None
