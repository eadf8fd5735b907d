"""Answers that are written on the head, whoever watches: each goes on when its browser closes.

Watchers get the whole conversation first, and then what is added to the answers that are being written.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from together.chats.context import request_of
from together.chats.records import ChatSettings, Conversation, Figures, Grown, NoSuchChat, Said, State, Turn
from together.chats.store import ChatStore
from together.errors import BadRequest, TogetherError
from together.requests import AnswerChunk, ChatRequest, Owner, ToolCall, cut_short
from together.ring.rpc import Broadcast
from together.sentences import Sentence, say
from together.types import Sampling

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

SAVE = 2.0  # seconds between two copies of a growing answer in the store
AT_ONCE = 4  # answers that one conversation has written at a time
INSIDE = "something went wrong inside together; its log says what"


class Answerer(Protocol):
    """Who answers: the head."""

    def answer(
        self, model: str, request: Callable[[Sampling], ChatRequest]
    ) -> tuple[str, AsyncGenerator[AnswerChunk, None]]:
        """The name of the model and its answer in chunks; `request` gets the defaults for sampling. Raises NotServing.

        "" is the only model that serves.
        """

    def machines(self, model: str) -> tuple[str, ...]:
        """The names of those that hold the model's layers now, in the order of the layers."""


@dataclass(slots=True)
class LiveAnswer:
    """An answer that is being written."""

    turn: Turn
    task: asyncio.Task[None] | None = None
    stopped: bool = False
    calls: dict[int, ToolCall] = field(default_factory=dict)
    began: float = 0.0  # thinking, on the monotonic clock

    def add(self, chunk: AnswerChunk) -> None:
        now, said = time.monotonic(), self.turn.said
        if chunk.reasoning and not said.reasoning:
            self.began = now
        thought = now - self.began if said.reasoning and not said.text else said.thought
        for delta in chunk.tool_calls:
            old = self.calls.get(delta.index, ToolCall("", "", ""))
            new = ToolCall(old.id + delta.id, old.name + delta.name, old.arguments + delta.arguments)
            self.calls[delta.index] = new
        self.turn = replace(
            self.turn,
            said=replace(
                said,
                text=said.text + chunk.text,
                reasoning=said.reasoning + chunk.reasoning,
                thought=thought,
                calls=tuple(self.calls.values()),
            ),
        )


@dataclass(slots=True)
class _Channel:
    """What watchers of one conversation wait for."""

    changed: Broadcast = field(default_factory=Broadcast)
    live: dict[str, LiveAnswer] = field(default_factory=dict)
    version: int = 0  # counts changes of the conversation itself
    watchers: int = 0


