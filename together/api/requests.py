"""The bodies of requests for chats and completions, checked strictly, and what they mean in our words.

What OpenAI defines and this version cannot do is refused by name.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue
from pydantic_core import PydanticCustomError

from together.api.constraints import ConstraintFields
from together.api.content import ContentPart, Strict, content_of
from together.api.responses import wrong
from together.errors import BadRequest
from together.requests import ChatRequest, CompletionRequest, Grammar, Message, Owner, Tool, ToolCall, ToolUse
from together.types import Sampling
from together.wording import quoted

MOST_CHOICES = 8
MOST_SEQUENCES = 128  # prompts times choices of one request: half of the queue
MOST_MESSAGES = 10_000
MOST_TOOLS = 128  # as OpenAI has it
MOST_CALLS = 128  # of one message
MOST_STOPS = 16
MOST_LOGPROBS = 20
USUAL_MAX_TOKENS = 16  # of a completion, as OpenAI has it
SMALL = 2**31

# For fields that take one of several types, where the library can only say what each of them lacks.
WORDS = {
    "stop": "a text, or up to 16 texts",
    "input": "a text, or a list of items",
    "prompt": "a text, a list of texts, token ids, or a list of lists of token ids",
    "content": "a text, null, or a list of parts",
    "system": "a text, or a list of blocks of text",
    "tool_choice": 'auto, none, required, or {"type": "function", "function": {"name": …}}',
}


def _is_limit(tokens: int) -> int:
    if tokens == 0:
        raise PydanticCustomError("limit", "must be at least 1, or -1 for no limit")
    return tokens


# -1 is what several programs send for no limit.
Limit = Annotated[int, Field(ge=-1, lt=SMALL), AfterValidator(_is_limit)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(Strict):
    include_usage: bool | None = None


class AnswerFields(ConstraintFields):
    """How to answer. Fields without effect are listed, too, so that their types are checked."""

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

    def limit(self, newer: int | None = None) -> int | None:
        """The most tokens of an answer, by the `newer` field if it is set; None: up to the context."""
        tokens = self.max_tokens if newer is None else newer
        return None if tokens == -1 else tokens

    def sampling(self, defaults: Sampling) -> Sampling:
        """`defaults` hold where the request is silent. Raises BadRequest for a bias whose key is no token id."""
        numbers = {"temperature", "top_k", "top_p", "min_p"}
        penalties = {"repetition_penalty", "presence_penalty", "frequency_penalty"}
        values = self.model_dump(include=numbers | penalties, exclude_none=True)
        if self.top_k == -1:  # as others say "off"
            values["top_k"] = 0
        seed = secrets.randbits(63) if self.seed is None else self.seed % 2**64
        bias = self.logit_bias or {}
        if not all(key.isascii() and key.isdecimal() and len(key) < 10 for key in bias):
            raise wrong("logit_bias", 'its keys are token ids, as "1234"')
        biases = tuple((int(key), value) for key, value in bias.items())
        return replace(defaults, **values, logit_bias=biases, seed=seed)

    def stops(self) -> tuple[str, ...]:
        """Raises BadRequest for an empty one."""
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if "" in stops:
            raise wrong("stop", "{words}, none of them empty", words=WORDS["stop"])
        return stops

    def refuse(self, **asked: bool) -> None:
        """Raises BadRequest for a field that cannot be honoured: of this class, or one that is `asked`."""
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options needs stream: true", param="stream_options")
        more = {"suffix": bool(self.suffix), "best_of": (self.best_of or 0) > self.choices}
        for name, is_asked in (asked | more).items():
            if is_asked:
                text = "{field} is not supported by this version of together; leave it out"
                raise BadRequest(text, name, field=name)


Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Schema = dict[str, JsonValue]


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
        """Raises BadRequest for a type that needs a schema, without one."""
        if self.type == "text":
            return None
        schema = self.wanted
        if self.type == "json_schema":
            if self.json_schema is None and schema is None:
                raise wrong("response_format.json_schema", "type json_schema needs it, with a name and a schema")
            schema = self.json_schema.wanted if self.json_schema is not None else schema
        return Grammar("json_schema", json.dumps({"type": "object"} if schema is None else schema))


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


TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=SMALL)]], Field(min_length=1, max_length=2**20, fail_fast=True)]
Several = Field(min_length=1, max_length=MOST_SEQUENCES, fail_fast=True)


class InputMessage(Strict):
    """One turn; `reasoning_content` is what an assistant thought, as this server answers it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[ContentPart], Field(fail_fast=True)] | None = None
    reasoning_content: str | None = None
    name: str | None = None
    tool_calls: MessageCalls | None = None
    tool_call_id: str | None = None
    function_call: JsonValue = None  # refused: OpenAI's older way to call tools


