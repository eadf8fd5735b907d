"""The OpenAPI document: what the routes take and answer."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from together import __version__
from together.api.requests import ChatCompletionRequest, TextCompletionRequest
from together.api.responses import ErrorAnswer

_SCHEMAS = "#/components/schemas/{model}"


_BODIES: tuple[type[BaseModel], ...] = (ChatCompletionRequest, TextCompletionRequest)


_WORDS = {
    400: "A field is wrong or cannot be honoured: `param` names it. Or the prompt is longer than the context.",
    403: "The request comes from a page of another site.",
    404: "No such model.",
    413: "The body is too large.",
    429: "Too many requests wait already: come back after `Retry-After` seconds.",
    500: "A bug of this server.",
    503: "No model serves now: come back after `Retry-After` seconds.",
}


Responses = dict[int | str, dict[str, Any]]


def failures(*codes: int) -> Responses:
    """Answers in the error shape."""
    return {code: {"model": ErrorAnswer, "description": _WORDS[code]} for code in codes}


FAILURES = failures(400, 403, 404, 413, 429, 500, 503)


STREAMED: dict[str, Any] = {
    "description": "The answer; with `stream: true` as server-sent events, the last one is `data: [DONE]`.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """The part of a route's document that says what it reads."""
    schema = {"$ref": _SCHEMAS.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


class DocumentedApp(FastAPI):
    """An app whose `/openapi.json` has the bodies, too."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            found = get_openapi(title=self.title, version=__version__, routes=self.routes)
            _, bodies = models_json_schema([(model, "validation") for model in _BODIES], ref_template=_SCHEMAS)
            found["components"]["schemas"].update(bodies["$defs"])
            _forget_422(found)
            self.openapi_schema = found
        return self.openapi_schema


def _forget_422(document: dict[str, Any]) -> None:
    """The framework's own validation error, which no route of ours answers."""
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
