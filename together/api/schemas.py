"""The body of a chat request, checked strictly, and what it means in our words. Knows no HTTP and no model.

Names that OpenAI does not define are ignored; what OpenAI defines and this version cannot do is refused by name.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from together.errors import BadRequest
from together.requests import ChatRequest, Message
from together.types import Sampling

Penalty = Annotated[float, Field(ge=-2, le=2)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class ContentPart(_Strict):
    type: str
    text: str | None = None


class InputMessage(_Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    tool_calls: JsonValue = None
    function_call: JsonValue = None


class StreamOptions(_Strict):
    include_usage: bool | None = None


class ChatCompletionRequest(_Strict):
    """`POST /v1/chat/completions`. Fields without effect are listed too, so that their types are checked."""

    messages: Annotated[list[InputMessage], Field(min_length=1)]
    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # accepted without effect
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, JsonValue] | None = None
    service_tier: str | None = None
    reasoning_effort: str | None = None
    parallel_tool_calls: bool | None = None
    # refused unless they ask for nothing
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: JsonValue = None
    tools: list[JsonValue] | None = None
    tool_choice: JsonValue = None
    chat_template_kwargs: dict[str, JsonValue] | None = None
    modalities: list[str] | None = None
    audio: JsonValue = None
    prediction: JsonValue = None
    functions: JsonValue = None
    function_call: JsonValue = None
    suffix: JsonValue = None
    echo: JsonValue = None
    best_of: JsonValue = None
    web_search_options: JsonValue = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def to_chat(self) -> ChatRequest:
        """Our request. Raises BadRequest naming the field that cannot be honoured."""
        self._refuse_unsupported()
        return ChatRequest(
            messages=tuple(_message(index, message) for index, message in enumerate(self.messages)),
            sampling=self._sampling(),
            max_tokens=self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens,
            stop=self._stop(),
        )

    def _sampling(self) -> Sampling:
        given = {
            "temperature": self.temperature,
            "top_k": None if self.top_k is None else max(self.top_k, 0),
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }
        values = {name: value for name, value in given.items() if value is not None}
        seed = secrets.randbits(63) if self.seed is None else self.seed % 2**64
        return Sampling(**values, logit_bias=self._logit_bias(), seed=seed)  # type: ignore[arg-type]  # top_k is an int

    def _logit_bias(self) -> tuple[tuple[int, float], ...]:
        bias = self.logit_bias or {}
        if not all(key.isascii() and key.isdecimal() and len(key) < 10 for key in bias):
            raise BadRequest('logit_bias: its keys are token ids, as "1234"', param="logit_bias")
        return tuple((int(key), value) for key, value in bias.items())

    def _stop(self) -> tuple[str, ...]:
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stops) > 16 or "" in stops:
            raise BadRequest("stop: a text, or up to 16 texts, none of them empty", param="stop")
        return stops

    def _refuse_unsupported(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options needs stream: true", param="stream_options")
        asked = {
            "n": (self.n or 1) > 1,
            "logprobs": bool(self.logprobs),
            "top_logprobs": self.top_logprobs is not None,
            "response_format": self.response_format not in (None, {"type": "text"}),
            "tools": bool(self.tools),
            "tool_choice": self.tool_choice not in (None, "none", "auto"),
            "modalities": self.modalities not in (None, [], ["text"]),
            "chat_template_kwargs": bool(self.chat_template_kwargs),
        }
        plain = ("audio", "prediction", "functions", "function_call", "suffix", "echo", "best_of", "web_search_options")
        asked |= {name: getattr(self, name) not in (None, False) for name in plain}
        for name, is_asked in asked.items():
            if is_asked:
                raise BadRequest(f"{name} is not supported by this version of together; leave it out", param=name)


def parse_chat(body: bytes) -> ChatCompletionRequest:
    """A request body as its schema. Raises BadRequest with the path of the first wrong field."""
    try:
        return ChatCompletionRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise BadRequest(*_describe(first["loc"], first["msg"])) from None


def _describe(location: tuple[int | str, ...], message: str) -> tuple[str, str | None]:
    # pydantic adds the branch of a union it tried ("str", "list[str]") to the path
    names = [part for part in location if isinstance(part, int) or str(part).isidentifier()]
    path = ".".join(str(name) for name in names if name not in ("str", "list"))
    return (f"{path}: {message}" if path else message), path or None


def _message(index: int, message: InputMessage) -> Message:
    where = f"messages.{index}"
    if message.role == "tool" or message.tool_calls or message.function_call:
        raise BadRequest("tool calls are not supported by this version of together", param=f"{where}.role")
    role = "system" if message.role == "developer" else message.role
    return Message(role, _text(message.content, f"{where}.content"))


def _text(content: str | list[ContentPart] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.type != "text" or part.text is None:
            raise BadRequest(f"{where}: only parts of type text are read, not {part.type!r}", param=where)
    return "".join(part.text or "" for part in content)
