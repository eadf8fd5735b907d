"""JSON of large records in pieces: the same as of a library, and a loop that goes on meanwhile."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic_core import to_json

from together.chats.exchange import ChatCopy, Export, FileCopy, copies_in
from together.chats.pieces import json_of_parts, without
from together.chats.records import ChatSummary, Conversation, KeptFile, Said, Turn
from together.errors import BadRequest

LARGE = (Export, ChatCopy, FileCopy, Conversation)


def conversation(*texts: str) -> Conversation:
    turns = tuple(
        Turn(str(n), str(n - 1) if n else "", "user", "done", 0.0, Said(text)) for n, text in enumerate(texts)
    )
    files = (KeptFile("f", "a \u2028 “b”", "text/plain", 3),)
    return Conversation(ChatSummary("x", "title", False, 0.0, float("nan")), leaf="", turns=turns, files=files)


def test_parts_make_the_same_json() -> None:
    whole = Export(
        chats=(ChatCopy(conversation("中\n\x00", "", '"\\'), (FileCopy(KeptFile("f", "", "", 1), "eA=="),)),)
    )
    for value in (whole, conversation(), Export()):
        assert json.loads(json_of_parts(value, LARGE)) == json.loads(to_json(value, inf_nan_mode="null"))


@pytest.mark.parametrize(
    ("data", "rest", "parts"),
    [
        ('{"a": 1, "b": [1, {"b": [2]}, "é]"], "c": "中"}', {"a": 1, "c": "中"}, [1, {"b": [2]}, "é]"]),
        (' { "b" :[ ] } ', {}, []),
        ("{}", {}, []),
        ('{"b": 7}', {"b": 7}, []),
        ('{"b": [1], "b": [2]}', {}, [2]),
    ],
)
def test_a_list_is_taken_out_element_by_element(data: str, rest: Any, parts: list[Any]) -> None:
    found, elements = without(data.encode(), "b")
    assert (json.loads(found), [json.loads(each) for each in elements]) == (rest, parts)


@pytest.mark.parametrize(
    "data",
    ["", "[]", "{", '{"b"}', '{"b": [1 2]}', '{"b": [1', '{"b": [1,]}', '{"a": 1} x', "{7: 1}", '{"b": [' + "[" * 9999],
)
def test_what_is_no_object_is_refused(data: str) -> None:
    with pytest.raises(ValueError):  # a library's own words, or ours
        json.loads(without(data.encode(), "b")[0])
    with pytest.raises(BadRequest, match="this is no export"):
        copies_in(data.encode())


def test_text_that_is_no_utf_8_is_refused() -> None:
    with pytest.raises(BadRequest, match="this is no export"):
        copies_in(b'{"format": "together.conversations.v1", "chats": [{"conversation": {"summary": "\xff"}}]}')
