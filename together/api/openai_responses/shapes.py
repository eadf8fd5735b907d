"""What `/v1/responses` answers: the types of its JSON, for mypy and the OpenAPI document."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from together.api.responses import ChatLogprob

Status = Literal["completed", "incomplete", "failed", "in_progress", "cancelled"]


class ContentOut(TypedDict):
    """A part of a message (`output_text`) or of thoughts (`reasoning_text`)."""

    type: str
    text: str
    annotations: NotRequired[list[object]]
    logprobs: NotRequired[list[ChatLogprob]]


class OutputItem(TypedDict):
    """A message, thoughts, or a call; which fields there are depends on `type`."""

    id: str
    type: str
    status: Status
    role: NotRequired[str]
    content: NotRequired[list[ContentOut]]
    summary: NotRequired[list[object]]
    encrypted_content: NotRequired[str]
    call_id: NotRequired[str]
    name: NotRequired[str]
    namespace: NotRequired[str]
    arguments: NotRequired[str]
    input: NotRequired[str]


class InputDetails(TypedDict):
    cached_tokens: int
    cache_write_tokens: int


class OutputCounts(TypedDict):
    reasoning_tokens: int


class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputCounts
    total_tokens: int


class ResponseFault(TypedDict):
    code: str
    message: str


class IncompleteReason(TypedDict):
    reason: str


class ResponseObject(TypedDict):
    id: str
    object: Literal["response"]
    created_at: int
    status: Status
    background: bool
    error: ResponseFault | None
    incomplete_details: IncompleteReason | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, object]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, object]
    store: bool
    temperature: float | None
    text: dict[str, object]
    tool_choice: object
    tools: list[object]
    top_p: float | None
    truncation: str
    usage: ResponseUsage | None
    user: str | None


class DeletedResponse(TypedDict):
    id: str
    object: Literal["response"]
    deleted: bool


class ItemList(TypedDict):
    object: Literal["list"]
    data: list[dict[str, object]]
    first_id: str | None
    last_id: str | None
    has_more: bool
