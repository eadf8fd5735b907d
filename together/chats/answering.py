"""Answers that are written on the head, whoever watches: each goes on when its browser closes.

Watchers get the whole conversation first, and then what is added to the answers that are being written.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from together.chats.context import request_of
from together.chats.live import Channel, LiveAnswer
from together.chats.records import ChatSettings, Conversation, Grown, NoSuchChat, Pending, Said, Turn
from together.chats.store import ChatStore
from together.errors import BadRequest, TogetherError
from together.requests import AnswerChunk, ChatRequest, Owner, PromptProgress
from together.ring.rpc import Broadcast
from together.sentences import Sentence
from together.types import Sampling
from together.wording import cut, quoted

log = logging.getLogger(__name__)
Step = Conversation | Pending | Grown
P = ParamSpec("P")
T = TypeVar("T")

SAVE = 2.0  # seconds between two copies of a growing answer in the store
AGAIN = (1.0, 60.0)  # seconds until a last write that failed is tried again, at first and at most
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


class Answering:
    """All answers of one head. Methods belong to its event loop; the store works on a thread, one order at a time."""

    def __init__(self, open_store: Callable[[], ChatStore], answerer: Answerer) -> None:
        """The store is opened when it is first needed."""
        self._open_store = open_store
        self._store: ChatStore | None = None  # the thread's alone
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="chats")
        self._answerer = answerer
        self._channels: dict[tuple[str, str], Channel] = {}  # by owner and conversation
        self._lists: dict[str, Broadcast] = {}  # by owner
        self._tasks: set[asyncio.Task[Any]] = set()  # what runs to its end, whoever waits for it
        self._closing = asyncio.Event()
        self.known: Callable[[str], bool] = lambda owner: True  # whether answers may go on for that owner

    async def close(self) -> None:
        """End all answers; what they have so far is kept."""
        self._closing.set()
        for channel in self._channels.values():
            for live in channel.live.values():
                live.end("cut")
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._store is not None:
            await self.work(ChatStore.close)
            self._store = None
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
        return await self._whole(self._ask(owner, chat, parent, said))

    async def _ask(self, owner: str, chat: str, parent: str, said: Said) -> tuple[Turn, Turn]:
        async with self._alone(owner, chat) as channel:
            kept = await self._now(owner, chat, channel)
            branch = kept.branch(parent) if parent else ()
            _check(channel, kept, branch, said)
            draft = Turn("", parent, "user", "done", 0.0, said)
            answered, chunks = await self._begin(owner, kept, (*branch, draft))
            question = await self.work(ChatStore.add, owner, chat, parent, "user", said)
            return question, await self._write(owner, kept, question, answered, chunks)

    async def again(self, owner: str, chat: str, turn: str) -> Turn:
        """Another version of the answer `turn`, or an answer to the question `turn`. Raises as `ask` does."""
        return await self._whole(self._again(owner, chat, turn))

    async def _again(self, owner: str, chat: str, turn: str) -> Turn:
        async with self._alone(owner, chat) as channel:
            kept = await self._now(owner, chat, channel)
            found = kept.find(turn)
            question = kept.find(found.parent) if found.role == "assistant" and found.parent else found
            if question.role == "assistant":
                raise BadRequest("this answer has no question before it", "turn")
            branch = kept.branch(question.id)
            _check(channel, kept, branch)
            answered, chunks = await self._begin(owner, kept, branch)
            return await self._write(owner, kept, question, answered, chunks)

    async def stop(self, owner: str, chat: str, turn: str) -> None:
        """End an answer where it is. Raises NoSuchChat for one that nobody writes."""
        channel = self._channels.get((owner, chat))
        live = channel.live.get(turn) if channel else None
        if live is None:
            raise NoSuchChat("this answer is not being written", "turn")
        live.end("stopped")
        await live.tried.wait()

    async def delete(self, owner: str, chat: str) -> None:
        """End what is being written of a conversation, and delete it. Raises NoSuchChat."""
        await self._whole(self._delete(owner, chat))

    async def _delete(self, owner: str, chat: str) -> None:
        async with self._alone(owner, chat) as channel:
            await self._stop_all(owner, chat, channel)
            await self.work(ChatStore.delete, owner, chat)
            self.changed(owner, chat)

    async def forget(self, owner: str) -> int:
        """Delete all that is kept for an owner, also what is being written; how many conversations that were."""
        return await self._whole(self._forget(owner))

    async def _forget(self, owner: str) -> int:
        async with AsyncExitStack() as locks:
            for chat in [chat for of, chat in self._channels if of == owner]:
                await locks.enter_async_context(self._alone(owner, chat))
            gone = await self.work(ChatStore.forget, owner)
            for (of, chat), channel in tuple(self._channels.items()):
                if of == owner:
                    await self._stop_all(owner, chat, channel)
                    self.changed(owner, chat)
        self.changed(owner)
        return gone

    async def _stop_all(self, owner: str, chat: str, channel: Channel) -> None:
        for turn in tuple(channel.live):
            with suppress(NoSuchChat):  # it ended meanwhile
                await self.stop(owner, chat, turn)

    async def _whole(self, order: Coroutine[Any, Any, T]) -> T:
        """Carry out `order` to its end, also where the request that gave it ends before: no half of it is kept."""
        return await asyncio.shield(self._task(order))

    def _task(self, order: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(order)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @asynccontextmanager
    async def _alone(self, owner: str, chat: str) -> AsyncIterator[Channel]:
        """Nobody else adds turns to that conversation or deletes it meanwhile."""
        with self._used(owner, chat) as channel:
            async with channel.lock:
                yield channel

    def changed(self, owner: str, chat: str = "") -> None:
        """The store has something new of a conversation, or of the list alone."""
        self._list(owner).notify()
        if chat and (channel := self._channels.get((owner, chat))) is not None:
            channel.version += 1
            channel.changed.notify()

    # --- watching -----------------------------------------------------------------------------------------------------

    async def watch(self, owner: str, chat: str) -> AsyncGenerator[Step, None]:
        """The conversation, again whenever it changes, and between that what its answers wait for and grow by.

        Raises NoSuchChat where it is not there, or not any more.
        """
        with self._used(owner, chat) as channel:
            while True:
                version = channel.version  # before it is read: what changes meanwhile is told again
                kept = await self._now(owner, chat, channel)
                yield kept
                told = {turn.id: turn.said for turn in kept.turns}
                where: dict[str, PromptProgress] = {}
                while channel.version == version:
                    seen = channel.changed.version
                    for live in tuple(channel.live.values()):
                        if (grown := _growth(told.get(live.turn.id, Said()), live.turn)) is not None:
                            told[live.turn.id], where[live.turn.id] = live.turn.said, live.progress
                            yield grown
                        elif live.progress != where.get(live.turn.id, PromptProgress()):
                            where[live.turn.id] = live.progress
                            yield Pending(live.turn.id, live.progress)
                    await channel.changed.wait(seen, 60.0)

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
        return await self._now(owner, chat, self._channels.get((owner, chat)) or Channel())

    async def _now(self, owner: str, chat: str, channel: Channel) -> Conversation:
        kept = await self.work(ChatStore.get, owner, chat)
        return replace(kept, turns=tuple(channel.live[t.id].turn if t.id in channel.live else t for t in kept.turns))

    # --- writing ------------------------------------------------------------------------------------------------------

    async def _begin(
        self, owner: str, chat: Conversation, branch: tuple[Turn, ...]
    ) -> tuple[str, AsyncGenerator[AnswerChunk, None]]:
        files, seed = {}, secrets.randbits(63)
        for turn in branch:
            for name in turn.said.files:
                try:
                    files[name] = await self.work(ChatStore.file, owner, name)
                except NoSuchChat:
                    text = "a file that went with the question {question} is gone; ask it again without the file"
                    raise BadRequest(text, "files", question=quoted(cut(turn.said.text))) from None

        def request(defaults: Sampling) -> ChatRequest:
            return replace(request_of(branch, chat.settings, defaults, seed, files), owner=Owner(owner))

        return self._answerer.answer(chat.settings.model, request)

    async def _write(
        self, owner: str, chat: Conversation, question: Turn, model: str, chunks: AsyncGenerator[AnswerChunk, None]
    ) -> Turn:
        said = Said(model=model)
        name = chat.summary.id
        turn = await self.work(ChatStore.add, owner, name, question.id, "assistant", said, "writing")
        live = LiveAnswer(turn)
        channel = self._channel(owner, name)
        channel.live[turn.id] = live
        live.reading = asyncio.create_task(self._read(channel, live, chunks, chat.settings))
        if self._closing.is_set():
            live.end("cut")
        self._task(self._follow(owner, name, live, live.reading))
        self.changed(owner, name)
        return turn

    async def _read(
        self, channel: Channel, live: LiveAnswer, chunks: AsyncGenerator[AnswerChunk, None], settings: ChatSettings
    ) -> None:
        async with aclosing(chunks):
            async for chunk in chunks:
                live.add(chunk)
                if chunk.usage is not None:
                    live.count(chunk, settings.limit, self._answerer.machines(live.turn.said.model))
                channel.changed.notify()

    async def _follow(self, owner: str, chat: str, live: LiveAnswer, reading: asyncio.Task[None]) -> None:
        """Write the answer to its end, keeping a copy now and then; whatever happens, it gets an end."""
        copies = asyncio.create_task(self._copy(owner, live))
        await asyncio.wait([reading])
        copies.cancel()
        error = None if reading.cancelled() else reading.exception()
        if live.told is not None and (error is not None or reading.cancelled()):
            live.turn = replace(live.turn, state=live.told)
        elif error is not None:
            if not isinstance(error, TogetherError):
                log.error("an answer of a conversation failed", exc_info=error)
            note = str(error) if isinstance(error, TogetherError) else INSIDE
            live.turn = replace(live.turn, state="failed", said=replace(live.turn.said, note=note))
        else:
            live.turn = replace(live.turn, state="cut" if reading.cancelled() else "done")
        await self._keep(owner, chat, live)

    async def _copy(self, owner: str, live: LiveAnswer) -> None:
        """Copies of a growing answer, beside it: one that fails is only told, for the next one has its text, too.

        Where its owner's key was revoked meanwhile, the answer ends.
        """
        kept, failed = live.turn, False
        while True:
            await asyncio.sleep(SAVE)
            if not self.known(owner):
                live.end("cut")
            turn = live.turn
            if turn is kept:
                continue
            try:
                await self.work(ChatStore.write, owner, turn)
                kept, failed = turn, False
            except Exception as error:
                if not failed:
                    log.error("an answer cannot be kept while it grows; this is tried again: %s", error)
                failed = True

    async def _keep(self, owner: str, chat: str, live: LiveAnswer) -> None:
        """Write the answer's end until that succeeds, or the program ends; meanwhile it is held in memory."""
        pause, most = AGAIN
        try:
            while not await self._kept(owner, live):
                if not live.tried.is_set():
                    live.tried.set()
                    self.changed(owner, chat)  # it ended, though it is not kept yet
                if self._closing.is_set():
                    break
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), pause)
                pause = min(2 * pause, most)
        finally:
            self._channel(owner, chat).live.pop(live.turn.id, None)
            live.tried.set()
            self.changed(owner, chat)
            self._tidy(owner, chat)

    async def _kept(self, owner: str, live: LiveAnswer) -> bool:
        try:
            await self.work(ChatStore.write, owner, live.turn)
        except Exception as error:
            if not live.tried.is_set():
                log.error("an answer cannot be kept; this is tried again until together ends: %s", error)
            return False
        return True

    # --- channels -----------------------------------------------------------------------------------------------------

    def _channel(self, owner: str, chat: str) -> Channel:
        return self._channels.setdefault((owner, chat), Channel())

    @contextmanager
    def _used(self, owner: str, chat: str) -> Iterator[Channel]:
        channel = self._channel(owner, chat)
        channel.users += 1
        try:
            yield channel
        finally:
            channel.users -= 1
            self._tidy(owner, chat)

    def _tidy(self, owner: str, chat: str) -> None:
        channel = self._channels.get((owner, chat))
        if channel is not None and not channel.live and not channel.users:
            del self._channels[(owner, chat)]

    def _list(self, owner: str) -> Broadcast:
        return self._lists.setdefault(owner, Broadcast())


def _check(channel: Channel, chat: Conversation, branch: tuple[Turn, ...], said: Said | None = None) -> None:
    """Whether an answer may begin at the end of `branch`, to a question that says `said`. Raises BadRequest."""
    if sum(live.turn.state == "writing" for live in channel.live.values()) >= AT_ONCE:
        raise BadRequest("{most} answers of this conversation are being written; stop one first", "turn", most=AT_ONCE)
    if any(turn.state == "writing" for turn in branch):
        text = "the answer before this question is still being written; wait for its end, or stop it"
        raise BadRequest(text, "parent")
    if said is not None and not {file.id for file in chat.files}.issuperset(said.files):
        raise NoSuchChat("a file of this question is none of this conversation; attach it here", "files")


def _growth(told: Said, turn: Turn) -> Grown | None:
    said = turn.said
    text, reasoning = said.text[len(told.text) :], said.reasoning[len(told.reasoning) :]
    calls = said.calls if said.calls != told.calls else ()
    return Grown(turn.id, text, reasoning, calls) if text or reasoning or calls else None
