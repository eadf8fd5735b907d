"""Tools, the choice among them, and calls in a conversation: what requests may say of them. Knows no HTTP, no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from together.api.fields import Strict
from together.errors import BadRequest
from together.quoting import quoted
from together.requests import Message, Tool, ToolCall, ToolUse

MOST_TOOLS = 128  # as OpenAI has it
MOST_CALLS = 128  # of one message

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class FunctionSpec(Strict):
    """`parameters` is a JSON schema of an object; without it the function takes none."""

    name: Name
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class FunctionTool(Strict):
    type: Literal["function"]
    function: FunctionSpec


class FunctionName(Strict):
    name: Name


class NamedChoice(Strict):
    type: Literal["function"]
    function: FunctionName


class CalledFunction(Strict):
    """`arguments` is JSON text, as the model wrote it."""

    name: Annotated[str, Field(min_length=1)]
    arguments: str


class MessageCall(Strict):
    """A call that an assistant made earlier, as this server answered it."""

    id: Annotated[str, Field(min_length=1)]
    type: Literal["function"] = "function"
    function: CalledFunction


Tools = Annotated[list[FunctionTool], Field(max_length=MOST_TOOLS, fail_fast=True)]
ToolChoice = Literal["auto", "none", "required"] | NamedChoice
MessageCalls = Annotated[list[MessageCall], Field(max_length=MOST_CALLS, fail_fast=True)]


def tool_use(tools: Sequence[FunctionTool] | None, choice: ToolChoice | None, parallel: bool | None) -> ToolUse:
    """What was asked. Raises BadRequest naming the field that does not fit the others."""
    offered = tuple(_tool(index, tool.function) for index, tool in enumerate(tools or ()))
    names = [tool.name for tool in offered]
    _check_distinct(names)
    named = choice.function.name if isinstance(choice, NamedChoice) else ""
    if named and named not in names:
        known = ", ".join(names) or "none"
        raise BadRequest(f"tool_choice: {quoted(named)} is none of the tools ({known})", param="tool_choice")
    if choice == "required" and not offered:
        raise BadRequest("tool_choice: required needs tools to choose from", param="tool_choice")
    if choice == "none":
        return ToolUse()
    return ToolUse(offered, required=bool(named) or choice == "required", name=named, parallel=parallel is not False)


def _check_distinct(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            path = f"tools.{index}.function.name"
            raise BadRequest(f"{path}: two tools are called {quoted(name)}; give each a name of its own", param=path)
        seen.add(name)


def _tool(index: int, spec: FunctionSpec) -> Tool:
    parameters = spec.parameters or {}
    if parameters.get("type", "object") != "object":
        path = f"tools.{index}.function.parameters"
        raise BadRequest(f"{path}: a function's parameters are a JSON schema of type object", param=path)
    return Tool(spec.name, spec.description or "", parameters, strict=bool(spec.strict))


def tool_calls(calls: Sequence[MessageCall] | None) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in calls or ())


def check_calls(messages: Sequence[Message]) -> None:
    """Raises BadRequest for calls that are not an assistant's, and for a tool's message that answers no call."""
    known: set[str] = set()
    for index, message in enumerate(messages):
        if message.calls and message.role != "assistant":
            raise _wrong(index, "tool_calls", f"only an assistant calls tools, not the role {message.role}")
        known.update(call.id for call in message.calls)
        if message.role == "tool" and not message.call_id:
            raise _wrong(index, "tool_call_id", "a message of the role tool says which call it answers")
        if message.role == "tool" and message.call_id not in known:
            raise _wrong(
                index, "tool_call_id", f"no assistant's message before it has a call {quoted(message.call_id)}"
            )


def _wrong(index: int, field: str, words: str) -> BadRequest:
    path = f"messages.{index}.{field}"
    return BadRequest(f"{path}: {words}", param=path)
