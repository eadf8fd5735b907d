"""What the command line, the menu and scripts may order: plan, load, nodes, shutdown. Answers this machine only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from together.api.errors import Forbidden
from together.api.guard import is_local
from together.api.port import HeadPort
from together.api.stream import read_body
from together.errors import BadRequest
from together.planning.cluster_file import problem_json
from together.planning.explain import Infeasible
from together.planning.parse import parse_request
from together.planning.report import answer_json, answer_text, missing_json, missing_text
from together.planning.request import PlanRequest
from together.wording import MOST, cut


class PlanOrder(BaseModel):
    """A model (none: the one that serves) and how it is to be split; the words of `together plan`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    strategy: str | None = None
    users: int | None = Field(None, ge=1)
    context: int | None = Field(None, ge=1)
    ratio: str | None = None
    layers: str | None = None
    max_memory_per_partition: str | None = None
    tolerance: float | None = Field(None, ge=0)

    def request(self, usual: str) -> PlanRequest:
        """`usual` is the strategy where neither one nor layers are given. Raises BadSetting or BadPlan."""
        return parse_request(
            usual,
            self.strategy,
            users=self.users,
            context=self.context,
            ratio=self.ratio,
            layers=self.layers,
            max_memory=self.max_memory_per_partition,
            tolerance=self.tolerance,
        )

    @property
    def is_empty(self) -> bool:
        return not self.model_fields_set


class DrainOrder(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    node: str
    back: bool = False


class ForgetOrder(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    node: str


class NodesOrder(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    action: Literal["start", "stop"]


async def _only_local(request: Request) -> None:
    if not is_local(request.scope):
        raise Forbidden("control routes answer this machine only")


def control_routes(head: HeadPort, shutdown: Callable[[], None]) -> APIRouter:
    """`/control/load`, `last`, `unload`, `plan`, `cluster`, `balance`, `drain`, `forget`, `nodes` and `shutdown`."""
    router = APIRouter(prefix="/control", dependencies=[Depends(_only_local)])

    @router.post("/load")
    async def load(request: Request) -> Response:
        """An empty order loads the last model again, as it was, before a restart too."""
        order = parse_order(PlanOrder, await read_body(request))
        await (head.load() if order.is_empty else head.load(order.model, order.request(head.settings.strategy)))
        return _done()

    @router.post("/last")
    async def last() -> Response:
        """Load what the view offers: what was applied last, also before a restart."""
        await head.load_last()
        return _done()

    @router.post("/plan")
    async def plan(request: Request) -> Response:
        """As `together plan --json`: the plan, or `error`, `missing_layers` and so on; `text` is both for a person."""
        order = parse_order(PlanOrder, await read_body(request))
        outcome = await head.plan(order.model, order.request("recommend"))
        if isinstance(outcome, Infeasible):
            return JSONResponse({**missing_json(outcome), "text": missing_text(outcome)})
        return JSONResponse({**answer_json(outcome), "text": answer_text(outcome)})

    @router.post("/cluster")
    async def cluster(request: Request) -> Response:
        """The living cluster in the format of `together plan --cluster`."""
        order = parse_order(PlanOrder, await read_body(request))
        return JSONResponse(problem_json(await head.problem(order.model, order.request("recommend"))))

    @router.post("/balance")
    async def balance() -> Response:
        """Move to the plan that the view advises."""
        await head.rebalance()
        return _done()

    @router.post("/unload")
    async def unload() -> Response:
        await head.unload()
        return _done()

    @router.post("/drain")
    async def drain(request: Request) -> Response:
        order = parse_order(DrainOrder, await read_body(request))
        await head.drain(order.node, order.back)
        return _done()

    @router.post("/forget")
    async def forget(request: Request) -> Response:
        """Plans may use all of a node's memory again, though a stage ran out of it."""
        head.forget(parse_order(ForgetOrder, await read_body(request)).node)
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
        path, message = ".".join(cut(str(part), MOST) for part in first["loc"]), cut(first["msg"])
        raise BadRequest(f"{path}: {message}" if path else message, param=path or None) from None


def _done(status: int = 200) -> Response:
    return JSONResponse({"done": True}, status)
