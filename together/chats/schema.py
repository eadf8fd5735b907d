"""The database file: opened with the rights of its user alone, brought to this version, set aside when damaged."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

from together.chats.records import ChatsBroken
from together.wording import reason_of

# Each step brings a file from the version before it to its own; `PRAGMA user_version` counts them. Steps stay as they
# are once they are published; another change is another step.
STEPS = (
    """
    CREATE TABLE chat (
        key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, title TEXT NOT NULL,
        named INTEGER NOT NULL DEFAULT 0, pinned INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL,
        changed REAL NOT NULL, leaf TEXT NOT NULL DEFAULT '', settings TEXT NOT NULL
    );
    CREATE INDEX chat_by_change ON chat (owner, pinned, changed);
    CREATE TABLE turn (
        key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, chat INTEGER NOT NULL REFERENCES chat ON DELETE CASCADE,
        parent TEXT NOT NULL, role TEXT NOT NULL, state TEXT NOT NULL, created REAL NOT NULL, said TEXT NOT NULL
    );
    CREATE INDEX turn_by_chat ON turn (chat);
    CREATE INDEX turn_by_state ON turn (state) WHERE state = 'writing';
    CREATE TABLE file (
        key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, chat INTEGER NOT NULL REFERENCES chat ON DELETE CASCADE,
        name TEXT NOT NULL, kind TEXT NOT NULL, tokens INTEGER, data BLOB NOT NULL
    );
    CREATE INDEX file_by_chat ON file (chat);
    CREATE TABLE preset (
        owner TEXT NOT NULL, name TEXT NOT NULL, settings TEXT NOT NULL, PRIMARY KEY (owner, name)
    );
    CREATE VIRTUAL TABLE turn_words USING fts5 (owner, text, prefix = '2 3');
    CREATE VIRTUAL TABLE title_words USING fts5 (owner, text, prefix = '2 3');
    CREATE TRIGGER turn_gone AFTER DELETE ON turn BEGIN DELETE FROM turn_words WHERE rowid = old.key; END;
    CREATE TRIGGER chat_gone AFTER DELETE ON chat BEGIN DELETE FROM title_words WHERE rowid = old.key; END;
    """,
)
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def open_file(file: Path) -> sqlite3.Connection:
    """The database in `file`, at this version; a new one where there is none.

    Raises ChatsBroken for one of a newer program or that cannot be opened, sqlite3.DatabaseError for a damaged one.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
        if os.name == "posix":
            file.chmod(0o600)  # SQLite gives the files beside it the same rights
        connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.OperationalError) as error:
        raise _unusable(file, error) from error
    try:
        _prepare(connection, file)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.OperationalError) and not is_damage(error):
            raise _unusable(file, error) from error
        raise
    return connection


def open_memory() -> sqlite3.Connection:
    """A database that is gone with the program."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    _prepare(connection, Path(":memory:"))
    return connection


def _unusable(file: Path, error: Exception) -> ChatsBroken:
    text = "conversations cannot be kept in {file}: {error}; look at its rights and at the room on that disk"
    return ChatsBroken(text, file=str(file), error=reason_of(error))


def _prepare(connection: sqlite3.Connection, file: Path) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # a finished turn is on the disk
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")  # what is deleted is not left in free pages
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(STEPS):
        text = "{file} was written by a newer version of together; update this one, or move that file away"
        raise ChatsBroken(text, file=str(file))
    for number in range(version, len(STEPS)):
        script = f"BEGIN IMMEDIATE; {STEPS[number]} PRAGMA user_version = {number + 1}; COMMIT;"
        connection.executescript(script)
    for table in ("chat", "turn", "file", "preset"):  # a damaged header or root is noticed here
        connection.execute(f"SELECT count(*) FROM {table} WHERE rowid < 2").fetchone()


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is not what it should be; else it is locked, full, or a mistake of ours."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _DAMAGED


def set_aside(file: Path) -> Path:
    """Move a damaged database and what belongs to it out of the way; nothing of it is deleted. Raises ChatsBroken."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    kept = file.with_name(f"{file.name}.damaged-{stamp}")
    number = 1
    while kept.exists():
        number += 1
        kept = file.with_name(f"{file.name}.damaged-{stamp}-{number}")
    try:
        os.replace(file, kept)
    except OSError as error:
        raise _unusable(file, error) from error
    for end in ("-wal", "-shm"):
        with suppress(OSError):
            os.replace(file.with_name(file.name + end), kept.with_name(kept.name + end))
    return kept
