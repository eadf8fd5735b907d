"""The page's pictures: `POST /attachments` holds one and names it, `GET /attachments/NAME` shows it."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from together.api.guard import body_within
from together.api.responses import BodyTooLarge
from together.api.visitors import visitor_of
from together.head.head import Head
from together.text.pictures import MOST_FILE, kind_of


def attachment_routes(head: Head) -> APIRouter:
    """For the page alone; programs send pictures with their requests."""
    router = APIRouter()

    @router.post("/attachments")
    async def attach(request: Request) -> Response:
        """The body is the file."""
        refusal = BodyTooLarge("a picture may have at most {most} MB; make it smaller", most=MOST_FILE // 2**20)
        data = await body_within(request, MOST_FILE, refusal)
        kind = await asyncio.to_thread(kind_of, data)
        return JSONResponse({"name": head.attachments.add(visitor_of(request.scope).owner, data, kind)}, 201)

    @router.get("/attachments/{name}")
    async def attachment(request: Request, name: str) -> Response:
        """404 also for what is somebody else's."""
        found = head.attachments.find(visitor_of(request.scope).owner, name)
        if found is None:
            raise HTTPException(404, "there is no such picture; it is held for an hour")
        return Response(found.data, media_type=found.kind, headers={"Cache-Control": "private, max-age=3600"})

    return router
