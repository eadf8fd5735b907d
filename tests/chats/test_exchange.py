"""Exported files from anybody: what is wrong is refused before any of it is kept; how much an owner may keep."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.chats.test_store import OTHER, asked
from together.chats import rows
from together.chats.bounds import MOST_TURNS
from together.chats.exchange import FORMAT, copies_in, fitting, json_of, size_of, size_of_file
from together.chats.records import MOST_NAME, MOST_TEXT, ChatSettings, ChatSummary, Conversation, KeptFile, Said, Turn
from together.chats.store import ChatStore
from together.errors import BadRequest

ME = "local"
JSON = dict[str, Any]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChatStore]:
    opened = ChatStore(tmp_path / "chats.db")
    yield opened
    opened.close()


def chat(title: str = "title", settings: JSON | None = None, **changes: object) -> JSON:
    turn = {"id": "a", "parent": "", "role": "user", "state": "done", "created": 1.0, "said": {"text": "hi"}, **changes}
    summary = {"id": "x", "title": title, "pinned": False, "created": 1.0, "changed": 1.0}
    return {"conversation": {"summary": summary, "settings": settings or {}, "turns": [turn], "leaf": "a"}}


def export(*chats: JSON) -> bytes:
    return json.dumps({"format": FORMAT, "chats": chats}).encode()


def with_file(data: bytes, kind: str, **more: object) -> JSON:
    file = {"id": "f", "name": "p\r\nq.svg", "kind": kind, "size": 1, **more}
    made = chat(said={"text": "hi", "files": ["f"]})
    return {**made, "files": [{"file": file, "data": b64encode(data).decode()}]}


def keep_export(store: ChatStore, owner: str, data: bytes) -> list[ChatSummary]:
    return [made.summary for made in store.put(owner, copies_in(data))]


FIGURES = {"prompt_tokens": 1, "tokens": 1, "tokens_per_s": float("nan")}


@pytest.mark.parametrize(
    "wrong",
    [
        chat(created=float("nan")),
        chat(created=float("inf")),
        chat(said={"text": "hi", "thought": float("-inf")}),
        chat(said={"text": "hi", "figures": FIGURES}),
        chat(said={"text": "x" * (MOST_TEXT + 1)}),
        chat(said={"text": "hi", "reasoning": "x" * (MOST_TEXT + 1)}),
        chat(said={"text": "hi", "note": "x" * 10_001}),
        chat(said={"text": "hi", "model": "x" * 201}),
        chat(said={"text": "hi", "files": ["f"] * 33}),
        chat(parent="nowhere"),
        with_file(b"\x00\x01\x02", "image/png"),
        with_file(b"x" * (2**21 + 1), "text/plain"),
        *(
            chat(settings={name: value})
            for name, value in (
                ("seed", -1),
                ("seed", 2**63),
                ("temperature", -5.0),
                ("temperature", float("nan")),
                ("top_p", 0.0),
                ("top_k", 2**40),
                ("repetition_penalty", float("inf")),
                ("max_tokens", 0),
                ("stop", [""]),
                ("system", "x" * (MOST_TEXT + 1)),
                ("model", "x" * 201),
            )
        ),
    ],
)
def test_one_wrong_conversation_of_an_import_keeps_none(store: ChatStore, wrong: JSON) -> None:
    with pytest.raises(BadRequest, match=r"export|text file|neither text"):
        keep_export(store, ME, export(chat(), wrong))
    assert store.recent(ME) == ()


def test_what_an_imported_file_is_its_bytes_say(store: ChatStore) -> None:
    drawn = BytesIO()
    Image.new("RGB", (4, 4)).save(drawn, "PNG")
    script = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    given = [
        with_file(script, "image/svg+xml"),
        with_file(script, "image/x\r\nX-Evil: 1", tokens=-5),
        with_file(drawn.getvalue(), "text/html"),
    ]
    kept = [store.get(ME, made.id) for made in keep_export(store, ME, export(*given))]
    files = [file for conversation in kept for file in conversation.files]
    assert [file.kind for file in files] == ["text/plain", "text/plain", "image/png"]
    assert [(file.name, file.tokens) for file in files] == [("p q.svg", None)] * 3
    assert files[0].size == len(script)
    assert kept[0].turns[0].said.files == (files[0].id,)


def test_an_imported_title_is_one_line_of_a_users_length(store: ChatStore) -> None:
    (made,) = keep_export(store, ME, export(chat("a\r\n b" + "T" * 3_000)))
    assert made.title == ("a b" + "T" * MOST_NAME)[:MOST_NAME]


def test_the_end_of_a_long_branch_is_found_in_one_pass() -> None:
    class Counted(str):
        looks = 0

        def __eq__(self, other: object) -> bool:
            Counted.looks += 1
            return str.__eq__(self, str(other))

        __hash__ = str.__hash__

    turns = [Turn(str(n), Counted(n - 1) if n else "", "user", "done", 0.0, Said("x")) for n in range(MOST_TURNS)]
    given = Conversation(ChatSummary("x", "title", False, 0.0, 0.0), turns=tuple(turns))
    assert given.last_below("0") == str(MOST_TURNS - 1)
    assert Counted.looks <= 4 * MOST_TURNS


def test_the_room_of_an_export_is_known_before_it_is_made(store: ChatStore) -> None:
    """It holds files and texts of many kinds, so that what is exported is never too large to be read again."""
    given = [chat(said={"text": '"\n' * 9_000, "reasoning": "x"}), chat(settings={"system": "中" * 9_000})]
    for made in keep_export(store, ME, export(*given, with_file(b"x" * 99_999, "text/plain"))):
        kept = store.get(ME, made.id)
        data = json_of([(kept, [store.file(ME, file.id) for file in kept.files])])
        size = size_of(kept) + sum(map(size_of_file, kept.files))
        assert len(data) <= size <= 1.2 * len(data) + 2000


def test_what_an_export_has_no_room_for_is_counted(store: ChatStore) -> None:
    """Of one conversation the largest files; texts are never cut."""
    (made,) = keep_export(store, ME, export(with_file(b"x" * 50_000, "text/plain")))
    store.add_file(ME, made.id, KeptFile("small", "b", "text/plain", 3), b"abc")
    kept = store.get(ME, made.id)
    (fit,) = fitting(kept, 20_000)
    assert fit.id == "small"
    data = json_of([(kept, [store.file(ME, fit.id)])])
    assert json.loads(data)["files_left_out"] == 1
    (again,) = keep_export(store, ME, data)
    copy = store.get(ME, again.id)
    assert [file.name for file in copy.files] == ["b"]
    assert copy.turns[0].said == Said("hi")
    assert len(fitting(kept)) == 2
    with pytest.raises(BadRequest, match="export it as Markdown"):
        fitting(kept, 1000)


def test_the_files_of_an_owner_have_a_limit(store: ChatStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MOST_BYTES", 10)
    one, other = asked(store, "one"), asked(store, "of another", owner=OTHER)
    store.add_file(ME, one, KeptFile("f1", "a", "text/plain", 6), b"x" * 6)
    for order in (
        lambda: store.add_file(ME, asked(store, "two"), KeptFile("f2", "b", "text/plain", 5), b"x" * 5),
        lambda: store.put(ME, [(store.get(ME, one), [store.file(ME, "f1")])]),
    ):
        with pytest.raises(BadRequest, match="delete conversations with files first"):
            order()
    store.add_file(OTHER, other, KeptFile("f3", "c", "text/plain", 10), b"x" * 10)


def test_a_copy_of_a_new_conversation_gets_its_title_from_its_first_question(store: ChatStore) -> None:
    (copy,) = store.put(ME, [(store.create(ME, ChatSettings()), [])])
    store.add(ME, copy.summary.id, "", "user", Said("where do I sleep?"))
    assert store.get(ME, copy.summary.id).summary.title == "where do I sleep?"
