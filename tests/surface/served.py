"""The page on a head of this process, over real HTTP, and events as a browser sends them. Knows no test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.routing import Mount

from tests.support.patience import PATIENCE
from tests.surface.client import join, said
from together.api.app import build_app
from together.api.server import bind, serving, url_of
from together.head.head import Head
from webui import gr, page

NO_VALUES: dict[type, object] = {gr.State: None, gr.Checkbox: False}


@dataclass(slots=True)
class Served:
    """A page and its framework, which routes are read from."""

    app: FastAPI
    client: httpx.AsyncClient

    @property
    def mount(self) -> Mount:
        mount = self.app.routes[-1]
        assert isinstance(mount, Mount)
        return mount

    @property
    def blocks(self) -> gr.Blocks:
        inner: Any = self.mount.app
        return (inner if hasattr(inner, "get_blocks") else inner.app).get_blocks()  # type: ignore[no-any-return]

    @property
    def events(self) -> list[int]:
        """The number of an event for each handler."""
        found = {event.name: number for number, event in self.blocks.fns.items() if event.fn is not None}
        return list(found.values())

    def usual(self, number: int) -> dict[str, Any]:
        """What a browser might send for an event."""
        event = self.blocks.fns[number]
        values = [NO_VALUES.get(type(control), _text(control)) for control in event.inputs]
        source, name = event.targets[0]
        data: dict[str, Any] = {
            "edited": {"counts": ["1"], "serial": 1},
            "apply": {"counts": ["1"], "serial": 1},
        }
        return {"fn_index": number, "trigger_id": source, "data": values, "event_data": data.get(name)}

    async def join(self, order: dict[str, Any]) -> httpx.Response:
        """Send an event; in a tab of its own where the order names none."""
        return await join(self.client, order)

    def with_value(self, number: int, position: int | None, value: Any) -> dict[str, Any]:
        """The usual event with another value in one place; None is the data of the event itself."""
        order = self.usual(number)
        if position is None:
            order["event_data"] = value
        else:
            order["data"][position] = value
        return order

    def variants(self, number: int, values: list[Any]) -> Iterator[dict[str, Any]]:
        """The event with each value in each place; with two of them where whatever is sent is dropped."""
        inputs = self.blocks.fns[number].inputs
        for position in (None, *range(len(inputs))):
            dropped = isinstance(inputs[position], gr.State) if position is not None else not self._has_data(number)
            yield from (self.with_value(number, position, value) for value in (values[-2:] if dropped else values))

    def _has_data(self, number: int) -> bool:
        return self.usual(number)["event_data"] is not None

    async def said(self, order: dict[str, Any]) -> str:
        """All that is answered to an event, refusal or stream, as text."""
        return await said(self.client, order)


def _text(control: object) -> str:
    choices = getattr(control, "choices", None)
    return str(choices[0][1]) if choices else "7"  # also as a number


@asynccontextmanager
async def served_page(head: Head, host: str = "127.0.0.1") -> AsyncIterator[Served]:
    """The whole app of a head but its processes."""
    app = page.mount(build_app(head, lambda: None), head)
    listener = bind(host, 0)
    client = httpx.AsyncClient(base_url=url_of(listener), timeout=PATIENCE, trust_env=False)
    async with serving(app, listener), client:
        yield Served(app, client)


def routes_of(router: Any) -> Iterator[tuple[str, str]]:
    """Method and path of every route of a framework; fails for a kind of route that this does not know."""
    for route in router.routes:
        if hasattr(route, "original_router"):
            yield from routes_of(route.original_router)
        elif hasattr(route, "methods"):
            yield from ((method, route.path) for method in route.methods)
        else:
            raise AssertionError(f"a new kind of route: {route!r}")
