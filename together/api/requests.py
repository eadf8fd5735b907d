"""The bodies of requests for chats and completions, and what they mean in our words. Knows no HTTP and no model.

What OpenAI defines and this version cannot do is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from together.api.fields import (
    MOST_LOGPROBS,
    SMALL,
    AnswerFields,
    Limit,
    MessageCalls,
    ResponseFormat,
    Strict,
    ToolChoice,
    Tools,
    check_calls,
    limit_of,
    tool_calls,
    tool_use,
)
from together.errors import BadRequest
from together.requests import ChatRequest, CompletionRequest, Message
from together.types import Sampling
from together.wording import quoted

MOST_SEQUENCES = 128  # prompts times choices of one request: half of the queue
MOST_MESSAGES = 10_000
USUAL_MAX_TOKENS = 16  # of a completion, as OpenAI has it

TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=SMALL)]], Field(min_length=1, max_length=2**20, fail_fast=True)]
Several = Field(min_length=1, max_length=MOST_SEQUENCES, fail_fast=True)


class ContentPart(Strict):
    type: str
    text: str | None = None


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

    Accepted without effect: user, store, metadata, service_tier, reasoning_effort, verbosity, safety_identifier, and
    everything about prompt caches (equal beginnings are always computed once only).
    Roles developer and system are the same. Names that are not listed are ignored.
    """

    messages: Annotated[list[InputMessage], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None
    chat_template: str | None = None  # the name of one of the model's own templates, never a template
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    # accepted without effect
    reasoning_effort: str | None = None
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

    def to_chat(self, defaults: Sampling) -> ChatRequest:
        """Our request; `defaults` hold where it is silent. Raises BadRequest naming a field that cannot be honoured."""
        self._refuse_unsupported()
        messages = tuple(_message(index, message) for index, message in enumerate(self.messages))
        check_calls(messages)
        return ChatRequest(
            messages=messages,
            sampling=self.sampling(defaults),
            max_tokens=limit_of(self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens),
            stop=self.stops(),
            ignore_eos=bool(self.ignore_eos),
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else -1,
            choices=self.choices,
            template=self.chat_template_kwargs or {},
            chosen_template=self.chat_template,
            grammar=self.response_format.grammar() if self.response_format else None,
            tool_use=tool_use(self.tools, self.tool_choice, self.parallel_tool_calls),
        )

    def _refuse_unsupported(self) -> None:
        if self.top_logprobs and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        plain = ("audio", "moderation", "prediction", "functions", "function_call", "web_search_options")
        self.refuse(
            modalities=self.modalities not in (None, [], ["text"]),
            **{name: getattr(self, name) is not None for name in plain},
        )


class TextCompletionRequest(AnswerFields):
    """`POST /v1/completions`.

    Accepted without effect: user, store, metadata, service_tier. Names that are not listed are ignored.
    """

    prompt: str | Annotated[list[str], Several] | TokenIds | Annotated[list[TokenIds], Several]
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None

    def to_completion(self, defaults: Sampling) -> CompletionRequest:
        """Our request; `defaults` hold where it is silent. Raises BadRequest naming a field that cannot be honoured."""
        self.refuse()
        prompts = self._prompts()
        if len(prompts) * self.choices > MOST_SEQUENCES:
            raise BadRequest(f"prompt: with n choices each, at most {MOST_SEQUENCES} at once", param="prompt")
        return CompletionRequest(
            prompts=prompts,
            sampling=self.sampling(defaults),
            max_tokens=USUAL_MAX_TOKENS if self.max_tokens is None else limit_of(self.max_tokens),
            stop=self.stops(),
            ignore_eos=bool(self.ignore_eos),
            top_logprobs=-1 if self.logprobs is None else self.logprobs,
            choices=self.choices,
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
        path = f"{where}.function_call"
        raise BadRequest(f"{path}: not supported by this version of together; use tool_calls", param=path)
    return Message(
        "system" if message.role == "developer" else message.role,
        _text(message.content, f"{where}.content"),
        message.reasoning_content or "",
        tool_calls(message.tool_calls),
        (message.tool_call_id or "") if message.role == "tool" else "",
    )


def _text(content: str | list[ContentPart] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.type != "text" or part.text is None:
            raise BadRequest(f"{where}: only parts of type text are read, not {quoted(part.type)}", param=where)
    return "".join(part.text or "" for part in content)
