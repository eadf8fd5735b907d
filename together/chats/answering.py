"""Answers that are written on the head, whoever watches: each goes on when its browser closes.

Watchers get the whole conversation first, and then what is added to the answers that are being written.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import replace
from typing import Any, Protocol

from together.chats.calls import (
    CALLABLE,
    WAITS,
    CallAnswer,
    answered,
    call_of,
    check_next,
    offer_for,
    placed,
    result_of,
    results_after,
)
from together.chats.channels import ChatChannels
from together.chats.context import request_of
from together.chats.live import Begun, Channel, LiveAnswer, growth_of
from together.chats.records import ChatSettings, Conversation, Grown, NoSuchChat, Pending, Said, Turn
from together.chats.store import ChatStore
from together.errors import BadRequest, TogetherError
from together.requests import AnswerChunk, ChatRequest, Owner, PromptProgress
from together.tools.toolbox import Toolbox
from together.types import Sampling
from together.wording import cut, quoted

log = logging.getLogger(__name__)
Step = Conversation | Pending | Grown

SAVE = 2.0  # seconds between two copies of a growing answer in the store
AGAIN = (1.0, 60.0)  # seconds until a last write that failed is tried again, at first and at most
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


class Answering(ChatChannels):
    """All answers of one head, and the calls of tools that they make."""

    def __init__(self, open_store: Callable[[], ChatStore], answerer: Answerer, toolbox: Toolbox) -> None:
        super().__init__(open_store)
        self._answerer = answerer
        self.toolbox = toolbox
        self._closing = asyncio.Event()
        self.known: Callable[[str], bool] = lambda owner: True  # whether answers may go on for that owner

    async def close(self) -> None:
        """End all answers; what they have so far is kept."""
        self._closing.set()
        for channel in self._channels.values():
            for live in channel.live.values():
                live.end("cut")
        await self.toolbox.close()  # who waits for a server hears so
        await self._end()

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
            check_next(channel, kept, branch, said)
            draft = Turn("", parent, "user", "done", 0.0, said)
            begun = await self._begin(owner, kept, (*branch, draft))
            question = await self.work(ChatStore.add, owner, chat, parent, "user", said)
            return question, await self._write(owner, kept, question, begun)

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
            check_next(channel, kept, branch)
            return await self._write(owner, kept, question, await self._begin(owner, kept, branch))

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
                        if (grown := growth_of(told.get(live.turn.id, Said()), live.turn)) is not None:
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

    # --- writing ------------------------------------------------------------------------------------------------------

    async def _begin(self, owner: str, chat: Conversation, branch: tuple[Turn, ...]) -> Begun:
        files, seed = {}, secrets.randbits(63)
        for turn in branch:
            for name in turn.said.files:
                try:
                    files[name] = await self.work(ChatStore.file, owner, name)
                except NoSuchChat:
                    text = "a file that went with the question {question} is gone; ask it again without the file"
                    raise BadRequest(text, "files", question=quoted(cut(turn.said.text))) from None

        offer, use, grammar = await offer_for(self.toolbox, owner, chat.settings, branch)

        def request(defaults: Sampling) -> ChatRequest:
            made = request_of(branch, chat.settings, defaults, seed, files)
            return replace(made, owner=Owner(owner), tool_use=use, grammar=grammar)

        return Begun(*self._answerer.answer(chat.settings.model, request), offer)

    async def _write(self, owner: str, chat: Conversation, question: Turn, begun: Begun) -> Turn:
        said = Said(model=begun.model, note="; ".join(map(str, begun.offer.missing)))
        name = chat.summary.id
        turn = await self.work(ChatStore.add, owner, name, question.id, "assistant", said, "writing")
        live = LiveAnswer(turn, begun.offer)
        self._live(owner, name, live, self._read(self._channel(owner, name), live, begun.chunks, chat.settings))
        return turn

    def _live(self, owner: str, chat: str, live: LiveAnswer, work: Coroutine[Any, Any, None]) -> None:
        """Let `work` write a turn, and follow it to its end."""
        self._channel(owner, chat).live[live.turn.id] = live
        live.reading = asyncio.create_task(work)
        if self._closing.is_set():
            live.end("cut")
        self._task(self._follow(owner, chat, live, live.reading))
        self.changed(owner, chat)

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
        calls = await self._place(owner, chat, live)  # before its end is told: nothing is asked between them
        await self._keep(owner, chat, live)
        for call in calls:
            if call.state == "writing":
                self._make(owner, chat, call)
        if calls and all(call.state == "failed" for call in calls):
            await self._go_on(owner, chat, calls[-1].id)
        elif live.turn.role == "tool" and live.told is None:
            await self._go_on(owner, chat, live.turn.id)

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

    # --- calls of tools -----------------------------------------------------------------------------------------------

    async def call(self, owner: str, chat: str, turn: str, answer: CallAnswer) -> None:
        """What the user says to a call. Raises NoSuchChat, BadRequest for a turn that waits for no such thing."""
        await self._whole(self._call(owner, chat, turn, answer))

    async def _call(self, owner: str, chat: str, name: str, answer: CallAnswer) -> None:
        async with self._alone(owner, chat) as channel:
            kept = await self._now(owner, chat, channel)
            turn = kept.find(name)
            if turn.state not in CALLABLE or turn.role != "tool":
                raise BadRequest("this call is being made, or has its result", "turn")
            call_of(kept, turn)
            turn = answered(turn, answer)
            if turn.state == "writing" and answer.allow == "always":
                await self.toolbox.allow(owner, turn.said.server, turn.said.tool)
            await self.work(ChatStore.write, owner, turn)
            if turn.state == "writing":
                self._make(owner, chat, turn)
        self.changed(owner, chat)
        if turn.state == "done":
            await self._go_on(owner, chat, name)

    async def _place(self, owner: str, chat: str, live: LiveAnswer) -> list[Turn]:
        """Turns for the calls of an answer that has ended."""
        made: list[Turn] = []
        if not live.offer.tools or live.turn.state != "done":
            return made
        try:
            for said, state in placed(live.offer, live.turn.said.calls):
                parent = made[-1].id if made else live.turn.id
                made.append(await self.work(ChatStore.add, owner, chat, parent, "tool", said, state))
        except NoSuchChat:  # it was deleted meanwhile
            made = []
        except Exception as error:
            log.error("the calls of an answer cannot be kept: %s", error)
            said = replace(live.turn.said, note="its calls of tools cannot be kept; look at the disk, then ask again")
            live.turn, made = replace(live.turn, state="failed", said=said), []
        return made

    def _make(self, owner: str, chat: str, turn: Turn) -> None:
        live = LiveAnswer(turn)
        self._live(owner, chat, live, self._ask_tool(owner, chat, live))

    async def _ask_tool(self, owner: str, chat: str, live: LiveAnswer) -> None:
        call = call_of(await self.work(ChatStore.get, owner, chat), live.turn)
        live.turn = replace(live.turn, said=await result_of(self.toolbox, owner, live.turn.said, call))

    async def _go_on(self, owner: str, chat: str, result: str) -> None:
        """The next answer, once all calls of the one before have results."""
        with suppress(NoSuchChat):  # it was deleted meanwhile
            async with self._alone(owner, chat) as channel:
                kept = await self._now(owner, chat, channel)
                results = results_after(kept, kept.find(result))
                begun = [turn for turn in kept.turns if turn.parent == results[-1].id and turn.state == "writing"]
                if begun or self._closing.is_set() or any(turn.state in WAITS for turn in results):
                    return
                await self._answer_to(owner, kept, results[-1])

    async def _answer_to(self, owner: str, chat: Conversation, result: Turn) -> None:
        """An answer to the results of calls; where none can begin, one that says why."""
        try:
            begun = await self._begin(owner, chat, chat.branch(result.id))
        except TogetherError as error:
            said = Said(note=str(error))
            await self.work(ChatStore.add, owner, chat.summary.id, result.id, "assistant", said, "failed")
            self.changed(owner, chat.summary.id)
            return
        await self._write(owner, chat, result, begun)
