"""Answers that go on whoever watches. The model is this file's: it says what it is told, when it is told."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.cluster import until
from tests.support.patience import PATIENCE
from together.chats import answering as subject
from together.chats.answering import INSIDE, Answering
from together.chats.calls import AT_ONCE
from together.chats.records import ChatSettings, Conversation, Grown, KeptFile, NoSuchChat, Pending, Said, Turn
from together.chats.store import ChatStore
from together.errors import BadRequest, NotServing, RingBroken
from together.jsonfile import decode_json
from together.requests import AnswerChunk, CallDelta, ChatRequest, PromptProgress, Timings, ToolCall, Usage
from together.tools.toolbox import Toolbox
from together.types import Sampling

ME = "local"
END = AnswerChunk("", finish="stop", usage=Usage(7, 3, 2), timings=Timings(total=3.0, first_token=1.0, tokens=3))


@dataclass
class Told:
    """Answers with what is put into `says`; None ends an answer, an exception is raised."""

    says: asyncio.Queue[AnswerChunk | Exception | None] = field(default_factory=asyncio.Queue)
    asked: list[ChatRequest] = field(default_factory=list)
    refusal: Exception | None = None
    closed: int = 0

    def answer(
        self, model: str, request: Callable[[Sampling], ChatRequest]
    ) -> tuple[str, AsyncGenerator[AnswerChunk, None]]:
        if self.refusal is not None:
            raise self.refusal
        self.asked.append(request(Sampling(temperature=0.5)))
        return model or "only", self._chunks()

    async def _chunks(self) -> AsyncGenerator[AnswerChunk, None]:
        try:
            while (chunk := await self.says.get()) is not None:
                if isinstance(chunk, Exception):
                    raise chunk
                yield chunk
        finally:
            self.closed += 1

    def machines(self, model: str) -> tuple[str, ...]:
        return ("studio", "mini")

    def say(self, *texts: str, end: bool = True) -> None:
        for text in texts:
            self.says.put_nowait(AnswerChunk(text))
        if end:
            self.says.put_nowait(END)
            self.says.put_nowait(None)


@asynccontextmanager
async def answering(folder: Path, told: Told) -> AsyncIterator[Answering]:
    made = Answering(lambda: ChatStore(folder / "chats.db"), told, Toolbox(folder))
    try:
        yield made
    finally:
        await made.close()


async def new(chats: Answering, settings: ChatSettings | None = None) -> str:
    return (await chats.work(ChatStore.create, ME, settings or ChatSettings())).summary.id


def written(chats: Answering, chat: str) -> tuple[str, ...]:
    """The ids of answers that are being written."""
    channel = chats._channels.get((ME, chat))
    return tuple(channel.live) if channel else ()


async def ended(chats: Answering, chat: str) -> Conversation:
    """The conversation when nothing is being written in it."""
    await until(lambda: not written(chats, chat))
    return await chats.now(ME, chat)


async def begun(chats: Answering, told: Told, text: str) -> tuple[str, Turn]:
    """A new conversation, and the answer to its question, which has this text so far."""
    chat = await new(chats)
    _, answer = await chats.ask(ME, chat, "", Said("hello?"))
    told.say(text, end=False)
    await text_so_far(chats, chat, text)
    return chat, answer


async def text_so_far(chats: Answering, chat: str, text: str) -> None:
    live = chats._channels[(ME, chat)].live
    await until(lambda: [each.turn.said.text for each in live.values()] == [text])


async def test_an_answer_is_written_though_nobody_watches(tmp_path: Path) -> None:
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat = await new(chats, ChatSettings(system="be short", temperature=0.0, stop=("x",), thinking=True))
        question, answer = await chats.ask(ME, chat, "", Said("hello?"))
        told.say("hel", "lo")
        kept = await ended(chats, chat)
    first, last = kept.branch()
    assert (first, last.id, last.parent) == (question, answer.id, question.id)
    assert (last.state, last.said.text, last.said.model) == ("done", "hello", "only")
    assert last.said.figures is not None
    assert (last.said.figures.tokens, last.said.figures.tokens_per_s) == (3, 1.0)
    assert last.said.figures.machines == ("studio", "mini")
    (asked,) = told.asked
    assert [(message.role, message.content) for message in asked.messages] == [
        ("system", "be short"),
        ("user", "hello?"),
    ]
    assert (asked.sampling.temperature, asked.stop, asked.template["enable_thinking"]) == (0.0, ("x",), True)


async def test_a_watcher_hears_what_an_answer_without_text_waits_for(tmp_path: Path) -> None:
    told = Told()
    second, first = PromptProgress(2, 0, 900), PromptProgress(0, 256, 900)
    async with answering(tmp_path, told) as chats:
        chat = await new(chats)
        steps = chats.watch(ME, chat)
        await anext(steps)
        _, answer = await chats.ask(ME, chat, "", Said("hello?"))
        await anext(steps)
        told.says.put_nowait(AnswerChunk("", progress=second))
        assert await anext(steps) == Pending(answer.id, second)
        late = chats.watch(ME, chat)
        assert isinstance(await anext(late), Conversation)
        assert await anext(late) == Pending(answer.id, second)
        told.says.put_nowait(AnswerChunk("", progress=first))
        assert [await anext(each) for each in (steps, late)] == [Pending(answer.id, first)] * 2
        told.say("one", end=False)
        assert [await anext(each) for each in (steps, late)] == [Grown(answer.id, "one")] * 2
        told.say()
        for each in (steps, late):
            assert isinstance(await anext(each), Conversation)


async def test_a_watcher_gets_the_whole_then_what_is_added(tmp_path: Path) -> None:
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat = await new(chats)
        steps = chats.watch(ME, chat)
        assert await anext(steps) == await chats.now(ME, chat)
        _, answer = await chats.ask(ME, chat, "", Said("hello?"))
        begun = await anext(steps)
        assert isinstance(begun, Conversation)
        assert begun.branch()[-1] == answer
        for text in ("one ", "two "):
            told.say(text, end=False)
            assert await anext(steps) == Grown(answer.id, text)
        late = chats.watch(ME, chat)
        seen = await anext(late)
        assert isinstance(seen, Conversation)
        assert seen.branch()[-1].said.text == "one two "
        told.say("three", end=False)
        assert [await anext(each) for each in (steps, late)] == [Grown(answer.id, "three")] * 2
        told.say()
        for each in (steps, late):
            whole = await anext(each)
            assert isinstance(whole, Conversation)
            assert (whole.branch()[-1].state, whole.branch()[-1].said.text) == ("done", "one two three")


async def test_thoughts_and_calls_are_kept_and_watched(tmp_path: Path) -> None:
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat = await new(chats)
        steps = chats.watch(ME, chat)
        await anext(steps)
        _, answer = await chats.ask(ME, chat, "", Said("2 + 2?"))
        await anext(steps)
        parts = (CallDelta(0, "c1", "add"), CallDelta(0, arguments='{"a":'), CallDelta(0, arguments="2}"))
        told.says.put_nowait(AnswerChunk("", reasoning="hm"))
        assert await anext(steps) == Grown(answer.id, reasoning="hm")
        told.says.put_nowait(AnswerChunk("", tool_calls=parts))
        call = ToolCall("c1", "add", '{"a":2}')
        assert await anext(steps) == Grown(answer.id, calls=(call,))
        told.say()
        said = (await ended(chats, chat)).branch()[-1].said
    assert (said.reasoning, said.calls) == ("hm", (call,))


async def test_stop_keeps_what_was_said_and_closes_the_request(tmp_path: Path) -> None:
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat, answer = await begun(chats, told, "hel")
        await chats.stop(ME, chat, answer.id)
        last = (await chats.now(ME, chat)).branch()[-1]
        assert (last.state, last.said.text, told.closed) == ("stopped", "hel", 1)
        with pytest.raises(NoSuchChat, match="not being written"):
            await chats.stop(ME, chat, answer.id)


async def test_the_end_of_the_program_cuts_an_answer(tmp_path: Path) -> None:
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat, _ = await begun(chats, told, "hel")
    store = ChatStore(tmp_path / "chats.db")
    last = store.get(ME, chat).branch()[-1]
    store.close()
    assert (last.state, last.said.text, told.closed) == ("cut", "hel", 1)


@pytest.mark.parametrize(
    ("error", "note"), [(RingBroken("a machine is gone"), "a machine is gone"), (ZeroDivisionError(), INSIDE)]
)
async def test_an_answer_that_fails_keeps_its_text_and_says_why(tmp_path: Path, error: Exception, note: str) -> None:
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat = await new(chats)
        await chats.ask(ME, chat, "", Said("hello?"))
        told.say("hel", end=False)
        told.says.put_nowait(error)
        last = (await ended(chats, chat)).branch()[-1]
        assert (last.state, last.said.text, last.said.note) == ("failed", "hel", note)


async def test_what_cannot_begin_leaves_no_question(tmp_path: Path) -> None:
    told = Told(refusal=NotServing("no model is loaded"))
    async with answering(tmp_path, told) as chats:
        chat = await new(chats)
        with pytest.raises(NotServing):
            await chats.ask(ME, chat, "", Said("hello?"))
        told.refusal = None
        for refused in (Said("  "), Said("x", files=("gone",))):
            with pytest.raises(BadRequest):
                await chats.ask(ME, chat, "", refused)
        with pytest.raises(NoSuchChat):
            await chats.ask(ME, chat, "gone", Said("hello?"))
        with pytest.raises(NoSuchChat):
            await chats.ask("another", chat, "", Said("hello?"))
        assert (await chats.now(ME, chat)).turns == ()


async def test_another_version_answers_the_same_question(tmp_path: Path) -> None:
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat = await new(chats)
        question, first = await chats.ask(ME, chat, "", Said("hello?"))
        told.say("one")
        await ended(chats, chat)
        second = await chats.again(ME, chat, first.id)
        told.say("two")
        await ended(chats, chat)
        third = await chats.again(ME, chat, question.id)
        told.say("three")
        kept = await ended(chats, chat)
    assert [turn.said.text for turn in kept.turns] == ["hello?", "one", "two", "three"]
    assert {first.parent, second.parent, third.parent} == {question.id}
    assert kept.leaf == third.id
    assert len({str(asked.messages) for asked in told.asked}) == 1
    assert len({asked.sampling.seed for asked in told.asked}) == 3


async def test_a_next_question_carries_the_shown_branch_alone(tmp_path: Path) -> None:
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat = await new(chats)
        _, first = await chats.ask(ME, chat, "", Said("hello?"))
        told.say("one")
        await ended(chats, chat)
        await chats.again(ME, chat, first.id)
        told.say("two")
        await ended(chats, chat)
        await chats.ask(ME, chat, first.id, Said("and then?"))
        told.say("three")
        await ended(chats, chat)
    assert [message.content for message in told.asked[-1].messages] == ["hello?", "one", "and then?"]


async def test_files_stand_before_their_question(tmp_path: Path) -> None:
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat = await new(chats)
        notes, picture = KeptFile("f1", "a.md", "text/plain", 9), KeptFile("f2", "b.png", "image/png", 3)
        await chats.work(ChatStore.add_file, ME, chat, notes, b"```\ncode\n```")
        await chats.work(ChatStore.add_file, ME, chat, picture, b"PNG")
        await chats.ask(ME, chat, "", Said("what is it?", files=("f1", "f2")))
        told.say("code")
        await ended(chats, chat)
    (message,) = told.asked[0].messages
    assert message.content == "a.md\n````\n```\ncode\n```\n````\n\nwhat is it?"
    assert [attached.data for attached in message.pictures] == [b"PNG"]


async def test_so_many_answers_of_one_conversation_at_once(tmp_path: Path) -> None:
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat = await new(chats)
        question, _ = await chats.ask(ME, chat, "", Said("hello?"))
        for _ in range(AT_ONCE - 1):
            await chats.again(ME, chat, question.id)
        with pytest.raises(BadRequest, match="stop one first"):
            await chats.again(ME, chat, question.id)


async def test_a_deleted_conversation_ends_its_watchers(tmp_path: Path) -> None:
    async with answering(tmp_path, Told()) as chats:
        chat = await new(chats)
        steps = chats.watch(ME, chat)
        await anext(steps)
        await chats.work(ChatStore.delete, ME, chat)
        chats.changed(ME, chat)
        with pytest.raises(NoSuchChat):
            await anext(steps)
        with pytest.raises(NoSuchChat):
            await anext(chats.watch(ME, chat))
        assert chats._channels == {}


async def test_a_list_tells_its_owner_alone(tmp_path: Path) -> None:
    async with answering(tmp_path, Told()) as chats:
        mine, others = chats.lists(ME), chats.lists("another")
        await anext(mine)
        await anext(others)
        chats.changed(ME)
        await asyncio.wait_for(anext(mine), PATIENCE)
        waits = asyncio.ensure_future(anext(others))
        await asyncio.sleep(0)
        assert not waits.done()
        waits.cancel()


async def test_a_growing_answer_is_kept_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "SAVE", 0.0)
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat = await new(chats)
        _, answer = await chats.ask(ME, chat, "", Said("hello?"))
        told.say("hel", end=False)
        await until(lambda: on_disk(tmp_path, answer) == ("hel", "writing"))


def on_disk(folder: Path, turn: Turn) -> tuple[str, str]:
    """What another program reads of a turn meanwhile."""
    with closing(sqlite3.connect(folder / "chats.db")) as connection:
        said, state = connection.execute("SELECT said, state FROM turn WHERE id = ?", (turn.id,)).fetchone()
    return decode_json(said.encode(), Said).text, state
