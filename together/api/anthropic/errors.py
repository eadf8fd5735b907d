"""Errors in the shape of Anthropic's API."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from together.api.responses import answer_for
from together.errors import ContextTooLong, TogetherError

MESSAGES = "/v1/messages"

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class AnthropicErrorDetail(TypedDict):
    type: str
    message: str


class AnthropicError(TypedDict):
    type: Literal["error"]
    error: AnthropicErrorDetail


def anthropic_error(error: Exception) -> AnthropicError:
    """Anything that is not ours is a bug: its text stays in our log."""
    if not isinstance(error, TogetherError):
        return anthropic_body(500, "an internal error; the log of together says more")
    text = str(error)
    if isinstance(error, ContextTooLong):  # clients look for these words
        text = f"prompt is too long: {error.tokens} tokens > {error.context - 1} maximum ({text})"
    return anthropic_body(answer_for(error).status, text)


def anthropic_body(status: int, text: str) -> AnthropicError:
    return {"type": "error", "error": {"type": _KINDS.get(status, "api_error"), "message": text}}
