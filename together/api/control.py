"""What the command line, the menu and scripts may order: plan, load, nodes, shutdown. Only for this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from math import isfinite
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from together.api.answers import finite, word
from together.api.guard import FROM_JSON, LocalRoute
from together.api.stream import GONE, ClientGone, while_connected
from together.api.visitors import visitor_of
from together.head.head import Head
from together.head.leaving import ends_a_model, if_stopped, stop_node
from together.planning.cluster_file import problem_json
from together.planning.explain import Infeasible
from together.planning.report import answer_json, answer_text, missing_json
from together.planning.request import PlanRequest, parse_dtype, parse_request
from together.requests import Owner, ScoreRequest, TextScore


class _Order(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class PlanOrder(_Order):
    """A model (none: the one that serves) and how it is to be split; the words of `launch.py plan`."""

    model: str | None = None
    strategy: str | None = None
    users: int | None = Field(None, ge=1)
    context: int | None = Field(None, ge=1)
    ratio: str | None = None
    layers: str | None = None
    max_memory_per_partition: str | None = None
    tolerance: float | None = Field(None, ge=0)
    quantize: str | None = None
    quantize_head: str | None = None
    beside: bool = False  # what serves goes on
    keep: bool | None = None  # whether others may have its memory; null: as before

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
            quantize=self.quantize,
            quantize_head=self.quantize_head,
        )


class MeasureShape(_Order):
    """The config.json of the model at whose shape the machines are to be measured, the dtype, and bytes of a hop."""

    config: dict[str, Any]
    dtype: str = "bf16"
    size: int = Field(ge=0, le=2**24)


class DrainOrder(_Order):
    node: str
    back: bool = False


class ForgetOrder(_Order):
    node: str


class TextsOrder(_Order):
    """A key's id, or `local`; null is everybody."""

    owner: str | None = None


class NodesOrder(_Order):
    """`node` is the name or id of one that this app started; `stop` without it takes the newest."""

    action: Literal["start", "stop", "foresee"]
    node: str | None = None


class ModelOrder(_Order):
    """One of the models that serve, by its name; none where it is the only one."""

    model: str = ""


class SwitchOrder(_Order):
    on: bool


class KeepOrder(_Order):
    model: str
    on: bool


class AliasOrder(_Order):
    name: str
    model: str = ""


class ScoreOrder(_Order):
    """A text to score, and how it is cut where it is long, in tokens; `text` as a whole where both are left out."""

    text: str
    model: str = ""
    window: int | None = None
    stride: int | None = None