class Answering:
    """All answers of one head. Methods belong to its event loop; the store works on a thread, one order at a time."""

    def __init__(self, open_store: Callable[[], ChatStore], answerer: Answerer) -> None:
        """The store is opened when it is first needed."""
        self._open_store = open_store
        self._store: ChatStore | None = None  # the thread's alone
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="chats")
        self._answerer = answerer
        self._channels: dict[tuple[str, str], _Channel] = {}  # by owner and conversation
        self._lists: dict[str, Broadcast] = {}  # by owner

    async def close(self) -> None:
        """End all answers; what they have so far is kept."""
        tasks = [live.task for channel in self._channels.values() for live in channel.live.values()]
        for task in filter(None, tasks):
            task.cancel()
        await asyncio.gather(*filter(None, tasks), return_exceptions=True)
        if self._store is not None:
            await self.work(ChatStore.close)
        self._thread.shutdown()

    async def work(self, order: Callable[Concatenate[ChatStore, P], T], *given: P.args, **named: P.kwargs) -> T:
        """Let the store's thread do `order`, after all that it was told before. Raises what it raises."""

        def run() -> T:
            if self._store is None:
                self._store = self._open_store()
            return order(self._store, *given, **named)

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    async def warning(self) -> Sentence:
        """What is wrong with the file; empty where nothing is."""
        return await self.work(lambda store: store.warning)

    # --- orders -------------------------------------------------------------------------------------------------------

    async def ask(self, owner: str, chat: str, parent: str, said: Said) -> tuple[Turn, Turn]:
        """Add a question after turn `parent` ("" for the first); returns it and the answer that begins.

        Raises NoSuchChat, BadRequest for an empty question, or where nothing can answer: then nothing was added.
        """
        if not said.text.strip() and not said.files:
            raise BadRequest("the question is empty; write something", "text")
        kept = await self.work(ChatStore.get, owner, chat)
        self._check(owner, kept)
        branch = kept.branch(parent) if parent else ()
        draft = Turn("", parent, "user", "done", 0.0, said)
        answered, chunks = await self._begin(owner, kept.settings, (*branch, draft))
        question = await self.work(ChatStore.add, owner, chat, parent, "user", said)
        return question, await self._write(owner, kept, question, answered, chunks)

    async def again(self, owner: str, chat: str, turn: str) -> Turn:
        """Another version of the answer `turn`, or an answer to the question `turn`. Raises as `ask` does."""
        kept = await self.work(ChatStore.get, owner, chat)
        self._check(owner, kept)
        found = kept.find(turn)
        question = kept.find(found.parent) if found.role == "assistant" and found.parent else found
        if question.role == "assistant":
            raise BadRequest("this answer has no question before it", "turn")
        answered, chunks = await self._begin(owner, kept.settings, kept.branch(question.id))
        return await self._write(owner, kept, question, answered, chunks)

    async def stop(self, owner: str, chat: str, turn: str) -> None:
        """End an answer where it is. Raises NoSuchChat for one that nobody writes."""
        live = self._channel(owner, chat).live.get(turn)
        if live is None or live.task is None:
            raise NoSuchChat("this answer is not being written", "turn")
        live.stopped = True
        live.task.cancel()
        await asyncio.wait([live.task])

    async def forget(self, owner: str) -> int:
        """Delete all that is kept for an owner, also what is being written; how many conversations that were."""
        for (whose, chat), channel in tuple(self._channels.items()):
            for turn in tuple(channel.live) if whose == owner else ():
                with suppress(NoSuchChat):  # it ended meanwhile
                    await self.stop(owner, chat, turn)
        gone = await self.work(ChatStore.forget, owner)
        self.changed(owner)
        return gone

    def changed(self, owner: str, chat: str = "") -> None:
        """The store has something new of a conversation, or of the list alone."""
        self._list(owner).notify()
        if chat and (channel := self._channels.get((owner, chat))) is not None:
            channel.version += 1
            channel.changed.notify()

    def writes(self, owner: str, chat: str) -> tuple[str, ...]:
        """The ids of answers that are being written."""
        channel = self._channels.get((owner, chat))
        return tuple(channel.live) if channel else ()

    def all_writes(self, owner: str) -> tuple[tuple[str, str], ...]:
        """Conversation and id of each answer that is being written."""
        return tuple((chat, turn) for (of, chat), it in self._channels.items() if of == owner for turn in it.live)

    def forgot(self, owner: str) -> None:
        """The store has nothing of `owner` any more."""
        for of, chat in tuple(self._channels):
            if of == owner:
                self.changed(owner, chat)
        self._list(owner).notify()

    # --- watching -----------------------------------------------------------------------------------------------------

    async def watch(self, owner: str, chat: str) -> AsyncGenerator[Conversation | Grown, None]:
        """The conversation, again whenever it changes, and between that what its answers grow by.

        Raises NoSuchChat where it is not there, or not any more.
        """
        channel = self._channel(owner, chat)
        channel.watchers += 1
        try:
            while True:
                version = channel.version  # before it is read: what changes meanwhile is told again
                kept = await self._now(owner, chat, channel)
                yield kept
                told = {turn.id: turn.said for turn in kept.turns}
                while channel.version == version:
                    seen = channel.changed.version
                    for live in tuple(channel.live.values()):
                        if (grown := _growth(told.get(live.turn.id, Said()), live.turn)) is not None:
                            told[live.turn.id] = live.turn.said
                            yield grown
                    await channel.changed.wait(seen, 60.0)
        finally:
            channel.watchers -= 1
            self._tidy(owner, chat)

    async def lists(self, owner: str) -> AsyncIterator[None]:
        """One step whenever the owner's list may have changed."""
        signal = self._list(owner)
        while True:
            seen = signal.version
            yield None
            while signal.version == seen:
                await signal.wait(seen, 60.0)

    async def now(self, owner: str, chat: str) -> Conversation:
        """With what its answers have so far. Raises NoSuchChat."""
        return await self._now(owner, chat, self._channels.get((owner, chat)) or _Channel())

    async def _now(self, owner: str, chat: str, channel: _Channel) -> Conversation:
        kept = await self.work(ChatStore.get, owner, chat)
        return replace(kept, turns=tuple(channel.live[t.id].turn if t.id in channel.live else t for t in kept.turns))

    # --- writing ------------------------------------------------------------------------------------------------------

    def _check(self, owner: str, chat: Conversation) -> None:
        if len(self.writes(owner, chat.summary.id)) >= AT_ONCE:
            text = "{most} answers of this conversation are being written; stop one first"
            raise BadRequest(text, "turn", most=AT_ONCE)

    async def _begin(
        self, owner: str, settings: ChatSettings, branch: tuple[Turn, ...]
    ) -> tuple[str, AsyncGenerator[AnswerChunk, None]]:
        names, seed = dict.fromkeys(name for turn in branch for name in turn.said.files), secrets.randbits(63)
        files = {name: await self.work(ChatStore.file, owner, name) for name in names}

        def request(defaults: Sampling) -> ChatRequest:
            return replace(request_of(branch, settings, defaults, seed, files), owner=Owner(owner))

        return self._answerer.answer(settings.model, request)

    async def _write(
        self, owner: str, chat: Conversation, question: Turn, model: str, chunks: AsyncGenerator[AnswerChunk, None]
    ) -> Turn:
        said = Said(model=model)
        name = chat.summary.id
        turn = await self.work(ChatStore.add, owner, name, question.id, "assistant", said, "writing")
        live = LiveAnswer(turn)
        self._channel(owner, name).live[turn.id] = live
        live.task = asyncio.create_task(self._follow(owner, name, live, chunks, chat.settings))
        self.changed(owner, name)
        return turn

    async def _follow(
        self,
        owner: str,
        chat: str,
        live: LiveAnswer,
        chunks: AsyncGenerator[AnswerChunk, None],
        settings: ChatSettings,
    ) -> None:
        """Write the answer to its end, keeping a copy now and then; whatever happens, it gets an end."""
        ended: State = "cut"
        channel, saved = self._channel(owner, chat), time.monotonic()
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    live.add(chunk)
                    self._note(live, chunk, settings)
                    channel.changed.notify()
                    if time.monotonic() - saved >= SAVE:
                        saved = time.monotonic()
                        await self.work(ChatStore.write, owner, live.turn)
            ended = "done"
        except asyncio.CancelledError:
            ended = "stopped" if live.stopped else "cut"
        except Exception as error:
            if not isinstance(error, TogetherError):
                log.exception("an answer of a conversation failed")
            note = str(error) if isinstance(error, TogetherError) else INSIDE
            live.turn, ended = replace(live.turn, said=replace(live.turn.said, note=note)), "failed"
        live.turn = replace(live.turn, state=ended)
        await self._keep(owner, chat, live)

    async def _keep(self, owner: str, chat: str, live: LiveAnswer) -> None:
        try:
            await self.work(ChatStore.write, owner, live.turn)
        except TogetherError as error:
            log.error("an answer could not be kept: %s", error)
        self._channel(owner, chat).live.pop(live.turn.id, None)
        self.changed(owner, chat)
        self._tidy(owner, chat)

    def _note(self, live: LiveAnswer, chunk: AnswerChunk, settings: ChatSettings) -> None:
        """The figures come with the last chunk."""
        if chunk.usage is None or chunk.timings is None:
            return
        usage, timings, said = chunk.usage, chunk.timings, live.turn.said
        figures = Figures(
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens,
            usage.reasoning_tokens,
            timings.tokens_per_s,
            timings.first_token,
            timings.queued,
            timings.total,
            self._answerer.machines(said.model),
        )
        note = str(cut_short(chunk.finish, usage, settings.limit, say("longer_on_page")))
        live.turn = replace(live.turn, said=replace(said, figures=figures, finish=chunk.finish, note=note))

    # --- channels -----------------------------------------------------------------------------------------------------

    def _channel(self, owner: str, chat: str) -> _Channel:
        return self._channels.setdefault((owner, chat), _Channel())

    def _tidy(self, owner: str, chat: str) -> None:
        channel = self._channels.get((owner, chat))
        if channel is not None and not channel.live and not channel.watchers:
            del self._channels[(owner, chat)]

    def _list(self, owner: str) -> Broadcast:
        return self._lists.setdefault(owner, Broadcast())


def _growth(told: Said, turn: Turn) -> Grown | None:
    said = turn.said
    text, reasoning = said.text[len(told.text) :], said.reasoning[len(told.reasoning) :]
    calls = said.calls if said.calls != told.calls else ()
    return Grown(turn.id, text, reasoning, calls) if text or reasoning or calls else None
