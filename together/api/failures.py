"""Errors as whole HTTP answers, each in the shape of the API that was asked."""

from __future__ import annotations

import math
from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from together.api.anthropic.errors import MESSAGES, anthropic_body, anthropic_error
from together.api.responses import INVALID, answer_for, error_body, error_of, wrong
from together.errors import TogetherError
from together.wording import MOST, cut


def is_anthropic(path: str) -> bool:
    return path == MESSAGES or path.startswith(f"{MESSAGES}/")


def error_response(error: Exception, path: str) -> JSONResponse:
    """The whole answer for an error that came before anything was sent to a request for `path`."""
    body = anthropic_error(error) if is_anthropic(path) else error_body(error)
    if not isinstance(error, TogetherError):
        return JSONResponse(body, 500)
    answer = answer_for(error)
    headers = {} if answer.retry_after is None else {"Retry-After": str(max(1, math.ceil(answer.retry_after)))}
    if answer.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, answer.status, headers)


def install(app: FastAPI, note_refusal: Callable[[Request, TogetherError], None]) -> None:
    """Make every error leave the app in one of these shapes; `note_refusal` hears of those that a route raised."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, TogetherError):
            note_refusal(request, error)
        return error_response(error, request.url.path)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        status, text = error.status_code, str(error.detail)
        if is_anthropic(request.url.path):
            return JSONResponse(anthropic_body(status, text), status, error.headers)
        code = {404: "not_found", 405: "method_not_allowed"}.get(status)
        return JSONResponse(error_of(text, INVALID, None, code), status, error.headers)

    async def query(request: Request, error: Exception) -> JSONResponse:
        """A parameter of the address: bodies are parsed by `FromJson`."""
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return await ours(request, wrong(str(first["loc"][-1]), "{reason}", reason=cut(first["msg"], MOST)))

    app.add_exception_handler(RequestValidationError, query)
    for kind in (TogetherError, Exception):  # the server logs the traceback of the last
        app.add_exception_handler(kind, ours)
    app.add_exception_handler(HTTPException, http)
