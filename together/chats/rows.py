"""Rows of the database as records, and records as rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic_core import to_json

from together.chats.bounds import title_from
from together.chats.records import (
    NEW,
    ChatsBroken,
    ChatSettings,
    ChatSummary,
    Conversation,
    KeptFile,
    NoSuchChat,
    Said,
    State,
    Turn,
    new_id,
)
from together.chats.words import owner_word, spread
from together.errors import BadRequest
from together.jsonfile import decode_json
from together.wording import cut, quoted

MOST_BYTES = 2**30  # of the files of one owner

Copy = tuple[Conversation, Sequence[tuple[KeptFile, bytes]]]
TORN = "this conversation is damaged on the disk and cannot be read; delete it, or put back a copy of the file"


def summary_of(row: Sequence[Any]) -> ChatSummary:
    chat, title, pinned, created, changed, *_ = row
    return ChatSummary(chat, title, bool(pinned), created, changed)


def turn_of(row: Sequence[Any]) -> Turn:
    turn, parent, role, state, created, said = row
    return Turn(turn, parent, role, state, created, said_of(said))


def said_of(text: str) -> Said:
    try:
        return decode_json(text.encode(), Said)
    except ValueError as error:
        raise ChatsBroken(TORN) from error


def index(connection: sqlite3.Connection, table: str, key: int, owner: str, text: str) -> None:
    connection.execute(f"DELETE FROM {table} WHERE rowid = ?", (key,))
    connection.execute(
        f"INSERT INTO {table} (rowid, owner, text) VALUES (?, ?, ?)", (key, owner_word(owner), spread(text))
    )


def insert_chat(
    connection: sqlite3.Connection, owner: str, settings: ChatSettings, title: str, now: float
) -> tuple[str, int]:
    """Its id and its key."""
    chat = new_id()
    key = connection.execute(
        "INSERT INTO chat (id, owner, title, named, created, changed, settings) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (chat, owner, title or NEW, title not in ("", NEW), now, now, to_json(settings).decode()),
    ).lastrowid
    assert key is not None
    index(connection, "title_words", key, owner, title or NEW)
    return chat, key


def insert_turn(connection: sqlite3.Connection, chat: int, owner: str, turn: Turn) -> None:
    key = connection.execute(
        "INSERT INTO turn (id, chat, parent, role, state, created, said) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (turn.id, chat, turn.parent, turn.role, turn.state, turn.created, to_json(turn.said).decode()),
    ).lastrowid
    assert key is not None
    if turn.state != "writing":
        index(connection, "turn_words", key, owner, turn.said.text)


def merge_words(connection: sqlite3.Connection) -> None:
    """The index keeps what was deleted until its parts are merged."""
    for table in ("turn_words", "title_words"):
        connection.execute(f"INSERT INTO {table} ({table}) VALUES ('optimize')")


def insert_file(connection: sqlite3.Connection, chat: int, owner: str, file: KeptFile, data: bytes) -> None:
    """Raises BadRequest where the owner would have too many bytes of files."""
    (kept,) = connection.execute(_FILE_BYTES, (owner,)).fetchone()
    if kept + len(data) > MOST_BYTES:
        text = "the files of your conversations have {most} MB together; delete conversations with files first"
        raise BadRequest(text, "file", most=MOST_BYTES // 2**20)
    connection.execute(
        "INSERT INTO file (id, chat, name, kind, tokens, data) VALUES (?, ?, ?, ?, ?, ?)",
        (file.id, chat, file.name, file.kind, file.tokens, data),
    )


_FILE_BYTES = """SELECT coalesce(sum(length(file.data)), 0)
    FROM file JOIN chat ON chat.key = file.chat WHERE chat.owner = ?"""


def check_turn(connection: sqlite3.Connection, chat: int, turn: str) -> None:
    found = connection.execute("SELECT 1 FROM turn WHERE id = ? AND chat = ?", (turn, chat)).fetchone()
    if found is None:
        raise NoSuchChat("this conversation has no turn {turn}", "turn", turn=quoted(cut(turn)))


def put_copy(
    connection: sqlite3.Connection,
    owner: str,
    given: Conversation,
    files: Sequence[tuple[KeptFile, bytes]],
    now: float,
) -> str:
    """A copy of `given` and its files; returns its id."""
    chat, key = insert_chat(connection, owner, given.settings, title_from(given.summary.title), now)
    renamed = {"": ""} | {turn.id: new_id() for turn in given.turns}
    names = {file.id: new_id() for file, _ in files}
    for file, data in files:
        insert_file(connection, key, owner, replace(file, id=names[file.id]), data)
    for turn in given.turns:
        kept = replace(turn.said, files=tuple(names[name] for name in turn.said.files if name in names))
        state: State = "cut" if turn.state in ("writing", "asking") else turn.state
        copied = replace(turn, id=renamed[turn.id], parent=renamed[turn.parent], state=state, said=kept)
        insert_turn(connection, key, owner, copied)
    connection.execute("UPDATE chat SET leaf = ? WHERE key = ?", (renamed[given.leaf], key))
    return chat
