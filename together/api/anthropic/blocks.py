"""The content blocks of Anthropic's messages in our words. Nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pydantic import JsonValue

from together.api.content import PICTURE_TYPES, Strict
from together.api.responses import wrong
from together.api.turns import BETWEEN
from together.requests import Attached, Message, ToolCall
from together.wording import quoted


class BlockSource(Strict):
    """Of a picture or a document."""

    type: str
    media_type: str | None = None
    data: str | None = None


class Citations(Strict):
    enabled: bool | None = None


class Block(Strict):
    """One block of any type; which fields count depends on it."""

    type: str
    text: str | None = None
    source: BlockSource | None = None
    title: str | None = None
    context: str | None = None
    citations: Citations | list[JsonValue] | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, JsonValue] | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None
    thinking: str | None = None


def joined(content: str | Sequence[Block] | None, where: str) -> str:
    """The text of blocks that are text alone."""
    if content is None or isinstance(content, str):
        return content or ""
    for index, block in enumerate(content):
        if block.type != "text" or block.text is None:
            raise wrong(
                f"{where}.{index}", "only blocks of type text are read here, not {kind}", kind=quoted(block.type)
            )
    return BETWEEN.join(block.text or "" for block in content)


def parts_of(content: str | Sequence[Block], role: str, where: str) -> Iterator[Message]:
    """A turn as our messages: results of tools are messages of their own, in order, and their pictures follow."""
    if isinstance(content, str):
        yield Message(role, content)
        return
    turn, some = Message(role, ""), False
    seen: list[Attached] = []  # pictures of tools' results
    for index, block in enumerate(content):
        at = f"{where}.{index}"
        if block.type == "tool_result" and role == "user":
            if some:
                yield turn
                turn, some = Message(role, ""), False
            text, pictures = _result(block, at)
            seen += pictures
            yield Message("tool", text, tool_call_id=_known(block.tool_use_id, f"{at}.tool_use_id"))
        else:
            turn, some = _with(turn, block, at), True
    if seen:
        turn = replace(turn, pictures=(*(replace(each, at=0) for each in seen), *turn.pictures))
    if some or seen or not content:
        yield turn


def _with(turn: Message, block: Block, where: str) -> Message:
    match block.type, turn.role:
        case "text", _:
            return _added(turn, _known(block.text, f"{where}.text", empty=True))
        case "image", "user":
            return replace(turn, pictures=(*turn.pictures, Attached(len(turn.content), _picture(block, where))))
        case "document", "user":
            return _added(turn, _document(block, where))
        case "thinking", "assistant":
            return replace(turn, reasoning=turn.reasoning + _known(block.thinking, f"{where}.thinking", empty=True))
        case "tool_use", "assistant":
            name, call = _known(block.name, f"{where}.name"), _known(block.id, f"{where}.id")
            return replace(turn, tool_calls=(*turn.tool_calls, ToolCall(call, name, json.dumps(block.input or {}))))
    text = "blocks of type {kind} are not read in a message of the role {role}"
    raise wrong(where, text, kind=quoted(block.type), role=turn.role)


def _added(turn: Message, text: str) -> Message:
    return replace(turn, content=turn.content + (BETWEEN if turn.content and text else "") + text)


def _result(block: Block, where: str) -> tuple[str, list[Attached]]:
    """What a tool answered: its text, and its pictures."""
    inner = [block.content] if isinstance(block.content, str) else []
    pictures = []
    for index, part in enumerate(block.content if isinstance(block.content, list) else ()):
        at = f"{where}.content.{index}"
        match part.type:
            case "text":
                inner.append(_known(part.text, f"{at}.text", empty=True))
            case "document":
                inner.append(_document(part, at))
            case "image":
                pictures.append(Attached(0, _picture(part, at)))
            case kind:
                raise wrong(
                    at, "a tool's result has blocks of type text, image or document, not {kind}", kind=quoted(kind)
                )
    text = BETWEEN.join(inner)
    return (f"Error: {text}" if block.is_error else text), pictures


def _picture(block: Block, where: str) -> str:
    """The picture's file in base64."""
    source = block.source
    if source is None or source.type != "base64" or source.data is None or source.media_type not in PICTURE_TYPES:
        text = "a picture comes with its request: source.type base64, and media_type one of {kinds}; nothing is fetched"
        raise wrong(f"{where}.source", text, kinds=PICTURE_TYPES)
    return source.data


def _document(block: Block, where: str) -> str:
    source = block.source
    if source is None or source.type != "text" or source.data is None:
        raise wrong(f"{where}.source", "only documents of source.type text are read, with their text as data")
    if isinstance(block.citations, Citations) and block.citations.enabled:
        raise wrong(f"{where}.citations", "citations are not supported by this version of together; leave them out")
    return BETWEEN.join(part for part in (block.title, block.context, source.data) if part)


def _known(value: str | None, where: str, *, empty: bool = False) -> str:
    if value is None or not (value or empty):
        raise wrong(where, "this block needs it")
    return value
