"""Texts without quotes in Gemma's notation: where they end, and what they are by their schema, however they are cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from together.requests import Tool
from together.text.parser import ToolCallParser
from together.text.tool_formats import GEMMA

INNER = {"type": "object", "properties": {"k": {"type": "string"}}, "additionalProperties": False}
PROPERTIES = {
    "zip": {"type": "string"},
    "city": {"type": "string"},
    "n": {"type": "integer"},
    "two words": {"type": ["string", "null"]},
    "o": {"anyOf": [INNER, {"type": "null"}]},
    "l": {"type": "array", "items": {"type": "string"}},
}
TOOLS = (Tool("w", "", {"type": "object", "properties": PROPERTIES}),)
CLOSED = (Tool("w", "", {**TOOLS[0].parameters, "additionalProperties": False}),)


def read(written: str, size: int = 0, tools: tuple[Tool, ...] = TOOLS) -> tuple[str, str]:
    """The arguments of one call, and the text beside it."""
    text = f"<|tool_call>call:w{written}<tool_call|>"
    parser = ToolCallParser(GEMMA, tools)
    size = size or len(text)
    parts = [*(parser.push(text[at : at + size]) for at in range(0, len(text), size)), parser.flush()]
    arguments = "".join(delta.arguments for _, deltas in parts for delta in deltas)
    return arguments, "".join(said for said, _ in parts)


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        # brackets in pairs are its own
        ("{city:a {x} b,n:1}", {"city": "a {x} b", "n": 1}),
        ("{city:f(a, n:2)[0],n:1}", {"city": "f(a, n:2)[0]", "n": 1}),
        ("{city:a [b {c] d},n:1}", {"city": "a [b {c] d}", "n": 1}),
        ("{l:[a[0], b]}", {"l": ["a[0]", "b"]}),
        # one without its other is none
        ("{city:a {x,n:1}", {"city": "a {x", "n": 1}),
        ("{city:a {b {x} c,n:1} ", {"city": "a {b {x} c", "n": 1}),
        ("{city::( a {x} b,n:1}", {"city": ":( a {x} b", "n": 1}),
        ("{city:a ] b) c,n:1}", {"city": "a ] b) c", "n": 1}),
        # a comma divides where a property follows
        ("{city:Paris, France,n:2}", {"city": "Paris, France", "n": 2}),
        ("{city:Paris, France}", {"city": "Paris, France"}),
        ("{city:Paris, France, two words : a, b}", {"city": "Paris, France", "two words": "a, b"}),
        ("{city:Paris, n, m,}", {"city": "Paris, n, m"}),
        ("{city:see a, http://x.y, more: b}", {"city": "see a, http://x.y", "more": "b"}),
        ('{city:a, b,<|"|>n<|"|>:2}', {"city": "a, b", "n": 2}),
        ("{o:{k:a, b:c},n:2}", {"o": {"k": "a, b:c"}, "n": 2}),
        # a JSON string
        ('{city:"Paris, n:1}",n:2}', {"city": "Paris, n:1}", "n": 2}),
        ('{city:"a" or "b", c,n:2}', {"city": '"a" or "b", c', "n": 2}),
        ('{city:"a,n:2}', {"city": '"a', "n": 2}),
        ('{"city":"x","n":1}', {"city": "x", "n": 1}),
        # its schema's type
        ("{zip:12345,n:12345}", {"zip": "12345", "n": 12345}),
        ("{city:true,two words:None}", {"city": "true", "two words": None}),
        ("{l:[1,null],more:[1,null]}", {"l": ["1", "null"], "more": [1, None]}),
    ],
)
def test_what_a_text_without_quotes_is(written: str, wanted: object) -> None:
    arguments, said = read(written)
    assert json.loads(arguments) == wanted
    if written.count("{") == written.count("}"):
        assert said == ""
    for size in (1, 2, 7):
        assert read(written, size) == (arguments, said)


def test_a_tool_without_other_properties_gets_none() -> None:
    written = "{city:Paris, time: now,n:2}"
    assert json.loads(read(written)[0]) == {"city": "Paris", "time": "now", "n": 2}
    assert json.loads(read(written, tools=CLOSED)[0]) == {"city": "Paris, time: now", "n": 2}


SCRAPS = st.sampled_from(
    [*'{}[]()<,:"\\ a1', "n", "city", "two words", ", n:", ',"n":', '<|"|>', "<tool_call|>", "://", "null"]
)


@given(written=st.lists(SCRAPS, max_size=14).map("".join), size=st.integers(1, 9))
@settings(max_examples=400, deadline=None)
def test_it_does_not_depend_on_how_the_text_was_cut(written: str, size: int) -> None:
    assert read("{city:" + written, size) == read("{city:" + written)


@pytest.mark.parametrize("letters", ['"', "[", "a, ", "({<tool_call|>", "[)"])
def test_long_ones_take_no_quadratic_time(letters: str) -> None:
    written = "{city:" + letters * (60_000 // len(letters)) + "}"
    assert read(written, 6) == read(written)
