"""The store of conversations: real files; every error path; no owner sees another's."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from tests.conftest import ROOT
from together.chats.records import (
    NEW,
    ChatsBroken,
    ChatSettings,
    ChatSummary,
    Conversation,
    Figures,
    KeptFile,
    NoSuchChat,
    Said,
    Turn,
    title_of,
)
from together.chats.schema import STEPS
from together.chats.store import MOST_PRESETS, ChatStore
from together.errors import BadRequest
from together.requests import ToolCall

ME, OTHER = "local", "key-2"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChatStore]:
    ticks = count(1)
    opened = ChatStore(tmp_path / "chats.db", clock=lambda: float(next(ticks)))
    yield opened
    opened.close()


def asked(store: ChatStore, question: str, answer: str = "", owner: str = ME) -> str:
    """A conversation of one question and its answer."""
    chat = store.create(owner, ChatSettings()).summary.id
    first = store.add(owner, chat, "", "user", Said(question))
    store.add(owner, chat, first.id, "assistant", Said(answer))
    return chat


def found(store: ChatStore, searched: str, owner: str = ME) -> list[str]:
    return [each.id for each in store.search(owner, searched)]


def test_all_of_a_turn_comes_back(store: ChatStore, tmp_path: Path) -> None:
    settings = ChatSettings("demo_model", "be short", temperature=0.0, stop=("\n",), thinking=False)
    chat = store.create(ME, settings).summary.id
    said = Said(
        "4",
        "2 and 2",
        1.5,
        (ToolCall("call_1", "add", '{"a": 2}'),),
        model="demo_model",
        figures=Figures(9, 3, 4, 1, 20.0, 0.1, 0.0, 0.4, ("studio", "mini")),
        note="cut at 3 tokens",
    )
    question = store.add(ME, chat, "", "user", Said("what is 2 + 2?"))
    answer = store.add(ME, chat, question.id, "assistant", said)
    store.close()
    again = ChatStore(tmp_path / "chats.db")
    kept = again.get(ME, chat)
    again.close()
    assert kept.settings == settings
    assert kept.turns == (question, answer)
    assert kept.branch() == (question, answer)
    assert kept.summary.title == "what is 2 + 2?"


def test_versions_of_a_turn_make_branches(store: ChatStore) -> None:
    chat = asked(store, "one", "first answer")
    first = store.get(ME, chat).turns[0]
    second = store.add(ME, chat, first.id, "assistant", Said("second answer"))
    edited = store.add(ME, chat, "", "user", Said("one, said otherwise"))
    kept = store.get(ME, chat)
    assert [turn.said.text for turn in kept.branch()] == ["one, said otherwise"]
    assert kept.summary.title == "one, said otherwise"
    assert kept.last_below(first.id) == second.id
    store.show(ME, chat, second.id)
    assert [turn.said.text for turn in store.get(ME, chat).branch()] == ["one", "second answer"]
    assert edited.id in {turn.id for turn in kept.turns}


def test_a_name_that_a_user_gave_stays(store: ChatStore) -> None:
    chat = store.create(ME, ChatSettings()).summary.id
    assert store.get(ME, chat).summary.title == NEW
    store.rename(ME, chat, "  trip   to Rome ")
    store.add(ME, chat, "", "user", Said("where do I sleep?"))
    assert store.get(ME, chat).summary.title == "trip to Rome"
    assert found(store, "rome") == [chat]


@pytest.mark.parametrize("title", ["", "  ", "x" * 101])
def test_a_name_has_letters_and_not_too_many(store: ChatStore, title: str) -> None:
    chat = asked(store, "hello")
    with pytest.raises(BadRequest, match="1 to 100 letters"):
        store.rename(ME, chat, title)


def test_lists_have_pinned_ones_first_then_the_latest(store: ChatStore) -> None:
    chats = [asked(store, f"question {number}") for number in range(7)]
    store.pin(ME, chats[1], True)
    store.add(ME, chats[3], "", "user", Said("once more"))
    order = [chats[i] for i in (1, 3, 6, 5, 4, 2, 0)]
    assert [each.id for each in store.recent(ME)] == order
    pages, last = [], ""
    while page := store.recent(ME, last, 2):
        pages += [each.id for each in page]
        last = pages[-1]
    assert pages == order


@pytest.mark.parametrize(
    ("searched", "is_found"),
    [
        ("北京", True),
        ("京", True),
        ("天气 北", True),
        ("京天", False),
        ("weather", True),
        ("WEA", True),
        ("weather beijing", True),
        ("weather rome", False),
        ("café", True),
        ("", False),
        ('"', False),
        ('text : "x" OR owner', False),
        ("서울", True),
    ],
)
def test_words_are_found(store: ChatStore, searched: str, is_found: bool) -> None:
    asked(store, "something else", "of no interest")
    chat = asked(store, "北京的天气 Weather in Beijing", "Sit in a Café, 서울에서 *")
    hits = found(store, searched)
    assert hits == ([chat] if is_found else [])


def test_a_hit_shows_its_surroundings(store: ChatStore) -> None:
    asked(store, "hello", f"{'before ' * 30}the needle {'after ' * 30}")
    (hit,) = store.search(ME, "needle")
    assert "the needle after" in hit.hit
    assert hit.hit.startswith("…")
    assert len(hit.hit) < 140


def test_what_is_being_written_is_found_when_it_is_done(store: ChatStore) -> None:
    chat = asked(store, "hello")
    turn = store.add(ME, chat, "", "assistant", Said("a par"), "writing")
    store.write(ME, replace(turn, said=Said("a parrot")))
    assert found(store, "parrot") == []
    store.write(ME, replace(turn, said=Said("a parrot"), state="done"))
    assert found(store, "parrot") == [chat]


def test_no_owner_has_anything_of_another(store: ChatStore) -> None:
    chat = asked(store, "my secret word")
    store.keep_preset(ME, "mine", ChatSettings())
    file = KeptFile("f1", "notes.txt", "text/plain", 5)
    store.add_file(ME, chat, file, b"notes")
    turn = store.get(ME, chat).turns[0]
    assert store.recent(OTHER) == ()
    assert found(store, "secret", OTHER) == []
    assert store.presets(OTHER) == ()
    refused = (
        lambda: store.get(OTHER, chat),
        lambda: store.rename(OTHER, chat, "x"),
        lambda: store.pin(OTHER, chat, True),
        lambda: store.use(OTHER, chat, ChatSettings()),
        lambda: store.show(OTHER, chat, turn.id),
        lambda: store.delete(OTHER, chat),
        lambda: store.add(OTHER, chat, "", "user", Said("x")),
        lambda: store.add_file(OTHER, chat, file, b""),
        lambda: store.file(OTHER, "f1"),
        lambda: store.delete_preset(OTHER, "mine"),
        lambda: store.recent(OTHER, chat),
    )
    for order in refused:
        with pytest.raises(NoSuchChat):
            order()
    store.write(OTHER, replace(turn, said=Said("changed")))
    store.forget(OTHER)
    assert store.get(ME, chat).turns[0] == turn
    assert store.file(ME, "f1") == (file, b"notes")


def test_a_turn_belongs_to_its_conversation(store: ChatStore) -> None:
    one, two = asked(store, "one"), asked(store, "two")
    foreign = store.get(ME, two).turns[0].id
    with pytest.raises(NoSuchChat, match="has no turn"):
        store.add(ME, one, foreign, "user", Said("x"))
    with pytest.raises(NoSuchChat, match="has no turn"):
        store.show(ME, one, foreign)
    with pytest.raises(NoSuchChat, match="has no turn"):
        store.get(ME, one).branch("nothing")


@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_deleted_is_nowhere_on_the_disk(store: ChatStore, tmp_path: Path, at_once: bool) -> None:
    chat = asked(store, "the word is xylophonist", "xylophonist it is")
    store.add_file(ME, chat, KeptFile("f1", "xylophonist.txt", "text/plain", 11), b"xylophonist")
    store.keep_preset(ME, "xylophonist", ChatSettings())
    asked(store, "of another", owner=OTHER)
    if at_once:
        assert store.forget(ME) == 1
    else:
        store.delete_preset(ME, "xylophonist")
        store.delete(ME, chat)
    assert [file.name for file in tmp_path.iterdir() if b"xylophonist" in file.read_bytes()] == []
    assert len(store.recent(OTHER)) == 1


def test_a_copy_has_ids_of_its_own(store: ChatStore) -> None:
    chat = asked(store, "one", "two")
    file = KeptFile("f1", "notes.txt", "text/plain", 5, 2)
    store.add_file(ME, chat, file, b"notes")
    store.add(ME, chat, store.get(ME, chat).leaf, "user", Said("and this?", files=("f1", "gone")))
    kept = store.get(ME, chat)
    (copy,) = store.put(ME, [(kept, [store.file(ME, "f1")])])
    assert {turn.id for turn in copy.turns}.isdisjoint(turn.id for turn in kept.turns)
    assert [turn.said.text for turn in copy.branch()] == ["one", "two", "and this?"]
    store.delete(ME, chat)
    (name,) = copy.branch()[-1].said.files
    assert store.file(ME, name) == (replace(file, id=name), b"notes")
    assert found(store, "two") == [copy.summary.id]


def test_a_copy_that_fails_leaves_nothing(store: ChatStore) -> None:
    orphan = Turn("a", "nowhere", "user", "done", 0.0, Said("x"))
    given = Conversation(ChatSummary("x", "title", False, 0.0, 0.0), turns=(orphan,))
    whole = replace(given, turns=(replace(orphan, parent=""),))
    with pytest.raises(KeyError):
        store.put(ME, [(whole, ()), (given, ())])
    assert store.recent(ME) == ()


def test_presets_are_kept_by_name(store: ChatStore) -> None:
    store.keep_preset(ME, "exact", ChatSettings(temperature=0.0))
    store.keep_preset(ME, "exact", ChatSettings(temperature=0.1))
    assert store.presets(ME) == (("exact", ChatSettings(temperature=0.1, preset="exact")),)
    store.delete_preset(ME, "exact")
    with pytest.raises(NoSuchChat, match="no preset 'exact'"):
        store.delete_preset(ME, "exact")
    for number in range(MOST_PRESETS):
        store.keep_preset(ME, str(number), ChatSettings())
    with pytest.raises(BadRequest, match="delete one first"):
        store.keep_preset(ME, "one more", ChatSettings())
    store.keep_preset(ME, "3", ChatSettings(temperature=0.3))
    assert ("3", ChatSettings(temperature=0.3, preset="3")) in store.presets(ME)


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_files_are_its_users_alone(store: ChatStore, tmp_path: Path) -> None:
    asked(store, "hello")
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {
        "chats.db": 0o600,
        "chats.db-wal": 0o600,
        "chats.db-shm": 0o600,
    }


KILLED = """
import os, signal, sys
from pathlib import Path
from together.chats.records import ChatSettings, Said
from together.chats.store import ChatStore
store = ChatStore(Path(sys.argv[1]))
chat = store.create("local", ChatSettings()).summary.id
question = store.add("local", chat, "", "user", Said("a question"))
store.add("local", chat, question.id, "assistant", Said("half an ans"), "writing")
os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
"""


def test_a_killed_program_loses_no_finished_turn(tmp_path: Path) -> None:
    file = tmp_path / "chats.db"
    subprocess.run([sys.executable, "-c", KILLED, str(file)], cwd=ROOT, check=False, timeout=60)
    store = ChatStore(file)
    kept = store.get(ME, store.recent(ME)[0].id)
    store.close()
    assert [(turn.state, turn.said.text) for turn in kept.turns] == [("done", "a question"), ("cut", "half an ans")]


@pytest.mark.parametrize("harm", ["no database", "torn pages"])
def test_a_damaged_file_is_kept_aside_and_told(tmp_path: Path, harm: str) -> None:
    file = tmp_path / "chats.db"
    store = ChatStore(file)
    for number in range(50):
        asked(store, f"question {number} " * 50)
    store.close()
    data = file.read_bytes()
    file.write_bytes(b"no database" * 99 if harm == "no database" else data[:100] + b"\xff" * 8000 + data[8100:])
    again = ChatStore(file)
    kept = next(each for each in tmp_path.iterdir() if "damaged" in each.name)
    assert str(kept) in str(again.warning)
    asked(again, "works")
    assert len(again.recent(ME)) == 1
    again.close()


def test_damage_of_pages_that_shows_later_is_told_once_and_work_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "chats.db"
    store = ChatStore(file)
    chats = [asked(store, f"question {number}") for number in range(100)]
    store.close()
    size, store = file.stat().st_size, ChatStore(file)
    spoil(file, size // 2, size)  # all but what was read when it was opened
    with pytest.raises(ChatsBroken, match="was damaged; it is kept as"):
        [store.get(ME, chat) for chat in chats]
    assert store.recent(ME) == ()
    asked(store, "works")
    store.close()


@pytest.mark.parametrize("byte", [b"\xff", b'"'])
def test_damage_of_one_text_costs_that_conversation_alone(tmp_path: Path, byte: bytes) -> None:
    file = tmp_path / "chats.db"
    store = ChatStore(file)
    torn, whole = asked(store, "torn " * 9000), asked(store, "whole")
    store.close()
    at = file.read_bytes().index(b"torn " * 99)
    spoil(file, at, at + 1000, byte)
    store = ChatStore(file)
    with pytest.raises(ChatsBroken, match="this conversation is damaged"):
        store.get(ME, torn)
    assert store.get(ME, whole).branch()[0].said.text == "whole"
    store.delete(ME, torn)
    store.close()


def spoil(file: Path, begin: int, end: int, byte: bytes = b"\xff") -> None:
    with file.open("r+b") as stream:
        stream.seek(begin)
        stream.write(byte * (end - begin))


def test_two_damaged_files_of_one_second_are_both_kept(tmp_path: Path) -> None:
    file = tmp_path / "chats.db"
    for content in (b"one" * 999, b"two" * 999):
        file.write_bytes(content)
        ChatStore(file).close()
    assert {each.read_bytes() for each in tmp_path.iterdir() if "damaged" in each.name} == {b"one" * 999, b"two" * 999}


def test_a_file_of_a_newer_program_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "chats.db"
    ChatStore(file).close()
    connection = sqlite3.connect(file)
    connection.execute(f"PRAGMA user_version = {len(STEPS) + 1}")
    connection.close()
    store = ChatStore(file)
    assert "newer version of together" in str(store.warning)
    asked(store, "in memory")
    assert len(store.recent(ME)) == 1
    store.close()
    assert [each.name for each in tmp_path.iterdir()] == ["chats.db"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = ChatStore(tmp_path / "file" / "chats.db")
    assert "cannot be kept in" in str(store.warning)
    assert "gone when together ends" in str(store.warning)
    store.close()


def test_a_full_disk_is_told_and_nothing_is_half_written(store: ChatStore) -> None:
    chat = asked(store, "one")
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(ChatsBroken, match="look at the room on that disk"):
        store.add(ME, chat, "", "user", Said("x" * 100_000))
    assert [turn.said.text for turn in store.get(ME, chat).turns] == ["one", ""]


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("", NEW),
        ("\n\n  hello\n world", "hello"),
        ("word " * 40, "word " * 14 + "word…"),
        ("中" * 100, "中" * 79 + "…"),
    ],
)
def test_titles_are_first_lines_cut_between_words(text: str, title: str) -> None:
    assert title_of(text) == title
