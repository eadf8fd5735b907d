"""Conversations in the forms that chat templates take."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from together.requests import Message, Tool, ToolCall
from together.text.tool_formats import HERMES, ToolFormat

Turn = dict[str, object]  # a message, a tool or a call as OpenAI's API writes it, which is what templates expect

_BETWEEN = "\n\n"  # separates the contents of messages that are merged
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
_HOW = f"""\
You can call the functions below where that helps; otherwise answer as usual. For each call write nothing but
{HERMES.openings[0]}
{{"name": "the function's name", "arguments": {{"a parameter": "its value"}}}}
{HERMES.closing}
What a call returned comes back as <tool_response>…</tool_response>.

The functions, with JSON schemas of their arguments:
"""


# --- for templates that refuse a conversation -------------------------------------------------------------------------


def forms(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Yield the conversation as it is, then up to three equivalent forms that more templates accept.

    Messages of one role in a row become one; later system messages become the user's; so do all system messages.
    """
    leading = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    late_as_user = [*messages[:leading], *map(_system_as_user, messages[leading:])]
    seen: list[list[Message]] = []
    for form in (list(messages), *map(_merged, (messages, late_as_user, map(_system_as_user, messages)))):
        if form not in seen:
            seen.append(form)
            yield form


def culprit(messages: Sequence[Message]) -> int | None:
    """The message that a template most likely refuses: arguments are no JSON object, a late system, a repeated role."""
    for index, message in enumerate(messages):
        if any(_arguments(call) is None for call in message.tool_calls):
            return index
    for index in range(1, len(messages)):
        before, role = messages[index - 1].role, messages[index].role
        if role == "system" or before == role != "tool":
            return index
    return None


def _system_as_user(message: Message) -> Message:
    return replace(message, role="user") if message.role == "system" else message


def _merged(messages: Iterable[Message]) -> list[Message]:
    """Merge messages of one role in a row, except tool results and messages with calls."""
    return _joined(messages, _same_speaker, _BETWEEN)


def _same_speaker(before: Message, message: Message) -> bool:
    return before.role == message.role != "tool" and not before.tool_calls and not message.tool_calls


def _joined(messages: Iterable[Message], joins: Callable[[Message, Message], bool], between: str) -> list[Message]:
    """Join each message to the one before it where `joins(before, message)`."""
    runs: list[list[Message]] = []
    for message in messages:
        if runs and joins(runs[-1][-1], message):
            runs[-1].append(message)
        else:
            runs.append([message])
    return [
        replace(
            run[0],
            content=between.join(filter(None, (message.content for message in run))),
            reasoning=_BETWEEN.join(filter(None, (message.reasoning for message in run))),
        )
        for run in runs
    ]


# --- for templates with tools -----------------------------------------------------------------------------------------


def offer(tools: Iterable[Tool]) -> list[Turn]:
    return [{"type": "function", "function": _function(tool)} for tool in tools]


def _function(tool: Tool) -> Turn:
    parameters = {"type": "object", "properties": {}, **tool.parameters}
    return {"name": tool.name, "description": tool.description, "parameters": parameters}


def turns(messages: Sequence[Message], tool_format: ToolFormat) -> list[Turn]:
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return [_turn(message, names, tool_format) for message in messages]


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
    arguments = _arguments(call)  # a model may have written text that is no object: it stays text
    function = {"name": call.name, "arguments": call.arguments if arguments is None else arguments}
    return {"id": _id(call.id, tool_format), "type": "function", "function": function}


def _arguments(call: ToolCall) -> dict[str, object] | None:
    try:
        found = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _id(call_id: str, tool_format: ToolFormat) -> str:
    """The id, shortened by its hash where the template takes short ones only."""
    if not tool_format.short_ids or _SHORT_ID.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


def one_by_one(messages: Sequence[Message]) -> Iterator[Message]:
    """Split each message with several calls into one message per call, each followed by its results."""
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


# --- for templates without tools --------------------------------------------------------------------------------------


def without_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Write calls and results as text, and describe `tools` in the first system message.

    Results and the user's message after them become one message of the user: many templates want roles to alternate.
    """
    texts = [
        replace(message, content=_as_text(message), tool_calls=())
        for message in (_with_description(messages, tools) if tools else messages)
    ]
    joined = _joined(texts, lambda before, message: before.role == "tool" and message.role in ("tool", "user"), "\n")
    return [replace(message, role="user") if message.role == "tool" else message for message in joined]


def _with_description(messages: Sequence[Message], tools: Iterable[Tool]) -> list[Message]:
    how = _HOW + "\n".join(json.dumps(_function(tool), ensure_ascii=False) for tool in tools)
    at = next((i for i, message in enumerate(messages) if message.role == "system"), None)
    if at is None:
        return [Message("system", how), *messages]
    first = replace(messages[at], content=f"{messages[at].content}{_BETWEEN}{how}")
    return [*messages[:at], first, *messages[at + 1 :]]


def _as_text(message: Message) -> str:
    if message.role == "tool":
        return f"<tool_response>\n{message.content}\n</tool_response>"
    return "\n".join([*filter(None, (message.content,)), *map(_call_as_text, message.tool_calls)])


def _call_as_text(call: ToolCall) -> str:
    body = f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments or "{}"}}}'
    return f"{HERMES.openings[0]}\n{body}\n{HERMES.closing}"
