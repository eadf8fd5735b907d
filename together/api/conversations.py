"""Kept conversations for the page and the terminal chat: lists, turns, answers that go on alone, files, presets.

Whatever a route takes or gives belongs to the request's owner; what is another's is not there (404).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing, suppress
from functools import partial
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json, to_jsonable_python

from together.api.chat_models import changes_of, chat_models, merged, pictures_of
from together.api.events import event as event_of
from together.api.guard import FROM_JSON, BodyRoute, body_within
from together.api.responses import BodyTooLarge
from together.api.stream import EventStream
from together.api.visitors import visitor_of
from together.chats.answering import Answering, Step
from together.chats.bounds import MOST_FILES, SettingsBody
from together.chats.calls import CallAnswer
from together.chats.exchange import (
    MOST_CHATS,
    MOST_EXPORT,
    MOST_IMPORT,
    copies_in,
    files_left_out,
    fitting,
    json_of,
    markdown_of,
    size_of,
    size_of_file,
)
from together.chats.files import MOST_FILE, PICTURE_KINDS, kept_file
from together.chats.pdfs import PdfTexts
from together.chats.pieces import json_of_parts
from together.chats.records import MOST_TEXT, ChatSummary, Conversation, Grown, KeptFile, NoSuchChat, Pending, Said
from together.chats.rendered import AnswerRenderer, AnswerWatch, ShownAnswer
from together.chats.rows import Copy
from together.chats.store import ChatStore
from together.errors import BadRequest
from together.head.head import Head

FILE_POLICY = "sandbox; default-src 'none'"  # whatever a browser takes a file for, nothing in it runs
# What an export lacks, for a page that saves it without reading it: conversations, files of those that are there, and
# the last one that is there, after which another export goes on.
LEFT_OUT, FILES_LEFT_OUT, BEFORE = "Together-Left-Out", "Together-Files-Left-Out", "Together-Before"


def _owner(request: Request) -> str:
    return visitor_of(request.scope).owner


Owned = Annotated[str, Depends(_owner)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class NewChat(_Body):
    settings: SettingsBody = SettingsBody()


class ChatChange(_Body):
    """What is null or left out stays; `leaf` is the last turn of the branch to show."""

    title: str | None = None
    pinned: bool | None = None
    settings: SettingsBody | None = None
    leaf: str | None = Field(default=None, max_length=100)


class NewVersion(_Body):
    """An answer as its user has it."""

    text: str = Field(max_length=MOST_TEXT)


class CallWord(_Body):
    """What the user says to a call of a tool: whether it may be made, or for a function its result."""

    allow: Literal["once", "always", "no"] = "no"
    result: str | None = Field(default=None, max_length=MOST_TEXT)


class NewTurn(_Body):
    """A question after turn `parent`; "" begins the conversation, or another version of its first question."""

    parent: str = Field(default="", max_length=100)
    text: str = Field(default="", max_length=MOST_TEXT)
    files: list[Annotated[str, Field(max_length=100)]] = Field(default=[], max_length=MOST_FILES)


def conversation_routes(head: Head) -> APIRouter:
    """`/conversations…`, `/files/ID`, `/presets…`."""
    router = APIRouter(route_class=BodyRoute)
    for add in (_add_events, _add_lists, _add_turns, _add_files, _add_presets):
        add(router, head)
    return router


def _add_events(router: APIRouter, head: Head) -> None:
    answering, renderer = head.chats, AnswerRenderer()

    async def watched(owner: str, chat: str) -> tuple[bytes, AsyncGenerator[bytes, None]]:
        """The first event of a conversation, and those after it. Raises NoSuchChat."""
        steps, watch = answering.watch(owner, chat), AnswerWatch(renderer)
        return await _event(await anext(steps), watch), _events(steps, watch)

    @router.get("/conversations/events")
    async def events(owner: Owned, chat: str = "", machines: bool = False) -> Response:
        """`list`: the list may have changed; `serving`: the models that serve, at first and whenever they changed.

        With `chat` also the events of that conversation, with `machines` their picture: a page has one stream.
        """
        models = partial(chat_models, head)
        streams = [
            (event_of({"list": True}) async for _ in answering.lists(owner)),
            (event_of({"serving": to_jsonable_python(now)}) async for now in changes_of(head, models)),
        ]
        if machines:
            streams.append(event_of({"machines": to_jsonable_python(now)}) async for now in pictures_of(head))
        if not chat:
            return EventStream(merged(*streams))
        first, steps = await watched(owner, chat)
        return EventStream(merged(*streams, steps), first)

    @router.get("/conversations/{chat}/events")
    async def chat_events(owner: Owned, chat: str) -> Response:
        """`chat`: the conversation, at first and whenever it changed; `grown`: what an answer grew by since then;
        `pending`: where an answer without text is, in the queue or in its prompt.

        `shown` has answers as the page shows them: with `chat` all, by turn; with `grown` the blocks that became
        finished, and all text behind them, or null where only that text grew.
        """
        first, steps = await watched(owner, chat)
        return EventStream(steps, first)


def _add_lists(router: APIRouter, head: Head) -> None:
    answering = head.chats

    @router.get("/conversations")
    async def recent(owner: Owned, before: str = "", search: str = "") -> Response:
        """The pinned ones first, then by their last change; `before` is the last one already known.

        `warning` says where a damaged file of conversations is, or why none can be kept.
        """
        if search.strip():
            found = await answering.work(ChatStore.search, owner, search[:1000])
            return _json({"conversations": found, "warning": ""})
        listed = await answering.work(ChatStore.recent, owner, before)
        return _json({"conversations": listed, "warning": str(await answering.warning())})

    @router.post("/conversations")
    async def create(owner: Owned, body: Annotated[NewChat, FROM_JSON]) -> Response:
        made = await answering.work(ChatStore.create, owner, body.settings.settings())
        answering.changed(owner)
        return _json(made, 201)

    @router.get("/conversations/export")
    async def export(owner: Owned, before: str = "") -> Response:
        """The newest conversations in one file, as many as an import takes; `left_out` in it counts the others.

        Another export goes on after them: its `before` stands in the file. One that alone is too large is without some
        of its files, which `files_left_out` counts, or left out where its texts are.
        """
        exported: list[Copy] = []
        listed: tuple[ChatSummary, ...] = await answering.work(ChatStore.recent, owner, before, MOST_CHATS)
        room, seen = MOST_EXPORT, 0
        for each in listed:
            kept = await answering.now(owner, each.id)
            with suppress(BadRequest):  # no import reads its texts
                fit = await asyncio.to_thread(fitting, kept)
                size = await asyncio.to_thread(size_of, kept) + sum(map(size_of_file, fit))
                if (room := room - size) < 0 and exported:
                    break
                exported.append(await _with_files(answering, owner, kept, fit))
            seen += 1
        left = len(listed) - len(exported)
        last = listed[seen - 1].id if seen < len(listed) else ""
        return await _exported(exported, "conversations", left, last)

    @router.post("/conversations/import")
    async def read(owner: Owned, request: Request) -> Response:
        """The body is an exported file; all of its conversations or, where one is damaged, none."""
        copies = await asyncio.to_thread(copies_in, await _body(request, MOST_IMPORT))
        made = await answering.work(ChatStore.put, owner, copies)
        answering.changed(owner)
        return _json([each.summary for each in made], 201)

    @router.delete("/conversations")
    async def forget(owner: Owned) -> Response:
        """All conversations and presets of the owner."""
        return _json({"deleted": await answering.forget(owner)})

    @router.get("/conversations/{chat}")
    async def get(owner: Owned, chat: str) -> Response:
        return await _whole(await answering.now(owner, chat))

    @router.patch("/conversations/{chat}")
    async def change(owner: Owned, chat: str, body: Annotated[ChatChange, FROM_JSON]) -> Response:
        if body.title is not None:
            await answering.work(ChatStore.rename, owner, chat, body.title)
        if body.pinned is not None:
            await answering.work(ChatStore.pin, owner, chat, body.pinned)
        if body.settings is not None:
            await answering.work(ChatStore.use, owner, chat, body.settings.settings())
        if body.leaf is not None:
            kept = await answering.work(ChatStore.get, owner, chat)
            await answering.work(ChatStore.show, owner, chat, kept.last_below(body.leaf))
        answering.changed(owner, chat)
        return await _whole(await answering.now(owner, chat))

    @router.delete("/conversations/{chat}")
    async def delete(owner: Owned, chat: str) -> Response:
        await answering.delete(owner, chat)
        return _json({"done": True})

    @router.post("/conversations/{chat}/duplicate")
    async def duplicate(owner: Owned, chat: str) -> Response:
        kept = await answering.now(owner, chat)
        copied = await _with_files(answering, owner, kept, kept.files)
        (made,) = await answering.work(ChatStore.put, owner, [copied])
        answering.changed(owner)
        return await _whole(made, 201)

    @router.get("/conversations/{chat}/export")
    async def export_one(owner: Owned, chat: str, form: Literal["json", "markdown"] = "json") -> Response:
        """As JSON without its largest files, where an import would take no more; `files_left_out` counts them."""
        kept = await answering.now(owner, chat)
        if form == "markdown":
            text = await asyncio.to_thread(lambda: markdown_of(kept).encode())
            return _download(text, f"{kept.summary.title}.md", "text/markdown; charset=utf-8")
        fit = await asyncio.to_thread(fitting, kept)
        return await _exported([await _with_files(answering, owner, kept, fit)], kept.summary.title)


def _add_turns(router: APIRouter, head: Head) -> None:
    answering = head.chats

    @router.post("/conversations/{chat}/turns")
    async def ask(owner: Owned, chat: str, body: Annotated[NewTurn, FROM_JSON]) -> Response:
        """Add a question; its answer is written whoever watches."""
        said = Said(body.text.strip(), files=tuple(dict.fromkeys(body.files)))
        question, answer = await answering.ask(owner, chat, body.parent, said)
        return _json({"question": question, "answer": answer}, 201)

    @router.post("/conversations/{chat}/turns/{turn}/again")
    async def again(owner: Owned, chat: str, turn: str) -> Response:
        """Another version of an answer."""
        return _json({"answer": await answering.again(owner, chat, turn)}, 201)

    @router.post("/conversations/{chat}/turns/{turn}/edited")
    async def edited(owner: Owned, chat: str, turn: str, body: Annotated[NewVersion, FROM_JSON]) -> Response:
        """Another version of an answer, which is not made but given."""
        made = await answering.work(ChatStore.revise, owner, chat, turn, body.text)
        answering.changed(owner, chat)
        return _json({"answer": made}, 201)

    @router.post("/conversations/{chat}/turns/{turn}/stop")
    async def stop(owner: Owned, chat: str, turn: str) -> Response:
        await answering.stop(owner, chat, turn)
        return _json({"done": True})

    @router.post("/conversations/{chat}/turns/{turn}/call")
    async def call(owner: Owned, chat: str, turn: str, body: Annotated[CallWord, FROM_JSON]) -> Response:
        """The user's word on a call that waits for it, or that ended without a result; the answer goes on after it."""
        await answering.call(owner, chat, turn, CallAnswer(body.allow, body.result))
        return _json({"done": True})


