"""The bodies of `/v1/responses`, checked strictly, and what they mean in our words.

What OpenAI defines and this version cannot do is refused by name.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from together.api.content import Strict
from together.api.openai_responses.items import FREE_INPUT, InputItem, full_name, messages_of
from together.api.requests import (
    MOST_LOGPROBS,
    MOST_MESSAGES,
    SMALL,
    Name,
    Schema,
    check_calls,
    checked,
)
from together.api.responses import wrong
from together.requests import ChatRequest, Grammar, Message, Owner, Tool, ToolUse
from together.text.thinking import thinking_switch
from together.types import Sampling
from together.wording import quoted

MOST_OFFERED = 512  # tools: coding agents offer many
LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


class TextFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    description: str | None = None
    wanted: Annotated[Schema | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextConfig(Strict):
    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningConfig(Strict):
    """`summary` and `generate_summary` have no effect: thoughts are given as they are."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: str | None = None
    generate_summary: str | None = None


class CustomFormat(Strict):
    type: str


class OfferedTool(Strict):
    """A function, a tool whose input is free text, or a namespace of such."""

    type: str
    name: Name | None = None
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None
    format: CustomFormat | None = None
    defer_loading: bool | None = None
    tools: list[OfferedTool] | None = None
    external_web_access: bool | None = None


class ChosenTool(Strict):
    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[ChosenTool] | None = None


class ResponseStreamOptions(Strict):
    include_obfuscation: bool | None = None


