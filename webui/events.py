"""Who may cause an event of the page, and what a browser may send with it.

An event that loads, plans or moves layers is an order: like `/control`, it answers a browser on this machine only. A
value that a browser sends is read into plain data or refused; none names a file, a class or a function.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from together.api.visitors import STRANGER, visitor_of
from together.errors import BadRequest
from webui import gr

HERE_ONLY = "only a browser on the machine that runs together may do this; chatting works from every machine"

# Nothing here is an API (there is `/v1` and `/control`).
_EVENT: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}

Reader = Callable[[Any], Any]  # takes any JSON value; raises BadRequest
Handler = Callable[..., Any]
Trigger = Callable[..., Any]


def nothing(value: Any) -> None:
    """Reads a value that is dropped, whatever it is."""


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

    def anyone(
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
        return self.anyone(trigger, _only_here(handler, refused), inputs, outputs, data, **how)

    def accepted(self, page: gr.Blocks) -> dict[int, Accepted]:
        """Every event of the page that has a handler, by its number."""
        handled = {number: each for number, each in page.fns.items() if each.fn is not None}
        past = [each.name for number, each in handled.items() if number not in self._data]
        assert not past, f"connect {', '.join(map(str, past))} with Events: it says who may cause an event"
        return {
            number: Accepted(_sources(each), tuple(map(reader_for, each.inputs)), self._data[number])
            for number, each in handled.items()
        }


def _sources(event: Any) -> frozenset[int]:
    """Numbers of the controls that cause an event of the framework."""
    return frozenset(source for source, _ in event.targets if source is not None)


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
    visitor = STRANGER if request.request is None else visitor_of(request.request.scope)
    return visitor.here


# --- values -----------------------------------------------------------------------------------------------------------


def reader_for(control: object) -> Reader:
    """How the value of a control is read. Raises TypeError for a kind of control that no event takes yet."""
    match control:
        case gr.State():
            return nothing  # the framework holds it; the browser has none
        case gr.Checkbox():
            return switch
        case gr.Dropdown() if not control.allow_custom_value:
            return one_of(tuple(value for _, value in control.choices))
        case gr.Dropdown() | gr.Textbox():
            return text
    raise TypeError(f"{type(control).__name__} has no reader; add one before an event takes it as an input")


def text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRequest("a text field was sent something that is no text")
    return _unicode(value)


def switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadRequest("a switch was sent something that is neither on nor off")
    return value


def one_of(choices: tuple[Any, ...]) -> Reader:
    def choice(value: Any) -> Any:
        if not isinstance(value, str) or value not in choices:
            raise BadRequest("a choice is none of {choices}", choices=choices)
        return value

    return choice


def _unicode(value: str) -> str:
    """JSON can escape half a character, which no answer could carry back."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRequest("a text holds half a character (a lone surrogate)") from None
    return value


# --- what comes with an event -----------------------------------------------------------------------------------------


def edit(value: Any) -> dict[str, Any]:
    """What `split.js` sends: each machine's layer count as its field shows it, and the number of the edit."""
    match value:
        case {"counts": list(counts)} if all(isinstance(count, str | int) for count in counts):
            serial = value.get("serial")
            return {
                "counts": [_unicode(str(count)) for count in counts],
                "serial": serial if type(serial) is int else None,
            }
    raise BadRequest("an edit of the split is a list of layer counts")