def _add_files(router: APIRouter, head: Head) -> None:
    answering, pdfs = head.chats, PdfTexts()

    @router.post("/conversations/{chat}/files")
    async def attach(owner: Owned, request: Request, chat: str, name: str = "") -> Response:
        """The body is the file: text, PDF (its text is kept) or picture; it goes with questions that name its id."""
        kept = await answering.work(ChatStore.get, owner, chat)
        data = await _body(request, MOST_FILE)
        services = head.services
        service = services.by_name.get(kept.settings.model) or services.first
        file, content = await kept_file(name, data, service.opened.text if service is not None else None, pdfs)
        await answering.work(ChatStore.add_file, owner, chat, file, content)
        answering.changed(owner, chat)
        return _json(file, 201)

    @router.get("/files/{file}")
    async def get(owner: Owned, file: str) -> Response:
        """A picture as such, everything else as plain text: nothing in it runs in the page."""
        kept, data = await answering.work(ChatStore.file, owner, file)
        kind = kept.kind if kept.kind in PICTURE_KINDS else "text/plain; charset=utf-8"
        headers = {"Cache-Control": "private, max-age=3600", "Content-Security-Policy": FILE_POLICY}
        return Response(data, media_type=kind, headers=headers)


def _add_presets(router: APIRouter, head: Head) -> None:
    answering = head.chats

    @router.get("/presets")
    async def presets(owner: Owned) -> Response:
        """Settings by name."""
        kept = await answering.work(ChatStore.presets, owner)
        return _json([{"name": name, "settings": settings} for name, settings in kept])

    @router.put("/presets/{name:path}")
    async def keep(owner: Owned, name: str, body: Annotated[SettingsBody, FROM_JSON]) -> Response:
        await answering.work(ChatStore.keep_preset, owner, name, body.settings())
        return _json({"done": True})

    @router.delete("/presets/{name:path}")
    async def delete(owner: Owned, name: str) -> Response:
        await answering.work(ChatStore.delete_preset, owner, name)
        return _json({"done": True})


