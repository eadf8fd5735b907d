"""What this server answers: the types of its JSON, for mypy and the OpenAPI document, and what errors are in HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired

from typing_extensions import TypedDict  # pydantic does not read typing's own before Python 3.12

from together.chats.records import NoSuchChat
from together.errors import BadInput, BadRequest, ContextTooLong, NotServing, QueueFull, TogetherError
from together.sentences import Value, template
from together.tools.servers import NoSuchServer
from together.tools.sessions import ToolFault
from together.wording import quoted


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(TypedDict):
    error: ErrorDetail


class PromptDetails(TypedDict):
    cached_tokens: int


class CompletionDetails(TypedDict):
    reasoning_tokens: int


class UsageCount(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


# --- chats ------------------------------------------------------------------------------------------------------------


class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    content: list[ChatLogprob]
    refusal: None


class CalledFunction(TypedDict):
    name: str
    arguments: str


class ChatToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(TypedDict):
    """`content` is null where the answer is calls only."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ChatToolCall]]
    refusal: None


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageCount


class FunctionDelta(TypedDict):
    name: NotRequired[str]
    arguments: str


class ToolCallDelta(TypedDict):
    """The first one of a call has its id, type and name, the others parts of its arguments."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


class Delta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCallDelta]]


class ChunkChoice(TypedDict):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatChunk(TypedDict):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: NotRequired[UsageCount]


# --- completions ------------------------------------------------------------------------------------------------------


class TextLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]  # null: nothing comes before it
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(TypedDict):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str | None


class TextCompletion(TypedDict):
    """Whole, or a chunk of a stream: OpenAI gives both the same shape."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: NotRequired[UsageCount]


# --- the rest ---------------------------------------------------------------------------------------------------------


class ModelEntry(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    sampling_defaults: dict[str, float]  # what holds where a request is silent
    sampling_by_author: list[str]  # which of them the model's generation_config.json sets


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelEntry]


class Health(TypedDict):
    status: Literal["ok", "unavailable"]
    state: NotRequired[str]
    model: NotRequired[str]
    reason: NotRequired[str]


class Version(TypedDict):
    name: str
    version: str
    pid: int


# --- errors -----------------------------------------------------------------------------------------------------------


class UnknownModel(BadRequest):
    """A request for a model that is none of those served."""

    def __init__(self, asked: str, served: Sequence[str]) -> None:
        known: Value = "no model is loaded"
        if served:
            names = tuple(map(quoted, served))
            known = template("the served {names:plural model is|models are} {names:and}", names=names)
        super().__init__("the model {asked} does not exist here; {known}", "model", asked=quoted(asked), known=known)


class BodyTooLarge(BadRequest):
    """A request body over the limit."""


class NotImplementedHere(TogetherError):
    """A route of OpenAI's that this server does not have."""


class NoSuchAnswer(BadRequest):
    """None of that name is kept for who asks."""

    def __init__(self, name: str) -> None:
        super().__init__("there is no answer {name}, or not any more", "response_id", name=quoted(name))


class Forbidden(TogetherError):
    """A control route asked for from another machine or another page."""


class NoKey(TogetherError):
    """A request from another machine without a key, or with one that is none."""


class TooManyWrongKeys(TogetherError):
    """One more wrong key from where many came from."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("too many wrong keys were tried; a right one is taken at once")
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """Status, the two words of OpenAI's error object, and when to come back."""

    status: int
    type: str
    code: str | None
    retry_after: float | None = None


INVALID = "invalid_request_error"

# The first class that fits wins: subclasses come before their bases.
_ANSWERS: tuple[tuple[type[TogetherError], ErrorResponse], ...] = (
    (ContextTooLong, ErrorResponse(400, INVALID, "context_length_exceeded")),
    (UnknownModel, ErrorResponse(404, INVALID, "model_not_found")),
    (NoSuchAnswer, ErrorResponse(404, INVALID, "not_found")),
    (NoSuchChat, ErrorResponse(404, INVALID, "not_found")),
    (NoSuchServer, ErrorResponse(404, INVALID, "not_found")),
    (ToolFault, ErrorResponse(502, "api_error", "tool_server")),
    (BodyTooLarge, ErrorResponse(413, INVALID, "request_too_large")),
    (BadInput, ErrorResponse(400, INVALID, None)),
    (NotImplementedHere, ErrorResponse(404, INVALID, "not_implemented")),
    (Forbidden, ErrorResponse(403, INVALID, "forbidden")),
    (NoKey, ErrorResponse(401, INVALID, "invalid_api_key")),
    (TooManyWrongKeys, ErrorResponse(429, "rate_limit_error", "too_many_wrong_keys")),
    (QueueFull, ErrorResponse(429, "rate_limit_error", "queue_full")),
    (NotServing, ErrorResponse(503, "service_unavailable_error", "model_not_ready")),
    (TogetherError, ErrorResponse(503, "service_unavailable_error", None, retry_after=5.0)),
)


def answer_for(error: TogetherError) -> ErrorResponse:
    """Status and words for one of our errors, with its own `retry_after` where it has one."""
    base = next(answer for kind, answer in _ANSWERS if isinstance(error, kind))
    if isinstance(error, (NotServing, QueueFull, TooManyWrongKeys)):
        return ErrorResponse(base.status, base.type, base.code, error.retry_after)
    return base


def error_body(error: Exception) -> ErrorAnswer:
    """OpenAI's error object. Anything that is not ours is a bug: its text stays in our log."""
    if not isinstance(error, TogetherError):
        return error_of("an internal error; the log of together says more", "server_error", None, "internal_error")
    answer = answer_for(error)
    return error_of(str(error), answer.type, getattr(error, "param", None), answer.code)


def wrong(path: str, english: str, **values: Value) -> BadRequest:
    """An error of the field at `path`; `english` is a template."""
    return BadRequest("{path}: {reason}", path, path=path, reason=template(english, **values))


def error_of(message: str, kind: str, param: str | None, code: str | None) -> ErrorAnswer:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
