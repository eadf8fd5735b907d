"""Parts of request bodies: sampling, response formats, tools and tool calls, checked strictly."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import PydanticCustomError

from together.errors import BadRequest
from together.requests import Grammar, Message, Tool, ToolCall, ToolUse
from together.types import Sampling
from together.wording import MOST, cut, quoted

MOST_CHOICES = 8
MOST_STOPS = 16
MOST_LOGPROBS = 20
SMALL = 2**31


def _is_limit(tokens: int) -> int:
    if tokens == 0:
        raise PydanticCustomError("limit", "must be at least 1, or -1 for no limit")
    return tokens


# For fields that take one of several types, where the library can only say what each of them lacks.
_WORDS = {
    "stop": "a text, or up to 16 texts",
    "prompt": "a text, a list of texts, token ids, or a list of lists of token ids",
    "content": "a text, null, or a list of parts",
    "tool_choice": 'auto, none, required, or {"type": "function", "function": {"name": …}}',
}
_BRANCHES = {"str", "list", "int"}  # what the library adds to the path for a type that it tried

# -1 is what several programs send for no limit.
Limit = Annotated[int, Field(ge=-1, lt=SMALL), AfterValidator(_is_limit)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


def limit_of(tokens: int | None) -> int | None:
    """The most tokens of an answer; None: up to the context."""
    return None if tokens == -1 else tokens


class Strict(BaseModel):
    """No value is converted: a number written as text is an error."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)  # fields that mean what `Sampling` means by them


class StreamOptions(Strict):
    include_usage: bool | None = None


class AnswerFields(Strict):
    """How to answer. Fields without effect are listed too, so that their types are checked."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=SMALL)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    max_tokens: Limit | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS, fail_fast=True)] | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # accepted without effect
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, JsonValue] | None = None
    service_tier: str | None = None
    # refused unless they ask for nothing
    suffix: str | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=0, le=SMALL)] | None = None

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, defaults: Sampling) -> Sampling:
        """`defaults` hold where the request is silent. Raises BadRequest for a bias whose key is no token id."""
        values = {name: value for name in SAMPLING if (value := getattr(self, name)) is not None}
        if self.top_k == -1:  # as others say "off"
            values["top_k"] = 0
        seed = secrets.randbits(63) if self.seed is None else self.seed % 2**64
        return replace(defaults, **values, logit_bias=self._logit_bias(), seed=seed)

    def stops(self) -> tuple[str, ...]:
        """Raises BadRequest for an empty one."""
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if "" in stops:
            raise BadRequest(f"stop: {_WORDS['stop']}, none of them empty", param="stop")
        return stops

    def refuse(self, **asked: bool) -> None:
        """Raise BadRequest for what cannot be honoured: here, and what else the caller found."""
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options needs stream: true", param="stream_options")
        more = {"suffix": bool(self.suffix), "echo": bool(self.echo), "best_of": (self.best_of or 0) > self.choices}
        for name, is_asked in (asked | more).items():
            if is_asked:
                raise BadRequest(f"{name} is not supported by this version of together; leave it out", param=name)

    def _logit_bias(self) -> tuple[tuple[int, float], ...]:
        bias = self.logit_bias or {}
        if not all(key.isascii() and key.isdecimal() and len(key) < 10 for key in bias):
            raise BadRequest('logit_bias: its keys are token ids, as "1234"', param="logit_bias")
        return tuple((int(key), value) for key, value in bias.items())


ModelT = TypeVar("ModelT", bound=BaseModel)


def parse(model: type[ModelT], body: bytes) -> ModelT:
    """A JSON body as its model. Raises BadRequest with the path of the first wrong field."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise _wrong_field(first["loc"], first["msg"]) from None


def _wrong_field(location: tuple[int | str, ...], message: str) -> BadRequest:
    names = [str(part) for place, part in enumerate(location) if place == 0 or not _is_branch(part)]
    if len(names) < len(location) and (several := next((name for name in names if name in _WORDS), None)) is not None:
        names, message = names[: names.index(several) + 1], f"must be {_WORDS[several]}"
    path = ".".join(cut(name, MOST) for name in names)
    return BadRequest(f"{path}: {message}" if path else cut(message), param=path or None)


def _is_branch(part: int | str) -> bool:
    return isinstance(part, str) and (part in _BRANCHES or not part.isidentifier())


Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Schema = dict[str, JsonValue]

ANY_OBJECT: Schema = {"type": "object"}


class JsonSchema(Strict):
    """A named schema. It is always enforced, whatever `strict` says; name and description have no other effect."""

    name: Name
    description: str | None = None
    wanted: Annotated[Schema | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Strict):
    """Text as it comes, any JSON object, or JSON by a schema. `schema` is llama.cpp's place for it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    wanted: Annotated[Schema | None, Field(alias="schema")] = None

    def grammar(self) -> Grammar | None:
        """Raises BadRequest where the type needs a schema and there is none."""
        if self.type == "text":
            return None
        schema = self._named() if self.type == "json_schema" else self.wanted
        return Grammar("json_schema", json.dumps(ANY_OBJECT if schema is None else schema))

    def _named(self) -> Schema | None:
        if self.json_schema is not None:
            return self.json_schema.wanted
        if self.wanted is None:
            path = "response_format.json_schema"
            raise BadRequest(f"{path}: type json_schema needs it, with a name and a schema", param=path)
        return self.wanted


MOST_TOOLS = 128  # as OpenAI has it
MOST_CALLS = 128  # of one message


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


class CalledFunctionInput(Strict):
    """`arguments` is JSON text, as the model wrote it."""

    name: Annotated[str, Field(min_length=1)]
    arguments: str


class MessageCall(Strict):
    """A call that an assistant made earlier, as this server answered it."""

    id: Annotated[str, Field(min_length=1)]
    type: Literal["function"] = "function"
    function: CalledFunctionInput


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
        if message.tool_calls and message.role != "assistant":
            raise _wrong(index, "tool_calls", f"only an assistant calls tools, not the role {message.role}")
        known.update(call.id for call in message.tool_calls)
        if message.role == "tool" and not message.tool_call_id:
            raise _wrong(index, "tool_call_id", "a message of the role tool says which call it answers")
        if message.role == "tool" and message.tool_call_id not in known:
            raise _wrong(
                index, "tool_call_id", f"no assistant's message before it has a call {quoted(message.tool_call_id)}"
            )


def _wrong(index: int, field: str, words: str) -> BadRequest:
    path = f"messages.{index}.{field}"
    return BadRequest(f"{path}: {words}", param=path)
