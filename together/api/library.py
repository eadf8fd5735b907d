"""The models of this machine and of the hub, for the page: what is here, what fits, what is fetched and made.

The list is for all users; what reads the hub, plans or changes anything is for this machine alone.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from together.api.events import event
from together.api.guard import FROM_JSON, BodyRoute, LocalRoute
from together.api.plain import plain
from together.api.stream import EventStream
from together.api.visitors import visitor_of
from together.head.head import Head
from together.weights.hub_gguf import gguf_files
from together.weights.hub_search import hub_access, keep_token, search_hub

MOST_NAME = 1000  # characters of a place or a name


class _Asked(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class OneModel(_Asked):
    """A model by the name or the place that the list gives it, or by its name on the hub."""

    model: str = Field(min_length=1, max_length=MOST_NAME)


class HubWords(_Asked):
    words: str = Field(max_length=MOST_NAME)


class HubToken(_Asked):
    """Empty: none any more."""

    token: str = Field(max_length=MOST_NAME)


class DownloadJob(_Asked):
    kind: Literal["download"]
    model: str = Field(min_length=1, max_length=MOST_NAME)


class QuantizeJob(_Asked):
    kind: Literal["quantize"]
    model: str = Field(min_length=1, max_length=MOST_NAME)
    quantize: str


class ConvertJob(_Asked):
    """`folder` is the name of a new one among the app's own models."""

    kind: Literal["convert"]
    model: str = Field(min_length=1, max_length=MOST_NAME)
    folder: str = Field(max_length=MOST_NAME)
    quantize: str | None = None


class JobAction(_Asked):
    action: Literal["pause", "resume", "remove"]


NewJob = Annotated[DownloadJob | QuantizeJob | ConvertJob, Field(discriminator="kind")]


class JobOrder(_Asked):
    job: NewJob


def library_routes(head: Head) -> APIRouter:
    """`/library` and its events."""
    router, library = APIRouter(prefix="/library", route_class=BodyRoute), head.library

    @router.get("")
    async def models(request: Request) -> Response:
        """All models of this machine and what they take of its disk; places are for who is here."""
        view = await library.view()
        if not visitor_of(request.scope).here:
            models = tuple(replace(model, place="", load="") for model in view.models)
            view = replace(view, models=models, disk=replace(view.disk, folder=""))
        here = visitor_of(request.scope).here
        return _json({"models": view.models, "disk": view.disk, "hub": hub_access() if here else None, "here": here})

    @router.get("/events")
    async def events() -> Response:
        """Jobs and loaded models, at first and whenever something changed."""
        return EventStream(event(plain(news)) async for news in library.news())

    return router


def library_orders(head: Head) -> APIRouter:
    """`/library/…`, for this machine alone."""
    router, library = APIRouter(prefix="/library", route_class=LocalRoute), head.library

    @router.post("/fits")
    async def fits(asked: Annotated[OneModel, FROM_JSON]) -> Response:
        """Each form of a model on the machines that are there: whether it fits, how fast it would be, and why."""
        return _json(await library.fits_of(asked.model))

    @router.post("/learn")
    async def learn(asked: Annotated[OneModel, FROM_JSON]) -> Response:
        """Before a load of a model that another machine alone has."""
        await library.learn(asked.model)
        return _json({"done": True})

    @router.post("/inspect")
    async def inspect(asked: Annotated[OneModel, FROM_JSON]) -> Response:
        return _json({"lines": await library.inspect(asked.model)})

    @router.post("/search")
    async def search(asked: Annotated[HubWords, FROM_JSON]) -> Response:
        """What the hub has under these words."""
        return _json({"models": await asyncio.to_thread(search_hub, asked.words)})

    @router.post("/files")
    async def files(asked: Annotated[OneModel, FROM_JSON]) -> Response:
        """The models of a repository of GGUF files."""
        return _json({"files": await asyncio.to_thread(gguf_files, asked.model)})

    @router.put("/token")
    async def token(asked: Annotated[HubToken, FROM_JSON]) -> Response:
        """Keep a token for the hub where its own tools keep it."""
        await asyncio.to_thread(keep_token, asked.token)
        return _json(hub_access())

    @router.post("/jobs")
    async def start(asked: Annotated[JobOrder, FROM_JSON]) -> Response:
        match asked.job:
            case DownloadJob(model=model):
                made = library.download(model)
            case QuantizeJob(model=model, quantize=quantize):
                made = library.quantize(model, quantize)
            case ConvertJob(model=model, folder=folder, quantize=form):
                made = library.convert(model, folder, form)
        return _json(made, 201)

    @router.post("/jobs/{job}")
    async def act(job: str, asked: Annotated[JobAction, FROM_JSON]) -> Response:
        """Pause it, go on with it, or give it up; what was fetched stays until it is deleted."""
        match asked.action:
            case "pause":
                return _json(await library.jobs.pause(job))
            case "resume":
                return _json(library.jobs.resume(job))
            case "remove":
                return _json(await library.jobs.put_away(job))

    @router.delete("/models/{model}")
    async def delete(model: str) -> Response:
        """By its id in the list."""
        await library.delete(model)
        return _json({"done": True})

    return router


def _json(value: object, status: int = 200) -> Response:
    return Response(to_json(plain(value), inf_nan_mode="null"), status, media_type="application/json")
