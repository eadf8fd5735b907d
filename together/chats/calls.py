"""Calls of tools that answers make: each is a turn that asks for a yes, runs, and has a result for the next answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from together.chats.live import Channel
from together.chats.records import ChatSettings, Conversation, NoSuchChat, Said, State, Turn
from together.errors import BadRequest
from together.requests import Grammar, ToolCall, ToolUse
from together.tools.offers import ChatTool, answer_schema, functions_of
from together.tools.toolbox import Toolbox, ToolOffer
from together.wording import cut, quoted

AT_ONCE = 4  # answers that one conversation has written at a time
MOST_ROUNDS = 8  # of calls for one question; the answer after them has no tools
MOST_CALLS = 16  # of one answer
DECLINED = "The user did not allow this call."
WAITS: tuple[State, ...] = ("asking", "writing")
CALLABLE: tuple[State, ...] = ("asking", "cut", "stopped", "failed")  # of calls that may be made, or made again


@dataclass(frozen=True, slots=True)
class CallAnswer:
    """What a user says to a call: yes, yes to all of that tool, no, or the result of a function."""

    allow: Literal["once", "always", "no"] = "no"
    result: str | None = None


def rounds(branch: Sequence[Turn]) -> int:
    """How many answers there are since the last question."""
    roles = [turn.role for turn in branch]
    since = roles[len(roles) - roles[::-1].index("user") :] if "user" in roles else roles
    return since.count("assistant")


async def offer_for(
    toolbox: Toolbox, owner: str, settings: ChatSettings, branch: Sequence[Turn]
) -> tuple[ToolOffer, ToolUse, Grammar | None]:
    """What the next answer may call, how freely, and the schema of its text. Raises BadRequest."""
    grammar = await asyncio.to_thread(answer_schema, settings.json_schema)
    made = rounds(branch)
    if made >= MOST_ROUNDS:
        return ToolOffer(), ToolUse(), grammar
    functions = await asyncio.to_thread(functions_of, settings.functions)
    offer = await toolbox.offer(owner, settings.servers, functions)
    tools = tuple(each.tool for each in offer.tools)
    forced = settings.calls == "required" and not made and bool(tools)
    return offer, ToolUse(tools, required=forced, parallel=not forced), grammar  # a small model would call without end


def placed(offer: ToolOffer, calls: Sequence[ToolCall]) -> list[tuple[Said, State]]:
    """A turn for each call of an answer, as it begins: "writing" where it needs no yes."""
    made: list[tuple[Said, State]] = []
    for number, call in enumerate(calls):
        found = offer.find(call.name)
        fault = _fault(found, call, number)
        said = Said(call_id=call.id, server=found.server if found else "", tool=found.name if found else "", note=fault)
        made.append((said, "failed" if fault or found is None else "asking" if found.asks else "writing"))
    return made


def _fault(found: ChatTool | None, call: ToolCall, number: int) -> str:
    """Why a call cannot be made; empty where it can."""
    if found is None:
        return f"there is no tool {quoted(cut(call.name))}"
    if number >= MOST_CALLS:
        return f"an answer may make {MOST_CALLS} calls; make this one in the next answer"
    try:
        arguments_of(call)
    except BadRequest as error:
        return str(error)
    return ""


def arguments_of(call: ToolCall) -> dict[str, Any]:
    """Raises BadRequest for what is no JSON object."""
    try:
        found = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadRequest("the arguments of this call are no JSON object", "arguments")
    return found


def call_of(chat: Conversation, turn: Turn) -> ToolCall:
    """The call that a result's turn answers. Raises BadRequest where no answer before it made it."""
    for each in reversed(chat.branch(turn.id)):
        for call in each.said.calls:
            if call.id == turn.said.call_id:
                return call
    raise BadRequest("no answer before this result made its call", "turn")


def answered(turn: Turn, answer: CallAnswer) -> Turn:
    """The call's turn after a user's word: with its result, or as it is while it runs. Raises BadRequest."""
    said = replace(turn.said, note="")
    if answer.result is not None:
        if turn.said.server:
            raise BadRequest("this call has a server that gives its result; allow it, or not", "result")
        return replace(turn, state="done", said=replace(said, text=answer.result))
    if answer.allow == "no":
        return replace(turn, state="done", said=replace(said, text=DECLINED, note="not allowed"))
    if not turn.said.server:
        raise BadRequest("this function has no server; give its result", "result")
    return replace(turn, state="writing", said=replace(said, text=""))


def results_after(chat: Conversation, turn: Turn) -> tuple[Turn, ...]:
    """The results of the answer whose call `turn` answers, in their order on that branch."""
    found: list[Turn] = []
    for each in reversed(chat.branch(turn.id)):
        if each.role != "tool":
            break
        found.insert(0, each)
    while (after := next((t for t in chat.turns if t.parent == found[-1].id and t.role == "tool"), None)) is not None:
        found.append(after)
    return tuple(found)


async def result_of(toolbox: Toolbox, owner: str, said: Said, call: ToolCall) -> Said:
    """Make the call. Raises ToolFault or BadRequest."""
    found = await toolbox.call(owner, said.server, said.tool, arguments_of(call))
    return replace(said, text=found.text, note="the tool says that it failed" if found.failed else "")


def check_next(channel: Channel, chat: Conversation, branch: tuple[Turn, ...], said: Said | None = None) -> None:
    """Whether an answer may begin at the end of `branch`, to a question that says `said`. Raises BadRequest."""
    if sum(live.turn.state == "writing" for live in channel.live.values()) >= AT_ONCE:
        raise BadRequest("{most} answers of this conversation are being written; stop one first", "turn", most=AT_ONCE)
    if any(turn.state == "asking" for turn in branch):
        raise BadRequest("a call of a tool waits for your word; allow it, or not, then ask", "parent")
    if any(turn.state == "writing" for turn in branch):
        text = "the answer before this question is still being written; wait for its end, or stop it"
        raise BadRequest(text, "parent")
    if said is not None and not {file.id for file in chat.files}.issuperset(said.files):
        raise NoSuchChat("a file of this question is none of this conversation; attach it here", "files")
