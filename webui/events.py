"""Connects the page's controls to what they do, in this one place: who may cause an event, and what comes with it.

An event that loads, plans or moves layers is an order: like `/control`, it answers a browser on this machine only.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from together.api.guard import is_local
from webui.framework import gr
from webui.inputs import Reader, nothing, reader_for

HERE_ONLY = "only a browser on the machine that runs together may do this; chatting works from every machine"

# Nothing here is an API (there is `/v1`); the engine alone decides how many answers run at once.
_EVENT: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
# A cancelling event does no more than that: what a function of it returned would be dropped with the cancelled one.
_CANCEL: dict[str, Any] = {"fn": None, "queue": False, "api_visibility": "private"}

Handler = Callable[..., Any]
Trigger = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a browser may send for one event."""

    sources: frozenset[int]  # numbers of the controls that cause it
    values: tuple[Reader, ...]  # one per input
    data: Reader


class Events:
    """Connects a page's events. One that was connected past it keeps the page from starting (`accepted`)."""

    def __init__(self) -> None:
        self._data: dict[int, Reader] = {}  # by the framework's number of the event

    def chat(
        self, trigger: Trigger, handler: Handler, inputs: Any, outputs: Any, data: Reader = nothing, **how: Any
    ) -> Any:
        """For every machine that may open the page. `data` reads what comes with the event itself."""
        connected = trigger(handler, inputs, outputs, **_EVENT, **how)
        self._data[connected["id"]] = data
        return connected

    def order(
        self,
        trigger: Trigger,
        handler: Handler,
        inputs: Any,
        outputs: Any,
        refused: Callable[[str], Any],
        data: Reader = nothing,
        **how: Any,
    ) -> Any:
        """For this machine only; `refused` turns the reason into new values of the outputs."""
        return self.chat(trigger, _only_here(handler, refused), inputs, outputs, data, **how)

    def cancel(self, trigger: Trigger, running: list[Any]) -> None:
        """Ends `running` events of the same browser tab."""
        trigger(cancels=running, **_CANCEL)

    def accepted(self, page: gr.Blocks) -> dict[int, Accepted]:
        """Every event of the page that has a handler, by its number."""
        handled = {number: each for number, each in page.fns.items() if each.fn is not None}
        past = [each.name for number, each in handled.items() if number not in self._data]
        assert not past, f"connect {', '.join(map(str, past))} with Events: it says who may cause an event"
        everywhere = frozenset(source for each in handled.values() for source in _sources(each))
        return {
            number: Accepted(
                everywhere if _follows(each) else frozenset(_sources(each)),
                tuple(map(reader_for, each.inputs)),
                self._data[number],
            )
            for number, each in handled.items()
        }


def _sources(event: Any) -> list[int]:
    """Numbers of the controls that cause an event of the framework."""
    return [source for source, _ in event.targets if source is not None]


def _follows(event: Any) -> bool:
    """Whether it comes after another event, whose control the browser then names as the source."""
    return any(kind in ("then", "success", "failure") for _, kind in event.targets)


def _only_here(handler: Handler, refused: Callable[[str], Any]) -> Handler:
    """The handler, which asks first where its event came from."""

    async def answer(request: gr.Request, *values: Any) -> Any:
        if not _is_here(request):
            return refused(HERE_ONLY)
        outcome: Any = handler(*values)
        return await outcome if isinstance(outcome, Awaitable) else outcome

    async def answers(request: gr.Request, *values: Any) -> AsyncGenerator[Any, None]:
        if not _is_here(request):
            yield refused(HERE_ONLY)
            return
        async with aclosing(handler(*values)) as updates:
            async for update in updates:
                yield update

    return _shown_as(answers if inspect.isasyncgenfunction(handler) else answer, handler)


def _shown_as(guarded: Handler, handler: Handler) -> Handler:
    """The framework reads parameters to know what to give: `guarded` has those of the handler after its own."""
    own = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=gr.Request)
    signature = inspect.signature(handler)
    shown: Any = guarded
    shown.__signature__ = signature.replace(parameters=[own, *signature.parameters.values()])
    shown.__annotations__ = {**typing.get_type_hints(handler), "request": gr.Request}
    shown.__name__ = handler.__name__
    return guarded


def _is_here(request: gr.Request) -> bool:
    return request.request is not None and is_local(request.request.scope)
