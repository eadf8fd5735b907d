"""Answers whose end meets another order, a disk that takes nothing, or a request that is gone."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from tests.chats.test_answering import ME, Told, answering, begun, ended, new, on_disk, written
from tests.support.cluster import until
from tests.support.patience import PATIENCE
from together.chats import answering as subject
from together.chats.answering import Answering
from together.chats.calls import AT_ONCE
from together.chats.records import ChatsBroken, KeptFile, NoSuchChat, Said
from together.chats.store import ChatStore
from together.errors import BadRequest

Meeting = Callable[[Answering, str, str], Any]


async def held_up(chats: Answering) -> tuple[Event, asyncio.Task[None]]:
    """The store's thread does nothing until the event is set."""
    go, begun = Event(), Event()

    def wait(store: ChatStore) -> None:
        begun.set()
        assert go.wait(PATIENCE)

    task = asyncio.create_task(chats.work(wait))
    await until(begun.is_set)
    return go, task


@pytest.mark.parametrize(
    ("meets", "state"),
    [
        (lambda chats, chat, turn: (chats.stop(ME, chat, turn),), "done"),
        (lambda chats, chat, turn: (chats.stop(ME, chat, turn), chats.stop(ME, chat, turn)), "done"),
        (lambda chats, chat, turn: (chats.close(),), "done"),
    ],
)
async def test_the_last_write_of_an_answer_is_done_whoever_ends_it(tmp_path: Path, meets: Meeting, state: str) -> None:
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat, answer = await begun(chats, told, "hel")
        go, held = await held_up(chats)
        told.say("lo")
        await until(lambda: told.closed == 1)
        orders = [asyncio.create_task(each) for each in meets(chats, chat, answer.id)]
        for _ in range(5):
            await asyncio.sleep(0)
        go.set()
        await asyncio.gather(held, *orders)
        assert written(chats, chat) == ()
    assert on_disk(tmp_path, answer) == ("hello", state)


async def test_a_second_stop_waits_for_the_first_one(tmp_path: Path) -> None:
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat, answer = await begun(chats, told, "hel")
        go, held = await held_up(chats)
        orders = [asyncio.create_task(chats.stop(ME, chat, answer.id)) for _ in range(3)]
        await until(lambda: told.closed == 1)
        go.set()
        await asyncio.gather(held, *orders)
        assert on_disk(tmp_path, answer) == ("hel", "stopped")


async def test_an_answer_outlives_a_file_that_another_program_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(subject, "SAVE", 0.0)
    monkeypatch.setattr(subject, "AGAIN", (0.0, 0.0))
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat = await new(chats)
        _, answer = await chats.ask(ME, chat, "", Said("hello?"))
        await chats.work(lambda store: store._connection.execute("PRAGMA busy_timeout = 0"))
        with closing(sqlite3.connect(tmp_path / "chats.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            told.say("hel", end=False)
            await until(lambda: "while it grows" in caplog.text)
            with pytest.raises(ChatsBroken, match="another program holds"):
                await chats.work(ChatStore.pin, ME, chat, True)
            told.say("lo")
            await until(lambda: "until together ends" in caplog.text)
            await chats.stop(ME, chat, answer.id)  # it has ended: nothing to wait for
            assert (await chats.now(ME, chat)).turns[-1].said.text == "hello"
            assert (await chats.now(ME, chat)).turns[-1].state == "done"
            other.execute("ROLLBACK")
        await ended(chats, chat)
        assert on_disk(tmp_path, answer) == ("hello", "done")
    assert caplog.text.count("while it grows") == caplog.text.count("until together ends") == 1


async def test_nothing_is_asked_behind_an_answer_that_is_being_written(tmp_path: Path) -> None:
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat, answer = await begun(chats, told, "hel")
        with pytest.raises(BadRequest, match="wait for its end, or stop it"):
            await chats.ask(ME, chat, answer.id, Said("and then?"))
        assert (len(told.asked), len((await chats.now(ME, chat)).turns)) == (1, 2)


async def test_a_delete_beside_a_question_leaves_nobody_writing(tmp_path: Path) -> None:
    told = Told()
    async with answering(tmp_path, told) as chats:
        for everything in (False, True):
            chat = await new(chats)
            asked = asyncio.create_task(chats.ask(ME, chat, "", Said("hello?")))
            await until(lambda: chats._channels != {})
            await (chats.forget(ME) if everything else chats.delete(ME, chat))
            await asyncio.gather(asked, return_exceptions=True)
            assert written(chats, chat) == ()
            assert chats._channels == {}


async def test_a_request_that_ends_leaves_no_answer_without_a_writer(tmp_path: Path) -> None:
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat = await new(chats)
        go, held = await held_up(chats)
        request = asyncio.create_task(chats.ask(ME, chat, "", Said("hello?")))
        await asyncio.sleep(0)
        request.cancel()
        go.set()
        await held
        await until(lambda: written(chats, chat) != ())
        told.say("hello")
        assert [turn.state for turn in (await ended(chats, chat)).turns] == ["done", "done"]


async def test_questions_at_once_are_counted_as_those_one_after_another(tmp_path: Path) -> None:
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat = await new(chats)
        asked = [chats.ask(ME, chat, "", Said("hello?")) for _ in range(3 * AT_ONCE)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(each, BadRequest) for each in outcomes) == 2 * AT_ONCE
        assert len(written(chats, chat)) == AT_ONCE
        assert len((await chats.now(ME, chat)).turns) == 2 * AT_ONCE


async def test_a_stop_of_what_is_not_there_leaves_nothing_behind(tmp_path: Path) -> None:
    async with answering(tmp_path, Told()) as chats:
        with pytest.raises(NoSuchChat):
            await chats.stop(ME, "invented", "invented")
        assert chats._channels == {}


async def test_a_question_has_files_of_its_own_conversation(tmp_path: Path) -> None:
    told = Told()
    async with answering(tmp_path, told) as chats:
        one, two = await new(chats), await new(chats)
        await chats.work(ChatStore.add_file, ME, one, KeptFile("f1", "a.md", "text/plain", 1), b"x")
        with pytest.raises(NoSuchChat, match="attach it here"):
            await chats.ask(ME, two, "", Said("what is it?", files=("f1",)))
        # a file that an earlier version took from another conversation went with that one
        question = await chats.work(ChatStore.add, ME, two, "", "user", Said("what is it?", files=("f1",)))
        await chats.delete(ME, one)
        with pytest.raises(BadRequest, match=r"what is it.* is gone"):
            await chats.again(ME, two, question.id)


async def test_an_answer_ends_when_its_owner_is_known_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "SAVE", 0.0)
    told = Told()
    async with answering(tmp_path, told) as chats:
        chat, _ = await begun(chats, told, "hel")
        chats.known = lambda owner: owner != ME
        last = (await ended(chats, chat)).turns[-1]
        assert (last.state, last.said.text, told.closed) == ("cut", "hel", 1)