# --- bytes ------------------------------------------------------------------------------------------------------------


def _json(value: object, status: int = 200) -> Response:
    return Response(to_json(value, inf_nan_mode="null"), status, media_type="application/json")


async def _whole(chat: Conversation, status: int = 200) -> Response:
    """A conversation may have many megabytes: they are written on a thread."""
    data = await asyncio.to_thread(json_of_parts, chat, (Conversation,))
    return Response(data, status, media_type="application/json")


async def _event(step: Step, watch: AnswerWatch) -> bytes:
    if isinstance(step, Grown):
        return event_of(to_jsonable_python({"grown": step, "shown": await watch.grown(step)}))
    if isinstance(step, Pending):
        return event_of(to_jsonable_python({"pending": step}))
    return await asyncio.to_thread(_whole_event, step, await watch.whole(step))


def _whole_event(chat: Conversation, shown: Mapping[str, ShownAnswer]) -> bytes:
    """As `event_of`, in pieces."""
    answers = b",".join(_ascii(turn) + b":" + _ascii(answer) for turn, answer in shown.items())
    whole = json_of_parts(chat, (Conversation,), _ascii)
    return b'data: {"chat":' + whole + b',"shown":{' + answers + b"}}\n\n"


def _ascii(value: object) -> bytes:
    return json.dumps(to_jsonable_python(value), separators=(",", ":")).encode()


async def _events(steps: AsyncGenerator[Step, None], watch: AnswerWatch) -> AsyncGenerator[bytes, None]:
    with suppress(NoSuchChat):  # it was deleted
        async with aclosing(steps):
            async for step in steps:
                yield await _event(step, watch)
    yield event_of({"gone": True})


async def _with_files(answering: Answering, owner: str, chat: Conversation, files: Iterable[KeptFile]) -> Copy:
    return chat, [await answering.work(ChatStore.file, owner, file.id) for file in files]


async def _exported(chats: list[Copy], name: str, left_out: int = 0, before: str = "") -> Response:
    data = await asyncio.to_thread(json_of, chats, left_out, before)
    lacks = {LEFT_OUT: str(left_out), FILES_LEFT_OUT: str(files_left_out(chats)), BEFORE: before}
    return _download(data, f"{name}.json", "application/json", lacks)


async def _body(request: Request, most: int) -> bytes:
    return await body_within(request, most, BodyTooLarge("this file may have at most {most} MB", most=most // 2**20))


def _download(data: bytes, name: str, kind: str, headers: Mapping[str, str] | None = None) -> Response:
    named = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}"}
    return Response(data, media_type=kind, headers={**named, **(headers or {})})