def control_routes(head: Head, shutdown: Callable[[], None]) -> APIRouter:
    """All of `/control/…`: `load`, `last`, `unload`, `plan`, `cluster`, `machines`, `balance`, `drain`, and so on."""
    router = APIRouter(prefix="/control", route_class=LocalRoute)

    @router.post("/load")
    async def load(order: Annotated[PlanOrder, FROM_JSON]) -> Response:
        """An empty order loads the last model again, as it was, before a restart too."""
        request = order.request(head.settings.strategy) if order.model_fields_set else None
        return _done(model=await head.load(order.model, request, beside=order.beside, keep=order.keep))

    @router.post("/last")
    async def last() -> Response:
        """Load what the view offers: what was applied last, also before a restart."""
        return _done(model=await head.load_last())

    @router.post("/plan")
    async def plan(order: Annotated[PlanOrder, FROM_JSON]) -> Response:
        """As `launch.py plan --json`: the plan, or `error`, `missing_layers` and so on; `text` is both for a person."""
        outcome = await head.plan(order.model, order.request("recommend"), order.beside)
        if isinstance(outcome, Infeasible):
            return JSONResponse({**missing_json(outcome), "text": str(outcome.sentence)})
        return JSONResponse({**answer_json(outcome), "text": answer_text(outcome)})

    @router.post("/cluster")
    async def cluster(order: Annotated[PlanOrder, FROM_JSON]) -> Response:
        """The living cluster in the format of `launch.py plan --cluster`."""
        return JSONResponse(problem_json(await head.problem(order.model, order.request("recommend"))))

    @router.post("/machines")
    async def machines(shape: Annotated[MeasureShape, FROM_JSON]) -> Response:
        """The living nodes' devices and links, measured: `here` are this machine's, a node's best comes first."""
        config = json.dumps(shape.config).encode()
        found, links = await head.measured(config, parse_dtype(shape.dtype), shape.size)
        own = head.machines.surveyor.machine
        measured = [
            {"name": place.name, "here": place.machine == own, "device": place.device.key}
            | {"free_bytes": place.device.free_bytes, "profile": asdict(profile)}
            for place, profile in found.items()
        ]
        return JSONResponse({"machines": measured, "links": [asdict(link) for link in links]})

    @router.post("/score")
    async def score(request: Request, order: Annotated[ScoreOrder, FROM_JSON]) -> Response:
        """Each token of a text with its log-probability, by the model that serves; null for a first one without."""
        work = head.ready(order.model).score(
            ScoreRequest(order.text, order.window, order.stride, visitor_of(request.scope).owner)
        )
        try:
            return JSONResponse(score_json(await while_connected(request, work)))
        except ClientGone:
            return Response(status_code=GONE)

    @router.post("/balance")
    async def balance(order: Annotated[ModelOrder, FROM_JSON]) -> Response:
        """Move to the plan that the view advises."""
        return _done(model=await head.rebalance(order.model))

    @router.post("/unload")
    async def unload(order: Annotated[ModelOrder, FROM_JSON]) -> Response:
        await head.unload(order.model)
        return _done()

    @router.post("/on-demand")
    async def on_demand(order: Annotated[SwitchOrder, FROM_JSON]) -> Response:
        """Whether a request loads the model that it names."""
        head.demands.on = order.on
        return _done()

    @router.post("/keep")
    async def keep(order: Annotated[KeepOrder, FROM_JSON]) -> Response:
        """Whether other models may have the memory of one that serves."""
        await head.orders.keep(order.model, order.on)
        return _done()

    @router.post("/alias")
    async def alias(order: Annotated[AliasOrder, FROM_JSON]) -> Response:
        """Another name for requests, also after a restart; without a model it is given up."""
        await head.demands.alias(order.name, order.model)
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

    @router.post("/forget-texts")
    async def forget_texts(order: Annotated[TextsOrder, FROM_JSON]) -> Response:
        """Give up what is kept of chats, or of an owner's; says how many of what that were."""
        gone = await head.forget_texts(None if order.owner is None else Owner(order.owner))
        return JSONResponse({"done": True, **asdict(gone)})

    @router.post("/nodes")
    async def nodes(order: Annotated[NodesOrder, FROM_JSON]) -> Response:
        """Start one more, or stop one; `foresee` says what stopping `node` would mean, and whether a model ends so."""
        if order.action == "foresee":
            meaning = await if_stopped(head, order.node or "")
            return JSONResponse({"text": str(meaning), "ends": ends_a_model(meaning)})
        if order.action == "start":
            await head.local.start_one()
        elif order.node is None:
            await head.local.stop_one()
        else:
            await stop_node(head, order.node)
        return _done()

    @router.post("/shutdown")
    async def stop() -> Response:
        shutdown()
        return _done(202)

    return router


def score_json(score: TextScore) -> dict[str, Any]:
    """Infinite figures are null."""
    first = [{"text": word(score.first), "logprob": None}] if score.first else []
    figures = {"mean_logprob": score.mean_logprob, "perplexity": score.perplexity}
    return {
        "tokens": [*first, *({"text": word(token.data), "logprob": finite(token.logprob)} for token in score.tokens)],
        "scored": len(score.tokens),
        **{name: value if isfinite(value) else None for name, value in figures.items()},
        "window": score.window,
        "stride": score.stride,
        "windows": score.windows,
    }


def _done(status: int = 200, **more: str) -> Response:
    return JSONResponse({"done": True, **more}, status)
