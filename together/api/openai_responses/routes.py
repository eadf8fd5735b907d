"""`/v1/responses`: answers that are made, asked for again, ended and deleted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from together.api.access import OpenRequests, Revoked
from together.api.answering import ModelAnswers
from together.api.guard import FROM_JSON, BodyRoute
from together.api.openai_responses.answers import ResponseFormatter
from together.api.openai_responses.requests import ResponsesRequest
from together.api.openai_responses.shapes import DeletedResponse, ItemList, ResponseObject
from together.api.responses import ErrorAnswer, NoSuchAnswer, wrong
from together.api.stream import Chunks, RequestLog
from together.api.visitors import visitor_of
from together.errors import BadRequest, ContextTooLong, TogetherError
from together.head.kept_answers import KeptAnswer
from together.requests import ChatRequest, Message, Owner
from together.types import Sampling

log = logging.getLogger(__name__)

RESPONSES = "/responses"
ENDED = ("completed", "incomplete")  # what a conversation may go on from
_FAILURES: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorAnswer} for code in (400, 401, 403, 404, 413, 429, "4XX", 500, 503)
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"model": ResponseObject, "content": {"text/event-stream": {}}},
    **_FAILURES,
}


class _Continued:
    """A request after what came before it: what `ModelAnswers` needs of a body."""

    def __init__(self, asked: ResponsesRequest, before: tuple[Message, ...]) -> None:
        self.asked = asked
        self.before = before
        self.model, self.stream, self.choices = asked.model, asked.stream, 1

    def to_chat(self, defaults: Sampling, owner: Owner) -> ChatRequest:
        return self.asked.to_chat(defaults, owner, self.before)


def response_routes(answers: ModelAnswers, open_requests: OpenRequests) -> APIRouter:
    """All of them, without the `/v1` before them. What is written in the background is among `open_requests`, too."""
    routes = APIRouter(route_class=BodyRoute)
    api = _Responses(answers, open_requests)
    routes.post(RESPONSES, responses=_ANSWERS)(api.respond)
    routes.get(RESPONSES + "/{name}", responses=_FAILURES, response_model=ResponseObject)(api.retrieve)
    routes.delete(RESPONSES + "/{name}", responses=_FAILURES)(api.delete)
    routes.post(RESPONSES + "/{name}/cancel", responses=_FAILURES, response_model=ResponseObject)(api.cancel)
    routes.get(RESPONSES + "/{name}/input_items", responses=_FAILURES)(api.input_items)
    return routes


class _Responses:
    """The handlers, bound to one head."""

    def __init__(self, answers: ModelAnswers, open_requests: OpenRequests) -> None:
        self._answers = answers
        self._open = open_requests
        self._kept = answers.head.answers

    async def respond(self, request: Request, asked: Annotated[ResponsesRequest, FROM_JSON]) -> Response:
        """Answer a conversation in the shape of OpenAI's newer API, whole, as a stream, or in the background."""
        owner = visitor_of(request.scope).owner
        asked.check()
        before = self._before(asked, owner)
        name, comes = await self._answers.routed(asked.model)
        if asked.truncation == "auto" and not comes:
            before = await self._fitting(asked, before, owner, name)
        wanted = _Continued(asked, before)
        keep = partial(self._keep, asked, owner, (*before, *asked.new_messages()))
        if asked.background:
            return await self._in_background(request, wanted, keep)
        return await self._answers.chat(request, wanted, lambda name: ResponseFormatter(name, asked, keep))

    def _before(self, asked: ResponsesRequest, owner: Owner) -> tuple[Message, ...]:
        if asked.previous_response_id is None:
            return ()
        kept = self._kept.find(owner, asked.previous_response_id)
        if kept is None:
            text = "there is no answer of that name, or not any more; give the conversation itself"
            raise BadRequest(text, "previous_response_id")
        if kept.shown["status"] not in ENDED:
            text = "that answer is not whole ({status}): wait until it is, or give the conversation itself"
            raise BadRequest(text, "previous_response_id", status=str(kept.shown["status"]))
        return kept.messages

    async def _fitting(
        self, asked: ResponsesRequest, before: tuple[Message, ...], owner: Owner, name: str
    ) -> tuple[Message, ...]:
        """What came before, without the oldest turns that the context has no room for."""
        service = self._answers.head.ready(name)
        while True:
            try:
                await service.chat_ids(asked.to_chat(Sampling(), owner, before))
                return before
            except ContextTooLong:
                if not before:
                    raise
                before = _later_half(before)

    def _keep(
        self, asked: ResponsesRequest, owner: Owner, conversation: tuple[Message, ...], made: ResponseFormatter
    ) -> None:
        if not asked.kept:
            return
        old = self._kept.find(owner, made.id)
        given = tuple(item.model_dump(exclude_none=True) for item in asked.items)
        kept = KeptAnswer(owner, (*conversation, made.message()), given, dict(made.shown()))
        kept.work = old.work if old is not None else None
        begins = made.status == "in_progress" or not asked.background
        if old is not None or begins:  # one that was deleted while it was written stays deleted
            self._kept.keep(made.id, kept)

    async def _in_background(self, request: Request, wanted: _Continued, keep: Any) -> Response:
        formatter, chunks, record = await self._answers.begin(
            request, wanted, lambda name: ResponseFormatter(name, wanted.asked, keep)
        )
        keep(formatter)
        visitor = visitor_of(request.scope)
        kept = self._kept.find(visitor.owner, formatter.id)
        assert kept is not None, "it was just kept"
        kept.work = asyncio.create_task(_write(formatter, chunks, record, self._open.held(visitor)))
        return JSONResponse(formatter.shown())

    async def retrieve(self, request: Request, name: str, stream: bool = False) -> Mapping[str, object]:
        """An answer as it is now, never its events. Those that were asked with `store: false` are not kept."""
        if stream:
            raise wrong("stream", "the events of an answer are not kept; ask for it whole")
        return self._found(request, name).shown

    async def delete(self, request: Request, name: str) -> DeletedResponse:
        """Forget an answer, and end it where it is being written in the background."""
        if not self._kept.drop(visitor_of(request.scope).owner, name):
            raise NoSuchAnswer(name)
        return {"id": name, "object": "response", "deleted": True}

    async def cancel(self, request: Request, name: str) -> Mapping[str, object]:
        """End an answer that is being written in the background; what is there of it stays."""
        found = self._found(request, name)
        if found.work is None:
            raise BadRequest("only an answer in the background can be cancelled; close the connection of this one")
        found.work.cancel()
        await asyncio.wait([found.work])
        return self._found(request, name).shown

    async def input_items(
        self,
        request: Request,
        name: str,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> ItemList:
        """The items of an answer's request, from the last one on, or in the other `order`: `limit` of those `after`."""
        found = self._found(request, name)
        items = [{"id": f"{name}_{place}", "type": "message", **item} for place, item in enumerate(found.given)]
        items = items if order == "asc" else items[::-1]
        start = next((place for place, item in enumerate(items, 1) if item["id"] == after), 0)
        if after is not None and not start:
            raise wrong("after", "it is none of the items")
        some = items[start : start + limit]
        first, last = (str(some[place]["id"]) if some else None for place in (0, -1))
        more = start + limit < len(items)
        return {"object": "list", "data": some, "first_id": first, "last_id": last, "has_more": more}

    def _found(self, request: Request, name: str) -> KeptAnswer:
        found = self._kept.find(visitor_of(request.scope).owner, name)
        if found is None:
            raise NoSuchAnswer(name)
        return found


def _later_half(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """From a user's turn on: results of tools stay with their calls."""
    rest = messages[max(1, len(messages) // 2) :]
    first = next((place for place, message in enumerate(rest) if message.role == "user"), len(rest))
    return rest[first:]


async def _write(
    formatter: ResponseFormatter, chunks: Chunks, record: RequestLog, held: AbstractAsyncContextManager[None]
) -> None:
    """Write an answer that nobody waits for; `held` ends it where its key is revoked meanwhile."""
    try:
        with record:
            async with held, aclosing(chunks):
                async for chunk in chunks:
                    record.add(chunk)
                    formatter.take(chunk)
        formatter.end(record.usage)
    except (asyncio.CancelledError, Revoked):
        formatter.cancel()
    except Exception as error:  # nobody waits: the answer itself says what happened
        if not isinstance(error, TogetherError):
            log.exception("an answer in the background failed")
        formatter.fail(error)
