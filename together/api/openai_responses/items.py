"""The items of a Responses request in our words. Nothing is fetched."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from together.api.content import Strict, picture_of
from together.api.responses import wrong
from together.api.turns import one_turn_each
from together.requests import Attached, Message, ToolCall
from together.wording import quoted

_SPACED = "__"  # between a namespace and a tool's name
FREE_INPUT = "input"  # the one parameter of a tool whose input is free text


class ItemPart(Strict):
    """A part of an item's content; which fields count depends on `type`."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None


class InputItem(Strict):
    """One item of any type; without `type` it is a message."""

    type: str = "message"
    id: str | None = None
    role: str | None = None
    content: str | list[ItemPart] | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: str | list[ItemPart] | None = None
    summary: list[ItemPart] | None = None
    encrypted_content: str | None = None


def messages_of(items: Sequence[InputItem], where: str = "input") -> Iterator[Message]:
    """The turns of a conversation: what an assistant thought, said and called one after another is one turn."""
    messages = (part for index, item in enumerate(items) for part in _messages(item, f"{where}.{index}"))
    return one_turn_each(messages, ("assistant",))


def _messages(item: InputItem, where: str) -> Iterator[Message]:
    match item.type:
        case "message":
            yield _said(item, where)
        case "reasoning":
            parts = item.content if isinstance(item.content, list) and item.content else item.summary or []
            text = "".join(part.text or "" for part in parts)
            yield Message("assistant", "", text or opened_thoughts(item.encrypted_content))
        case "function_call":
            yield _called(item, where, item.arguments or "")
        case "custom_tool_call":
            yield _called(item, where, json.dumps({FREE_INPUT: item.input or ""}))
        case "function_call_output" | "custom_tool_call_output":
            text, pictures = _content(item.output, "user", f"{where}.output")
            yield Message("tool", text, tool_call_id=_needed(item.call_id, where, "call_id"))
            if pictures:
                yield Message("user", "", pictures=tuple(replace(each, at=0) for each in pictures))
        case kind:
            raise wrong(where, "items of type {kind} are not read by this version of together", kind=quoted(kind))


def closed_thoughts(text: str) -> str:
    """Thoughts as clients carry them from turn to turn. Nothing is secret: the same text stands beside it."""
    return b64encode(text.encode()).decode()


def opened_thoughts(carried: str | None) -> str:
    """What `closed_thoughts` closed; empty for what another server made."""
    try:
        return b64decode(carried or "", validate=True).decode()
    except ValueError:
        return ""


def full_name(name: str, namespace: str) -> str:
    """A tool's name as the model knows it."""
    return f"{namespace}{_SPACED}{name}" if namespace else name


def short_name(name: str, namespaces: Iterable[str]) -> tuple[str, str]:
    """A tool's own name, and its namespace."""
    known = next((each for each in namespaces if name.startswith(f"{each}{_SPACED}")), "")
    return name.removeprefix(f"{known}{_SPACED}") if known else name, known


def _called(item: InputItem, where: str, arguments: str) -> Message:
    name = full_name(_needed(item.name, where, "name"), item.namespace or "")
    call = ToolCall(_needed(item.call_id, where, "call_id"), name, arguments)
    return Message("assistant", "", tool_calls=(call,))


def _said(item: InputItem, where: str) -> Message:
    role = "system" if item.role == "developer" else item.role
    if role not in ("system", "user", "assistant"):
        raise wrong(f"{where}.role", "a message has the role user, assistant, system or developer")
    text, pictures = _content(item.content, role, f"{where}.content")
    return Message(role, text, pictures=pictures)


def _content(content: str | Sequence[ItemPart] | None, role: str, where: str) -> tuple[str, tuple[Attached, ...]]:
    if content is None or isinstance(content, str):
        return content or "", ()
    text, pictures = "", []
    for index, part in enumerate(content):
        at = f"{where}.{index}"
        match part.type:
            case "input_text" | "output_text" | "text" | "summary_text" | "reasoning_text":
                text += part.text or ""
            case "refusal":
                text += part.refusal or ""
            case "input_image" if role == "user" and part.image_url is not None:
                pictures.append(Attached(len(text), picture_of(part.image_url, at)))
            case kind:
                only = "only parts of type input_text, output_text and, of a user, input_image are read, not {kind}"
                raise wrong(at, only, kind=quoted(kind))
    return text, tuple(pictures)


def _needed(value: str | None, where: str, name: str) -> str:
    if not value:
        raise wrong(f"{where}.{name}", "this item needs it")
    return value