class ResponsesRequest(Strict):
    """`POST /v1/responses`.

    Accepted without effect: what says for whom, where and how fast OpenAI computes, and everything about prompt caches
    (equal beginnings are always computed once only). Names that are not listed are ignored.
    """

    model: str | None = None
    input: str | Annotated[list[InputItem], Field(max_length=MOST_MESSAGES, fail_fast=True)] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=SMALL)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    include: Annotated[list[str], Field(fail_fast=True)] | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    tools: Annotated[list[OfferedTool], Field(max_length=MOST_OFFERED, fail_fast=True)] | None = None
    tool_choice: Literal["auto", "none", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    store: bool | None = None
    stream: bool | None = None
    background: bool | None = None
    metadata: dict[str, JsonValue] | None = None
    # accepted without effect
    stream_options: ResponseStreamOptions | None = None
    max_tool_calls: Annotated[int, Field(ge=1, lt=SMALL)] | None = None
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: JsonValue = None
    prompt_cache_retention: str | None = None
    access_programs: JsonValue = None
    image: JsonValue = None
    # refused unless they ask for nothing
    conversation: JsonValue = None
    prompt: JsonValue = None
    moderation: JsonValue = None
    context_management: JsonValue = None
    background_options: JsonValue = None

    @property
    def choices(self) -> int:
        return 1

    @property
    def logprobs(self) -> bool:
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    @property
    def carries_thoughts(self) -> bool:
        """Whether thoughts are also wanted as one opaque text, which clients that keep nothing send back."""
        return ENCRYPTED in (self.include or ())

    @property
    def kept(self) -> bool:
        """Whether the answer can be asked for later: unless it is said otherwise."""
        return self.store is not False

    @property
    def items(self) -> list[InputItem]:
        if isinstance(self.input, str):
            return [InputItem(role="user", content=self.input)]
        return self.input or []

    def new_messages(self) -> tuple[Message, ...]:
        """Those of this request alone, without what came before it. Raises BadRequest."""
        return tuple(messages_of(self.items))

    def to_chat(self, defaults: Sampling, owner: Owner, before: tuple[Message, ...] = ()) -> ChatRequest:
        """Our request, which goes on from `before`; `defaults` hold where it is silent.

        Raises BadRequest naming a field that cannot be honoured.
        """
        self.check()
        system = (Message("system", self.instructions),) if self.instructions else ()
        conversation = (*before, *self.new_messages())
        if not conversation:
            raise wrong("input", "it is empty; give a text, or a list of items")
        check_calls(conversation)
        numbers = self.model_dump(include={"temperature", "top_p"}, exclude_none=True)
        return ChatRequest(
            (*system, *conversation),
            replace(defaults, **numbers, seed=secrets.randbits(63)),
            self.max_output_tokens,
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else -1,
            template=self._template(),
            grammar=self._grammar(),
            tool_use=self.tool_use(),
            owner=owner,
        )

    def check(self) -> None:
        """Raises BadRequest naming a field that cannot be honoured."""
        for name in ("conversation", "prompt", "moderation", "context_management", "background_options"):
            if getattr(self, name):
                raise wrong(name, "not supported by this version of together; leave it out")
        for name, value in self._told_again():
            if not _is_finite(value):
                raise wrong(name, "a number in it is too large")
        if self.background and self.stream:
            raise wrong("background", "an answer in the background is not streamed; ask for it by its id")
        if self.background and not self.kept:
            raise wrong("background", "an answer in the background is kept until it is asked for; leave store out")

    def _told_again(self) -> Iterator[tuple[str, object]]:
        """What an answer repeats as it was given, by its field."""
        yield "metadata", self.metadata
        for index, tool in enumerate(self.tools or ()):
            yield f"tools.{index}", tool.model_dump()
        if self.text and self.text.format:
            yield "text.format.schema", self.text.format.wanted

    def _template(self) -> dict[str, object]:
        effort = self.reasoning.effort if self.reasoning else None
        if effort is None:
            return {}
        return thinking_switch(on=False) if effort == "none" else {"reasoning_effort": EFFORTS[effort]}

    def _grammar(self) -> Grammar | None:
        asked = self.text.format if self.text else None
        if asked is None or asked.type == "text":
            return None
        if asked.type == "json_schema" and asked.wanted is None:
            raise wrong("text.format.schema", "type json_schema needs it")
        schema = asked.wanted if asked.type == "json_schema" else {"type": "object"}
        return Grammar("json_schema", json.dumps(schema), "text.format")

    def offered(self) -> Iterator[tuple[str, OfferedTool, str]]:
        """Each tool with where it stands and its namespace, "" for none. Raises BadRequest."""
        for index, tool in enumerate(self.tools or ()):
            where = f"tools.{index}"
            if tool.type == "namespace":
                if not tool.name or not tool.tools:
                    raise wrong(where, "a namespace needs a name and tools")
                for place, inner in enumerate(tool.tools):
                    yield f"{where}.tools.{place}", inner, tool.name
            elif tool.type != "web_search" or tool.external_web_access is not False:
                yield where, tool, ""  # without the web there is nothing to search, so that tool is not offered

    def custom(self) -> frozenset[str]:
        """The names of tools whose input is free text."""
        return frozenset(
            full_name(tool.name or "", space) for _, tool, space in self.offered() if tool.type == "custom"
        )

    def tool_use(self) -> ToolUse:
        """What was asked. Raises BadRequest naming the field that does not fit the others."""
        tools = tuple(_tool(where, tool, space) for where, tool, space in self.offered())
        choice = self.tool_choice if self.tool_choice is not None else "auto"
        named, required = "", choice == "required"
        if isinstance(choice, ChosenTool):
            if choice.type == "allowed_tools":
                tools, required = _allowed(tools, choice), choice.mode == "required"
            elif choice.type in ("function", "custom") and choice.name:
                named, required = choice.name, True
            else:
                text = "{kind} is not supported by this version of together; name a function or a custom tool"
                raise wrong("tool_choice", text, kind=quoted(choice.type))
        use = checked(ToolUse(tools, required, named, self.parallel_tool_calls is not False), "name")
        return ToolUse() if choice == "none" else use


def _is_finite(value: object) -> bool:
    """Whether JSON can say it: 1e999 is read as infinity."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _allowed(tools: tuple[Tool, ...], choice: ChosenTool) -> tuple[Tool, ...]:
    names = {each.name or "" for each in choice.tools or ()}
    for name in sorted(names - {tool.name for tool in tools}):
        raise wrong("tool_choice.tools", "{name} is none of the tools", name=quoted(name))
    return tuple(tool for tool in tools if tool.name in names)


def _tool(where: str, tool: OfferedTool, space: str) -> Tool:
    if tool.type not in ("function", "custom"):
        text = "{kind} is a tool of OpenAI's servers, and is not here; offer functions, or custom tools"
        raise wrong(f"{where}.type", text, kind=quoted(tool.type))
    if not tool.name:
        raise wrong(f"{where}.name", "a tool needs a name")
    name = full_name(tool.name, space)
    if tool.defer_loading:
        raise wrong(f"{where}.defer_loading", "not supported by this version of together; it offers all tools at once")
    if tool.type == "custom":
        if tool.format is not None and tool.format.type != "text":
            raise wrong(f"{where}.format", "only free text is supported by this version of together")
        free: Schema = {"type": "object", "properties": {FREE_INPUT: {"type": "string"}}, "required": [FREE_INPUT]}
        return Tool(name, tool.description or "", free | {"additionalProperties": False}, strict=True)
    parameters = tool.parameters or {}
    if parameters.get("type", "object") != "object":
        raise wrong(f"{where}.parameters", "a function's parameters are a JSON schema of type object")
    return Tool(name, tool.description or "", parameters, strict=bool(tool.strict))
