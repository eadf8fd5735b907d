"""The conversations of all owners in one SQLite file. Every method takes the owner first and sees nothing of others.

All methods block and may be called from any thread, one at a time.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic_core import to_json

from together.chats.records import (
    ChatsBroken,
    ChatSettings,
    ChatSummary,
    Conversation,
    KeptFile,
    NoSuchChat,
    Role,
    Said,
    State,
    Turn,
    checked_name,
    new_id,
    title_of,
)
from together.chats.rows import (
    TORN,
    Copy,
    check_turn,
    index,
    insert_chat,
    insert_file,
    insert_turn,
    merge_words,
    put_copy,
    said_of,
    summary_of,
    turn_of,
)
from together.chats.schema import is_damage, open_file, open_memory, set_aside
from together.chats.words import hit, query
from together.errors import BadRequest
from together.jsonfile import decode_json
from together.sentences import NOTHING, Sentence, template
from together.wording import cut, quoted

FILE = "conversations.db"
PAGE = 50  # conversations of a list
NEWEST = 2000  # hits that a search looks at, the newest first
MOST_PRESETS = 50

_SUMMARY = "chat.id, chat.title, chat.pinned, chat.created, chat.changed"


class ChatStore:
    """`warning` says that a damaged file was set aside, or that nothing can be kept, until the program ends."""

    def __init__(self, file: Path, clock: Callable[[], float] = time.time) -> None:
        """Opens the file, or sets a damaged one aside and begins a new one; where none can be, all is in memory."""
        self.path = file
        self.warning: Sentence = NOTHING
        self._clock = clock
        self._lock = Lock()
        try:
            self._connection = self._opened()
        except ChatsBroken as error:
            self.warning = template("{error}; until then they are gone when together ends", error=error.sentence)
            self._connection = open_memory()
        with self._transaction() as connection:  # answers that nobody writes any more
            connection.execute("UPDATE turn SET state = 'cut' WHERE state = 'writing'")

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _opened(self) -> sqlite3.Connection:
        try:
            return open_file(self.path)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            return self._begun_anew()

    def _begun_anew(self) -> sqlite3.Connection:
        kept = set_aside(self.path)
        text = "the file of conversations was damaged; it is kept as {kept}, and a new one was begun"
        self.warning = template(text, kept=str(kept))
        return open_file(self.path)

    @contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """All or nothing. Raises ChatsBroken for a damaged file, which is set aside, and for a full or held one."""
        with self._lock:
            try:
                self._connection.execute(begin)
                try:
                    yield self._connection
                except BaseException:
                    self._connection.rollback()
                    raise
                self._connection.commit()
            except sqlite3.DatabaseError as error:
                if is_damage(error):
                    self._connection.close()
                    self._connection = self._begun_anew()
                    raise ChatsBroken(self.warning) from error
                if not hasattr(error, "sqlite_errorcode"):  # Python's own: bytes that are no text
                    raise ChatsBroken(TORN) from error
                if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise ChatsBroken(_HELD, file=str(self.path)) from error
                text = "conversations cannot be kept in {file}: {error}; look at the room on that disk"
                raise ChatsBroken(text, file=str(self.path), error=str(error)) from error

    def _reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """As `_transaction`, for what changes nothing: it waits for nobody who writes."""
        return self._transaction("BEGIN")

    # --- lists --------------------------------------------------------------------------------------------------------

    def recent(self, owner: str, before: str = "", count: int = PAGE) -> tuple[ChatSummary, ...]:
        """The pinned ones first, each part by its last change; `before` is the id of the last one already known.

        Raises NoSuchChat for a `before` that is gone.
        """
        asked = f"SELECT {_SUMMARY} FROM chat WHERE owner = ?"
        values: list[object] = [owner]
        with self._reading() as connection:
            if before:
                pinned, changed, key = self._row(connection, owner, before, "pinned, changed, key")
                asked += " AND (pinned, changed, key) < (?, ?, ?)"
                values += [pinned, changed, key]
            asked += " ORDER BY pinned DESC, changed DESC, key DESC LIMIT ?"
            return tuple(summary_of(row) for row in connection.execute(asked, (*values, count)))

    def search(self, owner: str, searched: str, count: int = PAGE) -> tuple[ChatSummary, ...]:
        """Conversations with all words of `searched` in their title or in one turn, the newest hits first."""
        asked = query(searched, owner)
        if asked is None:
            return ()
        found: dict[str, ChatSummary] = {}
        with self._reading() as connection:
            for row in connection.execute(_TITLES, (asked, NEWEST)):
                found[row[0]] = summary_of(row)
            keys = [key for (key,) in connection.execute(_HITS, (asked, NEWEST))]
            for key in keys:
                if len(found) >= count:
                    break
                row = connection.execute(_HIT, (key,)).fetchone()
                if row is not None and row[0] not in found:
                    found[row[0]] = replace(summary_of(row), hit=hit(said_of(row[5]).text, searched))
        return tuple(found.values())[:count]

    # --- one conversation ---------------------------------------------------------------------------------------------

    def create(self, owner: str, settings: ChatSettings, title: str = "") -> Conversation:
        """A new one; `title` is a user's, where there is one."""
        with self._transaction() as connection:
            chat, _ = insert_chat(connection, owner, settings, title, self._clock())
            return self._conversation(connection, owner, chat)

    def get(self, owner: str, chat: str) -> Conversation:
        """Raises NoSuchChat."""
        with self._reading() as connection:
            return self._conversation(connection, owner, chat)

    def _conversation(self, connection: sqlite3.Connection, owner: str, chat: str) -> Conversation:
        *summary, key, leaf, settings = self._row(connection, owner, chat, f"{_SUMMARY}, key, leaf, settings")
        turns = connection.execute(
            "SELECT id, parent, role, state, created, said FROM turn WHERE chat = ? ORDER BY key", (key,)
        )
        files = connection.execute(
            "SELECT id, name, kind, length(data), tokens FROM file WHERE chat = ? ORDER BY key", (key,)
        )
        return Conversation(
            summary_of(summary),
            decode_json(settings.encode(), ChatSettings),
            leaf,
            tuple(map(turn_of, turns)),
            tuple(KeptFile(*row) for row in files),
        )

    def rename(self, owner: str, chat: str, title: str) -> None:
        """Raises NoSuchChat or BadRequest."""
        title = checked_name(title, "title")
        with self._transaction() as connection:
            key = self._key(connection, owner, chat)
            connection.execute("UPDATE chat SET title = ?, named = 1 WHERE key = ?", (title, key))
            index(connection, "title_words", key, owner, title)

    def pin(self, owner: str, chat: str, pinned: bool) -> None:
        """Raises NoSuchChat."""
        with self._transaction() as connection:
            key = self._key(connection, owner, chat)
            connection.execute("UPDATE chat SET pinned = ? WHERE key = ?", (pinned, key))

    def use(self, owner: str, chat: str, settings: ChatSettings) -> None:
        """Answer it by other settings from now on. Raises NoSuchChat."""
        with self._transaction() as connection:
            key = self._key(connection, owner, chat)
            connection.execute("UPDATE chat SET settings = ? WHERE key = ?", (to_json(settings).decode(), key))

    def show(self, owner: str, chat: str, leaf: str) -> None:
        """Show the branch that ends with turn `leaf`. Raises NoSuchChat."""
        with self._transaction() as connection:
            key = self._key(connection, owner, chat)
            check_turn(connection, key, leaf)
            connection.execute("UPDATE chat SET leaf = ? WHERE key = ?", (leaf, key))

    def delete(self, owner: str, chat: str) -> None:
        """Raises NoSuchChat."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM chat WHERE key = ?", (self._key(connection, owner, chat),))
            merge_words(connection)
        self._empty_log()

    def owners(self) -> tuple[str, ...]:
        """Whose anything is kept."""
        with self._lock:
            return tuple(
                row[0] for row in self._connection.execute("SELECT owner FROM chat UNION SELECT owner FROM preset")
            )

    def forget(self, owner: str) -> int:
        """Delete all that is kept for `owner`; returns how many conversations that were."""
        with self._transaction() as connection:
            gone = connection.execute("DELETE FROM chat WHERE owner = ?", (owner,)).rowcount
            connection.execute("DELETE FROM preset WHERE owner = ?", (owner,))
            merge_words(connection)
        self._empty_log()
        return gone

    def _empty_log(self) -> None:
        """What was deleted does not stay in the log of changes either; while another program reads, it does."""
        with self._lock, suppress(sqlite3.OperationalError):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def put(self, owner: str, given: Sequence[Copy]) -> list[Conversation]:
        """Keep copies with ids of their own, all or none: an import or a duplicate. What was being written is cut."""
        with self._transaction() as connection:
            made = [put_copy(connection, owner, chat, files, self._clock()) for chat, files in given]
            return [self._conversation(connection, owner, chat) for chat in made]

    # --- turns --------------------------------------------------------------------------------------------------------

    def add(self, owner: str, chat: str, parent: str, role: Role, said: Said, state: State = "done") -> Turn:
        """A new turn after `parent` ("" for the first), which is shown from now on. Raises NoSuchChat.

        The first question gives the conversation its title, where no user did.
        """
        turn = Turn(new_id(), parent, role, state, self._clock(), said)
        with self._transaction() as connection:
            key, named = self._row(connection, owner, chat, "key, named")
            if parent:
                check_turn(connection, key, parent)
            insert_turn(connection, key, owner, turn)
            connection.execute("UPDATE chat SET leaf = ?, changed = ? WHERE key = ?", (turn.id, turn.created, key))
            if role == "user" and not parent and not named:
                title = title_of(said.text)
                connection.execute("UPDATE chat SET title = ? WHERE key = ?", (title, key))
                index(connection, "title_words", key, owner, title)
        return turn

    def revise(self, owner: str, chat: str, turn: str, text: str) -> Turn:
        """Another version of an answer, as its user has it; the conversation goes on from there.

        Raises NoSuchChat, or BadRequest for what is no finished answer.
        """
        old = self.get(owner, chat).find(turn)
        if old.role != "assistant" or old.state == "writing":
            raise BadRequest("only an answer that has ended can be changed; wait for its end, or stop it", "turn")
        if not text.strip():
            raise BadRequest("the answer is empty; write something", "text")
        said = replace(old.said, text=text, calls=(), figures=None, finish=None, note="", edited=True)
        return self.add(owner, chat, old.parent, "assistant", said)

    def write(self, owner: str, turn: Turn) -> None:
        """Replace what `turn` says and its state; nothing where it was deleted meanwhile."""
        with self._transaction() as connection:
            row = connection.execute(_TURN, (turn.id, owner)).fetchone()
            if row is not None:
                said = to_json(turn.said).decode()
                connection.execute("UPDATE turn SET said = ?, state = ? WHERE key = ?", (said, turn.state, row[0]))
                if turn.state != "writing":
                    index(connection, "turn_words", row[0], owner, turn.said.text)

    # --- files --------------------------------------------------------------------------------------------------------

    def add_file(self, owner: str, chat: str, file: KeptFile, data: bytes) -> None:
        """Raises NoSuchChat, or BadRequest where the owner has too many bytes of files."""
        with self._transaction() as connection:
            insert_file(connection, self._key(connection, owner, chat), owner, file, data)

    def file(self, owner: str, file: str) -> tuple[KeptFile, bytes]:
        """Raises NoSuchChat."""
        with self._reading() as connection:
            row = connection.execute(_FILE, (file, owner)).fetchone()
        if row is None:
            raise NoSuchChat("there is no such file; it may have been deleted", "files")
        return KeptFile(*row[:5]), row[5]

    # --- presets ------------------------------------------------------------------------------------------------------

    def presets(self, owner: str) -> tuple[tuple[str, ChatSettings], ...]:
        """By name."""
        with self._reading() as connection:
            rows = connection.execute("SELECT name, settings FROM preset WHERE owner = ? ORDER BY name", (owner,))
            return tuple((name, decode_json(settings.encode(), ChatSettings)) for name, settings in rows)

    def keep_preset(self, owner: str, name: str, settings: ChatSettings) -> None:
        """A new one, or another content of the one with that name. Raises BadRequest."""
        name = checked_name(name, "name")
        with self._transaction() as connection:
            counted = "SELECT count(*) FROM preset WHERE owner = ? AND name != ?"
            (count,) = connection.execute(counted, (owner, name)).fetchone()
            if count >= MOST_PRESETS:
                raise BadRequest("there are {most} presets already; delete one first", "name", most=MOST_PRESETS)
            values = (owner, name, to_json(replace(settings, preset=name)).decode())
            connection.execute("INSERT OR REPLACE INTO preset VALUES (?, ?, ?)", values)

    def delete_preset(self, owner: str, name: str) -> None:
        """Raises NoSuchChat."""
        with self._transaction() as connection:
            if not connection.execute("DELETE FROM preset WHERE owner = ? AND name = ?", (owner, name)).rowcount:
                raise NoSuchChat("there is no preset {name}", "name", name=quoted(cut(name)))

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _row(self, connection: sqlite3.Connection, owner: str, chat: str, columns: str) -> tuple[Any, ...]:
        asked = f"SELECT {columns} FROM chat WHERE id = ? AND owner = ?"
        row: tuple[Any, ...] | None = connection.execute(asked, (chat, owner)).fetchone()
        if row is None:
            raise NoSuchChat("there is no such conversation; it may have been deleted", "id")
        return row

    def _key(self, connection: sqlite3.Connection, owner: str, chat: str) -> int:
        key: int = self._row(connection, owner, chat, "key")[0]
        return key


_HELD = "another program holds {file}, so that nothing can be kept there; close it, then try again"
_TITLES = f"""SELECT {_SUMMARY} FROM title_words JOIN chat ON chat.key = title_words.rowid
    WHERE title_words MATCH ? ORDER BY chat.changed DESC LIMIT ?"""
_HITS = "SELECT rowid FROM turn_words WHERE turn_words MATCH ? ORDER BY rowid DESC LIMIT ?"
_HIT = f"SELECT {_SUMMARY}, turn.said FROM turn JOIN chat ON chat.key = turn.chat WHERE turn.key = ?"
_TURN = "SELECT turn.key FROM turn JOIN chat ON chat.key = turn.chat WHERE turn.id = ? AND chat.owner = ?"
_FILE = """SELECT file.id, file.name, file.kind, length(file.data), file.tokens, file.data
    FROM file JOIN chat ON chat.key = file.chat WHERE file.id = ? AND chat.owner = ?"""
