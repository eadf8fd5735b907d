"""Servers of tools on the page: lists, adding an address, removing. Programs are added in the terminal alone.

Whatever a route takes or gives belongs to the request's owner. A key of a server is never given back.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from together.api.guard import FROM_JSON, BodyRoute
from together.api.visitors import visitor_of
from together.errors import BadRequest
from together.head.head import Head
from together.requests import LOCAL
from together.tools.offers import MOST_EDITED, answer_schema, functions_of
from together.tools.servers import MOST_ADDRESS, MOST_KEY, ServerFile, ToolServer, check_server


class NewServer(BaseModel):
    """An address that speaks MCP by streamable HTTP; `key` goes with each request to it as a bearer's."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str = Field(max_length=100)
    url: str = Field(max_length=MOST_ADDRESS)
    key: str = Field(default="", max_length=MOST_KEY)


class ToolsAsTyped(BaseModel):
    """What a user writes in the settings of a chat."""

    model_config = ConfigDict(strict=True, extra="forbid")

    functions: str = Field(default="", max_length=MOST_EDITED)
    json_schema: str = Field(default="", max_length=MOST_EDITED)


def tool_routes(head: Head) -> APIRouter:
    """`/tool-servers…`."""
    router, toolbox = APIRouter(route_class=BodyRoute), head.chats.toolbox

    @router.get("/tool-servers")
    async def servers(request: Request) -> Response:
        found = await toolbox.change(ServerFile.of, visitor_of(request.scope).owner)
        return _json([_shown(server) for server in found])

    @router.post("/tool-servers")
    async def add(request: Request, body: Annotated[NewServer, FROM_JSON]) -> Response:
        """Looks at its tools first: one that does not answer is not kept. Who holds a key may add public ones alone."""
        owner = visitor_of(request.scope).owner
        server = ToolServer(body.name.strip(), owner, body.url.strip(), key=body.key.strip(), anywhere=owner == LOCAL)
        check_server(server)
        found, odd = await toolbox.try_server(server)
        await toolbox.change(ServerFile.add, server)
        return _json({**_shown(server), "tools": [tool.name for tool in found], "left_out": odd}, 201)

    @router.get("/tool-servers/{name}/tools")
    async def tools(request: Request, name: str) -> Response:
        """What it has now; `left_out` names those that no model can be held to."""
        server = await toolbox.change(ServerFile.find, visitor_of(request.scope).owner, name)
        found, odd = await toolbox.tools(server)
        shown = [{"name": tool.name, "description": tool.description, "allowed": server.allows(tool)} for tool in found]
        return _json({"tools": shown, "left_out": odd})

    @router.delete("/tool-servers/{name}/allowed")
    async def ask_again(request: Request, name: str) -> Response:
        """Each call of its tools needs a yes again."""
        await toolbox.change(ServerFile.ask_again, visitor_of(request.scope).owner, name)
        return _json({"done": True})

    @router.delete("/tool-servers/{name}")
    async def remove(request: Request, name: str) -> Response:
        await toolbox.remove(visitor_of(request.scope).owner, name)
        return _json({"done": True})

    @router.post("/tool-servers/check")
    async def check(body: Annotated[ToolsAsTyped, FROM_JSON]) -> Response:
        """Whether functions and a schema can be used as they are written; else `wrong` says what to change."""
        try:
            await asyncio.to_thread(functions_of, body.functions)
            await asyncio.to_thread(answer_schema, body.json_schema)
        except BadRequest as error:
            return _json({"wrong": str(error)})
        return _json({"wrong": ""})

    return router


def _shown(server: ToolServer) -> dict[str, Any]:
    return {"name": server.name, "at": server.shown, "program": bool(server.command), "allowed": sorted(server.allowed)}


def _json(value: object, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")