class ChatCompletionRequest(AnswerFields):
    """`POST /v1/chat/completions`.

    Accepted without effect: user, store, metadata, service_tier, verbosity, safety_identifier, and everything about
    prompt caches (equal beginnings are always computed once only); so is reasoning_effort if the template ignores it.
    Roles developer and system are the same. Names that are not listed are ignored.
    """

    messages: Annotated[list[InputMessage], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None
    reasoning_effort: str | None = None  # a variable of the chat template
    chat_template: str | None = None  # the name of one of the model's own templates, never a template
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    continue_final_message: bool | None = None  # as vLLM has it: the answer goes on with the last message
    # accepted without effect
    verbosity: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: JsonValue = None
    response_format: ResponseFormat | None = None
    # refused unless they ask for nothing
    modalities: Annotated[list[str], Field(fail_fast=True)] | None = None
    audio: JsonValue = None
    moderation: JsonValue = None
    prediction: JsonValue = None
    functions: JsonValue = None
    function_call: JsonValue = None
    web_search_options: JsonValue = None

    def to_chat(self, defaults: Sampling, owner: Owner) -> ChatRequest:
        """Our request; `defaults` hold where it is silent. Raises BadRequest naming a field that cannot be honoured."""
        self._refuse_unsupported()
        messages = tuple(_message(index, message) for index, message in enumerate(self.messages))
        check_calls(messages)
        if self.continue_final_message and messages[-1].role != "assistant":
            raise wrong("continue_final_message", "the last message must be an assistant's")
        effort = self.model_dump(include={"reasoning_effort"}, exclude_none=True)
        return ChatRequest(
            messages=messages,
            sampling=self.sampling(defaults),
            max_tokens=self.limit(self.max_completion_tokens),
            stop=self.stops(),
            ignore_eos=bool(self.ignore_eos),
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else -1,
            choices=self.choices,
            template=effort | (self.chat_template_kwargs or {}),
            chosen_template=self.chat_template,
            grammar=self.constraint(self.response_format.grammar() if self.response_format else None),
            continues=bool(self.continue_final_message),
            tool_use=_tool_use(self.tools, self.tool_choice, self.parallel_tool_calls),
            owner=owner,
        )

    def _refuse_unsupported(self) -> None:
        if self.top_logprobs and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        plain = ("audio", "moderation", "prediction", "functions", "function_call", "web_search_options")
        asked = {name: getattr(self, name) is not None for name in plain}
        self.refuse(echo=bool(self.echo), modalities=self.modalities not in (None, [], ["text"]), **asked)


class TextCompletionRequest(AnswerFields):
    """`POST /v1/completions`.

    With `echo`, and 0 for max_tokens and logprobs, the prompt comes back with the log-probabilities of its tokens.
    Accepted without effect: user, store, metadata, service_tier. Names that are not listed are ignored.
    """

    max_tokens: Annotated[int, Field(ge=-1, lt=SMALL)] | None = None
    prompt: str | Annotated[list[str], Several] | TokenIds | Annotated[list[TokenIds], Several]
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None

    def to_completion(self, defaults: Sampling, owner: Owner) -> CompletionRequest:
        """Our request; `defaults` hold where it is silent. Raises BadRequest naming a field that cannot be honoured."""
        self.refuse()
        if (self.echo or self.max_tokens == 0) and (self.echo, self.max_tokens, self.logprobs) != (True, 0, 0):
            text = "echo: true and max_tokens: 0 go together, with logprobs: 0, and ask for the scores of a prompt"
            raise BadRequest(text, "echo" if self.echo else "max_tokens")
        prompts = self._prompts()
        if len(prompts) * self.choices > MOST_SEQUENCES:
            raise wrong("prompt", "with n choices each, at most {most} at once", most=MOST_SEQUENCES)
        return CompletionRequest(
            prompts=prompts,
            sampling=self.sampling(defaults),
            max_tokens=USUAL_MAX_TOKENS if self.max_tokens is None else self.limit(),
            stop=self.stops(),
            ignore_eos=bool(self.ignore_eos),
            top_logprobs=-1 if self.logprobs is None else self.logprobs,
            choices=self.choices,
            grammar=self.constraint(),
            owner=owner,
        )

    def _prompts(self) -> tuple[str | tuple[int, ...], ...]:
        if isinstance(self.prompt, str):
            return (self.prompt,)
        if isinstance(self.prompt[0], int):
            return (tuple(self.prompt),)
        return tuple(item if isinstance(item, str) else tuple(item) for item in self.prompt)


def _message(index: int, message: InputMessage) -> Message:
    where = f"messages.{index}"
    if message.function_call is not None:
        raise wrong(f"{where}.function_call", "not supported by this version of together; use tool_calls")
    calls = message.tool_calls or ()
    content, pictures = content_of(message.content, message.role, f"{where}.content")
    return Message(
        "system" if message.role == "developer" else message.role,
        content,
        message.reasoning_content or "",
        tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in calls),
        (message.tool_call_id or "") if message.role == "tool" else "",
        pictures,
    )


