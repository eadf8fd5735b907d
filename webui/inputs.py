"""What a browser may send with an event: each control's value, read into plain data or refused.

A chat turn is a role and its texts. Nothing that a browser sends names a file, a class or a function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from together.errors import BadRequest
from webui.conversation import Turn, Turns, thought, turn
from webui.framework import gr

Reader = Callable[[Any], Any]  # takes any JSON value; raises BadRequest

LARGEST = 10.0**15  # of a number field without bounds of its own; exact as a float


def reader_for(control: object) -> Reader:
    """How the value of a control is read. Raises TypeError for a kind of control that no event takes yet."""
    match control:
        case gr.State():
            return nothing  # the framework holds it; the browser has none
        case gr.Chatbot():
            return turns
        case gr.Slider():
            return number_within(control.minimum, control.maximum)
        case gr.Number():
            return optional_number
        case gr.Dropdown() if not control.allow_custom_value:
            return one_of(tuple(value for _, value in control.choices))
        case gr.Dropdown() | gr.Textbox():
            return text
    raise TypeError(f"{type(control).__name__} has no reader; add one before an event takes it as an input")


def nothing(value: Any) -> None:
    """Dropped, whatever it is."""


def text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRequest("a text field was sent something that is no text")
    return _unicode(value)


def optional_number(value: Any) -> float | None:
    return None if value is None else number_within(-LARGEST, LARGEST)(value)


def number_within(low: float, high: float) -> Reader:
    def number(value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise BadRequest("a number field was sent something that is no number")
        if not low <= value <= high:  # NaN lies nowhere
            raise BadRequest(f"a number lies outside {low:g} to {high:g}")
        return value

    return number


def one_of(choices: tuple[Any, ...]) -> Reader:
    def choice(value: Any) -> Any:
        if not isinstance(value, str) or value not in choices:
            raise BadRequest(f"a choice is none of {', '.join(map(str, choices))}")
        return value

    return choice


# --- a chat -----------------------------------------------------------------------------------------------------------


def turns(value: Any) -> Turns:
    """The chat so far. Fields that a turn does not have are dropped; a part that is no text is refused."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadRequest("a chat is a list of turns")
    return [_turn(item) for item in value]


def _turn(value: Any) -> Turn:
    match value:
        case {"role": "user" | "assistant" as role, "content": list(parts)}:
            said = turn(role, *map(_part, parts))
        case _:
            raise BadRequest("a turn of a chat is of the user or the assistant, and has a list of texts")
    title = _title(value.get("metadata"))
    return said | {"metadata": thought("", title)["metadata"]} if title else said


def _part(value: Any) -> str:
    match value:
        case {"type": "text", "text": str(said)}:
            return _unicode(said)
    raise BadRequest("a turn of a chat holds texts only")


def _title(metadata: Any) -> str:
    match metadata:
        case None | {"title": None}:
            return ""
        case {"title": str(title)}:
            return _unicode(title)
        case dict() if "title" not in metadata:
            return ""
    raise BadRequest("the title of a thought is a text")


def _unicode(value: str) -> str:
    """JSON can escape half a character, which no answer could carry back."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRequest("a text holds half a character (a lone surrogate)") from None
    return value


# --- what comes with an event -----------------------------------------------------------------------------------------


def example(value: Any) -> dict[str, Any]:
    """A preset question that was clicked."""
    match value:
        case {"value": {"text": str(question)}}:
            return {"index": 0, "value": {"text": _unicode(question)}}
    raise BadRequest("an example is a text")


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
