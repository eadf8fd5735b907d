"""What `together stop`, the menu and a script may order: load, unload, nodes, shutdown. Answers this machine only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, ValidationError

from together.api.errors import Forbidden
from together.api.guard import is_local
from together.api.port import HeadPort
from together.api.streaming import read_body
from together.errors import BadRequest


class LoadOrder(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    folder: str | None = None
    boundaries: list[int] | None = None


class NodesOrder(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    action: Literal["start", "stop"]


async def _only_local(request: Request) -> None:
    if not is_local(request.scope):
        raise Forbidden("control routes answer this machine only")


def control_routes(head: HeadPort, shutdown: Callable[[], None]) -> APIRouter:
    """`/control/load`, `unload`, `nodes` and `shutdown`."""
    router = APIRouter(prefix="/control", dependencies=[Depends(_only_local)])

    @router.post("/load")
    async def load(request: Request) -> Response:
        order = parse_order(LoadOrder, await read_body(request))
        boundaries = None if order.boundaries is None else tuple(order.boundaries)
        await head.load(None if order.folder is None else Path(order.folder), boundaries)
        return _done()

    @router.post("/unload")
    async def unload() -> Response:
        await head.unload()
        return _done()

    @router.post("/nodes")
    async def nodes(request: Request) -> Response:
        order = parse_order(NodesOrder, await read_body(request))
        await (head.start_local_node() if order.action == "start" else head.stop_local_node())
        return _done()

    @router.post("/shutdown")
    async def stop() -> Response:
        shutdown()
        return _done(202)

    return router


OrderT = TypeVar("OrderT", bound=BaseModel)


def parse_order(kind: type[OrderT], body: bytes) -> OrderT:
    """A small JSON body. Raises BadRequest naming the wrong field."""
    try:
        return kind.model_validate_json(body or b"{}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"{path}: {first['msg']}" if path else first["msg"], param=path or None) from None


def _done(status: int = 200) -> Response:
    return JSONResponse({"done": True}, status)
