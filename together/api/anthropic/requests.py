"""The bodies of `/v1/messages`, checked strictly, and what they mean in our words.

What Anthropic defines and this version cannot do is refused by name.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from together.api.anthropic.blocks import Block, joined, parts_of
from together.api.content import Strict
from together.api.requests import MOST_MESSAGES, MOST_STOPS, SMALL, check_calls, checked
from together.api.responses import wrong
from together.api.turns import one_turn_each
from together.requests import ChatRequest, Grammar, Message, Owner, Tool, ToolUse
from together.text.thinking import thinking_switch
from together.types import Sampling
from together.wording import quoted

MOST_TOOLS = 512  # coding agents offer many
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}  # what templates know

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]


class AnthropicMessage(Strict):
    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Field(fail_fast=True)]


class AnthropicTool(Strict):
    """A tool of the client's own. `cache_control` and what else has no effect here is passed over."""

    name: ToolName
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, JsonValue] | None = None
    strict: bool | None = None
    defer_loading: bool | None = None


class AnthropicToolChoice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Strict):
    """Whether to think. `budget_tokens` is checked, without effect: `max_tokens` bounds thoughts and text together."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Annotated[int, Field(ge=1, lt=SMALL)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Strict):
    type: Literal["json_schema"]
    wanted: Annotated[dict[str, JsonValue], Field(alias="schema")]


class OutputConfig(Strict):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class ContextEdit(Strict):
    type: str


class ContextManagement(Strict):
    edits: list[ContextEdit] | None = None


class CountRequest(Strict):
    """`POST /v1/messages/count_tokens`, and what `/v1/messages` has in common with it.

    Accepted without effect: every cache_control (equal beginnings are always computed once only), and what says where,
    for whom and how fast Anthropic computes. Names that are not listed are ignored.
    """

    model: str
    messages: Annotated[list[AnthropicMessage], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    system: str | Annotated[list[Block], Field(fail_fast=True)] | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    context_management: ContextManagement | None = None
    # accepted without effect
    cache_control: JsonValue = None
    speed: str | None = None
    user_profile_id: str | None = None
    workspace_id: str | None = None
    # refused unless they ask for nothing
    mcp_servers: Annotated[list[JsonValue], Field(fail_fast=True)] | None = None
    container: JsonValue = None

    @property
    def thinks(self) -> bool:
        return self.thinking is not None and self.thinking.type != "disabled"

    def prompt(self, owner: Owner) -> ChatRequest:
        """The conversation alone. Raises BadRequest naming a field that cannot be honoured."""
        self._refuse_unsupported()
        messages = tuple(one_turn_each(self._messages(), ("user", "assistant")))
        check_calls(messages)
        return ChatRequest(
            messages,
            template=thinking_switch(self.thinks) | self._effort(),
            grammar=self._grammar(),
            continues=messages[-1].role == "assistant",
            tool_use=self._tool_use(),
            owner=owner,
        )

    def _refuse_unsupported(self) -> None:
        for name in ("mcp_servers", "container"):
            if getattr(self, name):
                raise wrong(name, "not supported by this version of together; leave it out")
        edits = self.context_management.edits if self.context_management else None
        for index, edit in enumerate(edits or ()):
            if not edit.type.startswith("clear_thinking"):  # templates leave earlier thoughts out by themselves
                where = f"context_management.edits.{index}.type"
                raise wrong(where, "{kind} is not supported by this version of together", kind=quoted(edit.type))

    def _messages(self) -> Iterator[Message]:
        system = joined(self.system, "system")
        if system:
            yield Message("system", system)
        for index, message in enumerate(self.messages):
            yield from parts_of(message.content, message.role, f"messages.{index}.content")

    def _effort(self) -> dict[str, object]:
        effort = self.output_config.effort if self.output_config else None
        return {"reasoning_effort": EFFORTS[effort]} if effort else {}

    def _grammar(self) -> Grammar | None:
        asked = (self.output_config.format if self.output_config else None) or self.output_format
        param = "output_format" if self.output_format else "output_config.format"
        return Grammar("json_schema", json.dumps(asked.wanted), param) if asked else None

    def _tool_use(self) -> ToolUse:
        choice = self.tool_choice or AnthropicToolChoice(type="auto")
        if choice.type == "tool" and not choice.name:
            raise wrong("tool_choice.name", "type tool needs the name of a tool")
        tools = tuple(_tool(index, tool) for index, tool in enumerate(self.tools or ()))
        named = choice.name or "" if choice.type == "tool" else ""
        parallel = not choice.disable_parallel_tool_use
        use = checked(ToolUse(tools, choice.type in ("any", "tool"), named, parallel), "name")
        return ToolUse() if choice.type == "none" else use


class MessagesRequest(CountRequest):
    """`POST /v1/messages`."""

    max_tokens: Annotated[int, Field(ge=1, lt=SMALL)]
    stop_sequences: Annotated[list[str], Field(max_length=MOST_STOPS, fail_fast=True)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=SMALL)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    # accepted without effect
    metadata: dict[str, JsonValue] | None = None
    service_tier: str | None = None
    inference_geo: str | None = None
    diagnostics: JsonValue = None

    @property
    def choices(self) -> int:
        return 1

    def to_chat(self, defaults: Sampling, owner: Owner) -> ChatRequest:
        """Our request; `defaults` hold where it is silent. Raises BadRequest naming a field that cannot be honoured."""
        stops = tuple(self.stop_sequences or ())
        if any(not stop.strip() for stop in stops):
            raise wrong("stop_sequences", "none of them may be empty or of spaces alone")
        numbers = self.model_dump(include={"temperature", "top_k", "top_p"}, exclude_none=True)
        sampling = replace(defaults, **numbers, seed=secrets.randbits(63))
        return replace(self.prompt(owner), sampling=sampling, max_tokens=self.max_tokens, stop=stops)


def _tool(index: int, tool: AnthropicTool) -> Tool:
    where = f"tools.{index}"
    if tool.type not in (None, "custom"):
        text = "{kind} is a tool that Anthropic's servers or clients define, and is not here; describe it as a tool of "
        raise wrong(f"{where}.type", text + "your own, with an input_schema", kind=quoted(tool.type or ""))
    if tool.defer_loading:
        raise wrong(
            f"{where}.defer_loading", "not supported by this version of together; all tools are offered at once"
        )
    schema = tool.input_schema
    if schema is None:
        raise wrong(f"{where}.input_schema", "a tool needs it, as a JSON schema of type object")
    if schema.get("type", "object") != "object":
        raise wrong(f"{where}.input_schema", "a tool's input is a JSON schema of type object")
    return Tool(tool.name, tool.description or "", schema, strict=bool(tool.strict))
