"""`/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from typing_extensions import TypedDict

from together.api.answering import ModelAnswers
from together.api.anthropic.answers import AnthropicAnswer, MessageFormatter
from together.api.anthropic.errors import MESSAGES, AnthropicError
from together.api.anthropic.requests import CountRequest, MessagesRequest
from together.api.guard import FROM_JSON, BodyRoute
from together.api.visitors import visitor_of

_FAILURES: dict[int | str, dict[str, Any]] = {
    code: {"model": AnthropicError} for code in (400, 401, 403, 404, 413, 429, "4XX", 500, 503)
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"model": AnthropicAnswer, "content": {"text/event-stream": {}}},
    **_FAILURES,
}


class TokenCount(TypedDict):
    input_tokens: int


def message_routes(answers: ModelAnswers) -> APIRouter:
    routes = APIRouter(route_class=BodyRoute)

    @routes.post(MESSAGES, responses=_ANSWERS)
    async def message(request: Request, asked: Annotated[MessagesRequest, FROM_JSON]) -> Response:
        """Answer a conversation in Anthropic's shape, whole or as a stream."""
        return await answers.chat(
            request, asked, partial(MessageFormatter, thinks=asked.thinks, limit=asked.max_tokens)
        )

    @routes.post(f"{MESSAGES}/count_tokens", responses=_FAILURES)
    async def count(request: Request, asked: Annotated[CountRequest, FROM_JSON]) -> TokenCount:
        """How many tokens a conversation has as a prompt."""
        wanted = asked.prompt(visitor_of(request.scope).owner)
        return {"input_tokens": len(await (await answers.service(asked.model)).chat_ids(wanted))}

    return routes
