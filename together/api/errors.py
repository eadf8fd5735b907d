"""Our errors as HTTP answers in OpenAI's shape, in this one place. Does not know who raised them or why."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from together.api.responses import ErrorAnswer
from together.errors import BadInput, BadRequest, ContextTooLong, NotServing, QueueFull, TogetherError
from together.wording import quoted

logger = logging.getLogger(__name__)


class UnknownModel(BadRequest):
    """A request for a model that is not the one served."""

    def __init__(self, asked: str, served: str) -> None:
        known = f"the served model is {quoted(served)}" if served else "no model is loaded"
        super().__init__(f"the model {quoted(asked)} does not exist here; {known}", param="model")


class BodyTooLarge(BadRequest):
    """A request body over the limit."""


class NotImplementedHere(TogetherError):
    """A route of OpenAI's that this server does not have."""


class Forbidden(TogetherError):
    """A control route asked for from another machine or another page."""


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """Status, the two words of OpenAI's error object, and when to come back."""

    status: int
    type: str
    code: str | None
    retry_after: float | None = None


_INVALID = "invalid_request_error"

# The first class that fits wins: subclasses come before their bases.
_ANSWERS: tuple[tuple[type[TogetherError], ErrorResponse], ...] = (
    (ContextTooLong, ErrorResponse(400, _INVALID, "context_length_exceeded")),
    (UnknownModel, ErrorResponse(404, _INVALID, "model_not_found")),
    (BodyTooLarge, ErrorResponse(413, _INVALID, "request_too_large")),
    (BadInput, ErrorResponse(400, _INVALID, None)),
    (NotImplementedHere, ErrorResponse(501, _INVALID, "not_implemented")),
    (Forbidden, ErrorResponse(403, _INVALID, "forbidden")),
    (QueueFull, ErrorResponse(429, "rate_limit_error", "queue_full")),
    (NotServing, ErrorResponse(503, "service_unavailable_error", "model_not_ready")),
    (TogetherError, ErrorResponse(503, "service_unavailable_error", None, retry_after=5.0)),
)


def answer_for(error: TogetherError) -> ErrorResponse:
    """Status and words for one of our errors, with its own `retry_after` where it has one."""
    base = next(answer for kind, answer in _ANSWERS if isinstance(error, kind))
    if isinstance(error, (NotServing, QueueFull)):
        return ErrorResponse(base.status, base.type, base.code, error.retry_after)
    return base


def error_body(error: Exception) -> ErrorAnswer:
    """OpenAI's error object. Anything that is not ours is a bug: its text stays in our log."""
    if not isinstance(error, TogetherError):
        return _body("an internal error; the log of together says more", "server_error", None, "internal_error")
    answer = answer_for(error)
    return _body(str(error), answer.type, getattr(error, "param", None), answer.code)


def error_response(error: Exception) -> JSONResponse:
    """The whole answer for an error that came before anything was sent."""
    if not isinstance(error, TogetherError):
        return JSONResponse(error_body(error), 500)
    answer = answer_for(error)
    headers = {} if answer.retry_after is None else {"Retry-After": str(max(1, math.ceil(answer.retry_after)))}
    return JSONResponse(error_body(error), answer.status, headers)


def install(app: FastAPI, note_refusal: Callable[[Request, TogetherError], None]) -> None:
    """Make every error leave the app in OpenAI's shape; `note_refusal` hears of those that a route raised."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, TogetherError):
            note_refusal(request, error)
        return error_response(error)

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        return JSONResponse(_body(str(error.detail), _INVALID, None, code), error.status_code, error.headers)

    for kind in (TogetherError, Exception):  # the server logs the traceback of the last
        app.add_exception_handler(kind, ours)
    app.add_exception_handler(HTTPException, http)


def _body(message: str, kind: str, param: str | None, code: str | None) -> ErrorAnswer:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