def _tool_use(tools: Sequence[FunctionTool] | None, choice: ToolChoice | None, parallel: bool | None) -> ToolUse:
    """What was asked. Raises BadRequest naming the field that does not fit the others."""
    offered = tuple(_tool(index, tool.function) for index, tool in enumerate(tools or ()))
    named = choice.function.name if isinstance(choice, NamedChoice) else ""
    required = bool(named) or choice == "required"
    use = checked(ToolUse(offered, required, named, parallel is not False), "function.name")
    return ToolUse() if choice == "none" else use


def checked(use: ToolUse, name_at: str) -> ToolUse:
    """The same; `name_at` is where a tool has its name. Raises BadRequest where choice and tools do not fit."""
    names = [tool.name for tool in use.tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            text = "two tools are called {name}; give each a name of its own"
            raise wrong(f"tools.{index}.{name_at}", text, name=quoted(name))
    if use.name and use.name not in names:
        known = tuple(names) or "none"
        raise wrong("tool_choice", "{name} is none of the tools ({known})", name=quoted(use.name), known=known)
    if use.required and not names:
        raise wrong("tool_choice", "a call that is required needs tools to choose from")
    return use


def _tool(index: int, spec: FunctionSpec) -> Tool:
    parameters = spec.parameters or {}
    if parameters.get("type", "object") != "object":
        where = f"tools.{index}.function.parameters"
        raise wrong(where, "a function's parameters are a JSON schema of type object")
    return Tool(spec.name, spec.description or "", parameters, strict=bool(spec.strict))


def check_calls(messages: Sequence[Message]) -> None:
    """Raises BadRequest for calls that are not an assistant's, and for a tool's message that answers no call."""
    known: set[str] = set()
    for index, message in enumerate(messages):
        where = f"messages.{index}"
        if message.tool_calls and message.role != "assistant":
            text = "only an assistant calls tools, not the role {role}"
            raise wrong(f"{where}.tool_calls", text, role=message.role)
        known.update(call.id for call in message.tool_calls)
        if message.role == "tool" and not message.tool_call_id:
            raise wrong(f"{where}.tool_call_id", "a message of the role tool says which call it answers")
        if message.role == "tool" and message.tool_call_id not in known:
            text = "no assistant's message before it has a call {id}"
            raise wrong(f"{where}.tool_call_id", text, id=quoted(message.tool_call_id))
