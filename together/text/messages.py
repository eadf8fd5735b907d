"""Conversations as chat templates take them, and equivalent forms for templates that refuse one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from together.requests import Message, Tool, ToolCall
from together.text.tool_formats import HERMES, ToolFormat

BETWEEN = "\n\n"  # between texts that become one


def forms(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """The conversation as it is, then in forms that more templates take, each one once."""
    seen: list[list[Message]] = []
    others = (_merged(_systems_first(messages)), _merged(_late_as_user(messages)), _no_system(messages))
    for form in (list(messages), *others):
        if form not in seen:
            seen.append(form)
            yield form


def culprit(messages: Sequence[Message]) -> int | None:
    """Which message a template most likely refuses: calls that are no JSON object, a late system, a repeated role."""
    for index, message in enumerate(messages):
        if not all(_is_object(call.arguments) for call in message.tool_calls):
            return index
    for index in range(1, len(messages)):
        roles = messages[index - 1].role, messages[index].role
        if roles[1] == "system" or (roles[0] == roles[1] and roles[1] != "tool"):
            return index
    return None


def _is_object(arguments: str) -> bool:
    try:
        return isinstance(json.loads(arguments or "{}"), dict)
    except (ValueError, RecursionError):
        return False


def _systems_first(messages: Sequence[Message]) -> list[Message]:
    """All system messages at the beginning are one."""
    first = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    return [*_one_system(messages[:first]), *messages[first:]]


def _late_as_user(messages: Sequence[Message]) -> list[Message]:
    """A later system message begins the next turn of the user, or is one where none follows."""
    leading = _systems_first(messages)
    done: list[Message] = []
    for index, message in enumerate(leading):
        late = message.role == "system" and index > 0
        done.append(replace(message, role="user") if late else message)
    return done


def _no_system(messages: Sequence[Message]) -> list[Message]:
    """The system's text begins the first turn of the user."""
    turns = _late_as_user(messages)
    if turns and turns[0].role == "system":
        turns = [replace(turns[0], role="user"), *turns[1:]]
    return _merged(turns)


def _one_system(systems: Sequence[Message]) -> Iterator[Message]:
    if systems:
        yield replace(systems[0], content=_joined(system.content for system in systems))


def _merged(messages: Iterable[Message]) -> list[Message]:
    """Turns of one role that follow one another are one; those of tools, and with calls, stay apart."""
    runs: list[list[Message]] = []
    for message in messages:
        before = runs[-1][-1] if runs else None
        if (
            before is None
            or before.role != message.role
            or message.role == "tool"
            or before.tool_calls
            or message.tool_calls
        ):
            runs.append([message])
        else:
            runs[-1].append(message)
    return [run[0] if len(run) == 1 else _one(run) for run in runs]


def _one(run: Sequence[Message]) -> Message:
    reasoning = _joined(message.reasoning for message in run)
    return replace(run[0], content=_joined(message.content for message in run), reasoning=reasoning)


def _joined(texts: Iterable[str]) -> str:
    return BETWEEN.join(filter(None, texts))


Turn = dict[str, object]

_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
_HOW = f"""\
You can call the functions below where that helps; otherwise answer as usual. For each call write nothing but
{HERMES.openings[0]}
{{"name": "the function's name", "arguments": {{"a parameter": "its value"}}}}
{HERMES.closing}
What a call returned comes back as <tool_response>…</tool_response>.

The functions, with JSON schemas of their arguments:
"""


def offer(tools: Iterable[Tool]) -> list[Turn]:
    """Tools as OpenAI's API has them, which is what templates expect."""
    return [{"type": "function", "function": _described(tool)} for tool in tools]


def _described(tool: Tool) -> Turn:
    parameters = {"type": "object", "properties": {}, **tool.parameters}
    return {"name": tool.name, "description": tool.description, "parameters": parameters}


# --- for templates that know tools ------------------------------------------------------------------------------------


def native_turns(messages: Sequence[Message], tool_format: ToolFormat) -> list[Turn]:
    """`tool_format` says what the template refuses: several calls in one turn, or ids of any length."""
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    told = one_by_one(messages) if tool_format.single else messages
    return [_turn(message, names, tool_format) for message in told]


def _turn(message: Message, names: Mapping[str, str], tool_format: ToolFormat) -> Turn:
    turn: Turn = {"role": message.role, "content": message.content}
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = [_call(call, tool_format) for call in message.tool_calls]
    if message.role == "tool":
        turn |= {"tool_call_id": _id(message.tool_call_id, tool_format), "name": names.get(message.tool_call_id, "")}
    return turn


def _call(call: ToolCall, tool_format: ToolFormat) -> Turn:
    function = {"name": call.name, "arguments": _value(call.arguments)}
    return {"id": _id(call.id, tool_format), "type": "function", "function": function}


def _value(arguments: str) -> object:
    """Templates expect a dictionary; what is none, as a model may have written it, stays text."""
    try:
        found = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return found if isinstance(found, dict) else arguments


def _id(call_id: str, tool_format: ToolFormat) -> str:
    """The same short id for the same id, and no two alike but by chance."""
    if not tool_format.short_ids or _SHORT_ID.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


def one_by_one(messages: Sequence[Message]) -> Iterator[Message]:
    """Turns of several calls as several turns, each with what its call returned."""
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        if len(message.tool_calls) < 2:
            yield message
            continue
        end = next((i for i in range(at, len(messages)) if messages[i].role != "tool"), len(messages))
        yield from _apart(message, messages[at:end])
        at = end


def _apart(message: Message, results: Sequence[Message]) -> Iterator[Message]:
    for number, call in enumerate(message.tool_calls):
        turn = replace(message, tool_calls=(call,))
        yield turn if number == 0 else replace(turn, content="", reasoning="")
        yield from (result for result in results if result.tool_call_id == call.id)
    known = {call.id for call in message.tool_calls}
    yield from (result for result in results if result.tool_call_id not in known)


# --- for templates that do not ----------------------------------------------------------------------------------------


def plain_turns(messages: Sequence[Message]) -> list[Turn]:
    """Only roles and words; turns of the user that follow one another by this are one, as many templates demand."""
    turns: list[Turn] = []
    answered = False  # the last turn is of tools
    for message in messages:
        content, role = _words(message), message.role
        if answered and role in ("tool", "user"):
            turns[-1]["content"] = f"{turns[-1]['content']}\n{content}"
        else:
            turn: Turn = {"role": "user" if role == "tool" else role, "content": content}
            turns.append(turn | ({"reasoning_content": message.reasoning} if message.reasoning else {}))
        answered = role == "tool"
    return turns


def _words(message: Message) -> str:
    if message.role == "tool":
        return f"<tool_response>\n{message.content}\n</tool_response>"
    return "\n".join([*filter(None, (message.content,)), *map(_written, message.tool_calls)])


def _written(call: ToolCall) -> str:
    body = f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments or "{}"}}}'
    return f"{HERMES.openings[0]}\n{body}\n{HERMES.closing}"


def told_of(messages: Sequence[Message], tools: Iterable[Tool]) -> list[Message]:
    """The conversation with the tools described in its first system message."""
    how = _HOW + "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in offer(tools))
    at = next((i for i, message in enumerate(messages) if message.role == "system"), None)
    if at is None:
        return [Message("system", how), *messages]
    first = replace(messages[at], content=f"{messages[at].content}\n\n{how}")
    return [*messages[:at], first, *messages[at + 1 :]]
