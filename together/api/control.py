"""What the command line, the menu and scripts may order: plan, load, nodes, shutdown. Only for this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from together.api.guard import FROM_JSON, BodyRoute, RouteHandler, is_local
from together.api.responses import Forbidden
from together.head.head import Head
from together.planning.cluster_file import problem_json
from together.planning.explain import Infeasible
from together.planning.report import answer_json, answer_text, missing_json
from together.planning.request import PlanRequest, parse_request


class _Order(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class PlanOrder(_Order):
    """A model (none: the one that serves) and how it is to be split; the words of `together plan`."""

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


class DrainOrder(_Order):
    node: str
    back: bool = False


class ForgetOrder(_Order):
    node: str


class NodesOrder(_Order):
    action: Literal["start", "stop"]


class _LocalRoute(BodyRoute):
    """A route that answers this machine only, and reads nothing from others."""

    def get_route_handler(self) -> RouteHandler:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            if not is_local(request.scope):
                raise Forbidden("control routes answer this machine only")
            return await handle(request)

        return answer


def control_routes(head: Head, shutdown: Callable[[], None]) -> APIRouter:
    """`/control/load`, `last`, `unload`, `plan`, `cluster`, `balance`, `drain`, `forget`, `nodes` and `shutdown`."""
    router = APIRouter(prefix="/control", route_class=_LocalRoute)

    @router.post("/load")
    async def load(order: Annotated[PlanOrder, FROM_JSON]) -> Response:
        """An empty order loads the last model again, as it was, before a restart too."""
        await (
            head.load() if not order.model_fields_set else head.load(order.model, order.request(head.settings.strategy))
        )
        return _done()

    @router.post("/last")
    async def last() -> Response:
        """Load what the view offers: what was applied last, also before a restart."""
        await head.load_last()
        return _done()

    @router.post("/plan")
    async def plan(order: Annotated[PlanOrder, FROM_JSON]) -> Response:
        """As `together plan --json`: the plan, or `error`, `missing_layers` and so on; `text` is both for a person."""
        outcome = await head.plan(order.model, order.request("recommend"))
        if isinstance(outcome, Infeasible):
            return JSONResponse({**missing_json(outcome), "text": str(outcome.sentence)})
        return JSONResponse({**answer_json(outcome), "text": answer_text(outcome)})

    @router.post("/cluster")
    async def cluster(order: Annotated[PlanOrder, FROM_JSON]) -> Response:
        """The living cluster in the format of `together plan --cluster`."""
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
    async def drain(order: Annotated[DrainOrder, FROM_JSON]) -> Response:
        await head.drain(order.node, order.back)
        return _done()

    @router.post("/forget")
    async def forget(order: Annotated[ForgetOrder, FROM_JSON]) -> Response:
        """Plans may use all of a node's memory again, though a stage ran out of it."""
        head.forget(order.node)
        return _done()

    @router.post("/nodes")
    async def nodes(order: Annotated[NodesOrder, FROM_JSON]) -> Response:
        await (head.local.start_one() if order.action == "start" else head.local.stop_one())
        return _done()

    @router.post("/shutdown")
    async def stop() -> Response:
        shutdown()
        return _done(202)

    return router


def _done(status: int = 200) -> Response:
    return JSONResponse({"done": True}, status)
