"""What a conversation with tools is for a template: messages as it reads them, or told of in words."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from together.requests import Attached, Message, Tool, ToolCall
from together.text.tool_formats import HERMES, ToolFormat, as_list, written

Turn = dict[str, object]  # a message, a tool or a call as OpenAI's API writes it, which is what templates expect

BETWEEN = "\n\n"  # separates the contents of messages that are merged
RESULTS = "tool_responses"
CALLS = "tool_calls"  # a template that never reads them leaves out what was called
# So an older template of DeepSeek looks for calls; a turn that has a content as well loses them.
_CALLS_ALONE = "message['role'] == 'assistant' and message['content'] is none %}"
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
_HOW = """\
You can call the functions below where that helps; otherwise answer as usual. For each call write nothing but
{call}
{results}
The functions, with JSON schemas of their arguments:
"""
_RESULTS = "What a call returned comes back as <tool_response>…</tool_response>.\n"


def joined(messages: Iterable[Message], joins: Callable[[Message, Message], bool], between: str) -> list[Message]:
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
            reasoning=BETWEEN.join(filter(None, (message.reasoning for message in run))),
            pictures=tuple(_moved(run, between)),
        )
        for run in runs
    ]


def _moved(run: Sequence[Message], between: str) -> Iterator[Attached]:
    """The pictures of messages that become one."""
    before = 0  # letters of the messages that came, with what separates them
    for message in run:
        yield from (replace(each, at=before + each.at) for each in message.pictures)
        before += len(message.content) + len(between) if message.content else 0


def fitted(messages: Sequence[Message], tool_format: ToolFormat, template: str) -> list[Message]:
    """The messages in the form in which the template's source can read them."""
    if CALLS not in template:
        return [_spoken(message, tool_format) for message in messages]
    if _CALLS_ALONE in template:
        messages = [part for message in messages for part in _content_apart(message)]
    return list(one_by_one(messages)) if tool_format.single else list(messages)


def _content_apart(message: Message) -> Iterator[Message]:
    if message.tool_calls and message.content:
        yield replace(message, tool_calls=())
        yield replace(message, content="", reasoning="")
    else:
        yield message


def with_description(
    messages: Sequence[Message], tools: Iterable[Tool], tool_format: ToolFormat, results: str = ""
) -> list[Message]:
    """Describe `tools`, and how they are called, in the first system message."""
    call = written(tool_format, [("the function's name", '{"a parameter": "its value"}')])
    how = _HOW.format(call=call, results=results)
    how += "\n".join(json.dumps(_function(tool), ensure_ascii=False) for tool in tools)
    at = next((i for i, message in enumerate(messages) if message.role == "system"), None)
    if at is None:
        return [Message("system", how), *messages]
    first = replace(messages[at], content=f"{messages[at].content}{BETWEEN}{how}")
    return [*messages[:at], first, *messages[at + 1 :]]


def offer(tools: Iterable[Tool]) -> list[Turn]:
    return [{"type": "function", "function": _function(tool)} for tool in tools]


def _function(tool: Tool) -> Turn:
    parameters = {"type": "object", "properties": {}, **tool.parameters}
    return {"name": tool.name, "description": tool.description, "parameters": parameters}


def turns(messages: Sequence[Message], tool_format: ToolFormat, template: str) -> list[Turn]:
    names: dict[str, str] = {}  # of the last call of each id: clients number those of each answer anew
    ids: dict[str, str] = {}  # in the template's way, alike
    found, before = [], 0
    for message in messages:
        names |= {call.id: call.name for call in message.tool_calls}
        for number, call in enumerate(message.tool_calls, before):
            ids[call.id] = _id(call, tool_format, number)
        before += len(message.tool_calls)
        found.append(_turn(message, names, ids, tool_format))
    return _with_results(found) if tool_format.inside and RESULTS in template else found


def _with_results(found: Iterable[Turn]) -> list[Turn]:
    """Put results into the turn with their calls."""
    inside: list[Turn] = []
    for turn in found:
        caller = inside[-1] if inside and CALLS in inside[-1] else None
        if turn["role"] != "tool" or caller is None:
            inside.append(turn)
            continue
        given = str(turn["content"])
        result = {"name": turn["name"], "response": _object(given) or given}
        caller[RESULTS] = [*as_list(caller.get(RESULTS)), result]
    return inside


def _turn(message: Message, names: Mapping[str, str], ids: Mapping[str, str], tool_format: ToolFormat) -> Turn:
    turn: Turn = {"role": message.role, "content": _parts(message) if message.pictures else message.content}
    if tool_format.as_openai and message.tool_calls and not message.content:
        turn["content"] = None
    if message.reasoning:
        turn[tool_format.thoughts] = message.reasoning
    if message.tool_calls and message.reasoning and message.content and tool_format.answer:
        # A harmony template takes one of both beside a call, and writes either as thoughts.
        turn |= {"content": "", tool_format.thoughts: f"{message.reasoning}{BETWEEN}{message.content}"}
    if message.tool_calls:
        turn["tool_calls"] = [_call(call, ids[call.id], tool_format) for call in message.tool_calls]
    if message.role == "tool":
        called = ids.get(message.tool_call_id) or _short(message.tool_call_id, tool_format)
        turn |= {"tool_call_id": called, "name": names.get(message.tool_call_id, "")}
    return turn


def _parts(message: Message) -> list[Turn]:
    """Text and pictures in order, as templates of models that see read them."""
    found: list[Turn] = []
    begin = 0
    for each in message.pictures:
        found += [{"type": "text", "text": message.content[begin : each.at]}, {"type": "image"}]
        begin = each.at
    found.append({"type": "text", "text": message.content[begin:]})
    return [part for part in found if part.get("text") != ""]


def _spoken(message: Message, tool_format: ToolFormat) -> Message:
    """The message with its calls written as the model would write them."""
    if not message.tool_calls:
        return message
    calls = written(tool_format, [(call.name, call.arguments) for call in message.tool_calls])
    return replace(message, content="\n".join(filter(None, (message.content, calls))), tool_calls=())


def _call(call: ToolCall, shown_id: str, tool_format: ToolFormat) -> Turn:
    arguments = object_of(call)  # a model may have written text that is no object: it stays text
    is_text = arguments is None or tool_format.as_openai
    function = {"name": call.name, "arguments": (call.arguments or "{}") if is_text else arguments}
    return {"id": shown_id, "type": "function", "function": function}


def object_of(call: ToolCall) -> dict[str, object] | None:
    return _object(call.arguments or "{}")


def _object(text: str) -> dict[str, object] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _id(call: ToolCall, tool_format: ToolFormat, number: int) -> str:
    """As the template writes it, where it is a name and a number: clients have ids of ours."""
    if tool_format.numbered:
        return tool_format.written_id(call.name, number)
    return _short(call.id, tool_format)


def _short(call_id: str, tool_format: ToolFormat) -> str:
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
        for message in (with_description(messages, tools, HERMES, _RESULTS) if tools else messages)
    ]
    merged = joined(texts, lambda before, message: before.role == "tool" and message.role in ("tool", "user"), "\n")
    return [replace(message, role="user") if message.role == "tool" else message for message in merged]


def _as_text(message: Message) -> str:
    if message.role == "tool":
        return f"<tool_response>\n{message.content}\n</tool_response>"
    return _spoken(message, HERMES).content
