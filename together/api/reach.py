"""How others come to this app, for its page: the join code, a phone's key with its link, and how this browser came."""

from __future__ import annotations

import asyncio
from typing import Annotated

import segno
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict

from together.api.access import cookie_name
from together.api.guard import FROM_JSON, LocalRoute
from together.api.keys import KeyFile
from together.api.visitors import visitor_of
from together.commands import as_typed
from together.errors import BadRequest
from together.head.head import Head
from together.head.reach import join_command, page_address
from together.settings import Settings
from together.trust.secret import SecretFile

CLOSED = (
    "this app answers this machine alone; to let other machines and phones in, stop it, then start it with: "
    "python3 launch.py up --host 0.0.0.0"
)
_SECRET = {"Cache-Control": "no-store"}


class NewPhone(BaseModel):
    """What its key is to be called."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str


def reach_routes(head: Head) -> APIRouter:
    """`/reach`."""
    router, settings = APIRouter(), head.settings

    @router.get("/reach")
    async def reach(request: Request) -> Response:
        """`here`: this browser may let others in; `key`: it came by one, and can forget it at `/logout`.

        `closed` says how to open an app that answers this machine alone; "" where it is open.
        """
        here = visitor_of(request.scope).here
        told = as_typed(CLOSED) if here and not settings.open_to_network else ""
        return JSONResponse({"here": here, "key": cookie_name(request.scope) in request.cookies, "closed": told})

    return router


def invitation_routes(head: Head, keys: KeyFile) -> APIRouter:
    """`/reach/…`: what lets others in is told to this machine alone."""
    router, settings = APIRouter(route_class=LocalRoute), head.settings

    @router.get("/reach/machines")
    async def machines() -> Response:
        """The join code, and the one command for another machine."""
        _check(settings)
        code = await asyncio.to_thread(SecretFile(settings.config_path).code)
        command = await asyncio.to_thread(join_command, settings, head.machines.where.endpoint)
        return JSONResponse({"code": code, "command": command}, headers=_SECRET)

    @router.post("/reach/phones")
    async def phones(body: Annotated[NewPhone, FROM_JSON]) -> Response:
        """A new key as a link, and that as the rows of a QR code, a letter for each square. It is shown this once."""
        _check(settings)
        page = head.machines.membership.page
        if not page:
            raise BadRequest("a proxy of yours has this page's address; a key for it: python3 launch.py keys make NAME")
        _, text = await asyncio.to_thread(keys.make, body.name)
        address = await asyncio.to_thread(page_address, settings, head.machines.where.endpoint, page)
        link = f"{address}/?key={text}"
        return JSONResponse({"link": link, "rows": squares(link)}, 201, _SECRET)

    return router


def _check(settings: Settings) -> None:
    """Raises BadRequest where nobody else could come."""
    if not settings.open_to_network:
        raise BadRequest(CLOSED)


def squares(text: str) -> list[str]:
    """The QR code of `text`, row by row: 1 for a dark square, 0 for a light one."""
    return ["".join(map(str, row)) for row in segno.make(text, error="l", micro=False).matrix]
