"""Reasoning and text, against a plain definition over the whole text, however it is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from together.text.thinking import THINK, ReasoningParser

OPEN, CLOSE = THINK.both

# Texts made of what matters: tags, their beginnings, spaces, letters.
WORDS = st.sampled_from([OPEN, CLOSE, "<", "<th", "ink>", "</", "</thin", "k>", " ", "\n", "a", "é🗼", "b c"])
TEXTS = st.lists(WORDS, max_size=12).map("".join)
CUTS = st.lists(st.integers(0, 80), max_size=12)


def parted(text: str, opened: bool) -> tuple[str, str]:
    """The definition: reasoning is at the beginning, between the tags; without a closing tag it is everything."""
    begun = text.lstrip()
    if begun.startswith(OPEN):
        begun = begun.removeprefix(OPEN)
    elif not opened:
        return "", text
    thought, _, answer = begun.partition(CLOSE)
    return thought.strip(), answer.lstrip()


def pushed(pieces: list[str], opened: bool) -> tuple[str, str]:
    splitter = ReasoningParser(opened)
    given = [*(splitter.push(piece) for piece in pieces), splitter.flush()]
    return "".join(thought for thought, _ in given), "".join(answer for _, answer in given)


@given(text=TEXTS, opened=st.booleans(), cuts=CUTS)
@settings(max_examples=500, deadline=None)
def test_reasoning_and_text_are_the_same_however_the_text_is_cut(text: str, opened: bool, cuts: list[int]) -> None:
    places = [0, *sorted(min(place, len(text)) for place in cuts), len(text)]
    pieces = [text[start:stop] for start, stop in pairwise(places)]
    assert pushed(pieces, opened) == pushed(list(text), opened) == parted(text, opened)


@pytest.mark.parametrize(
    ("text", "opened", "thought", "answer"),
    [
        ("<think>\nhm, 2+2\n</think>\n\n4", False, "hm, 2+2", "4"),
        ("hm, 2+2\n</think>\n\n4", True, "hm, 2+2", "4"),
        ("<think>again</think>x", True, "again", "x"),
        ("<think></think>4", False, "", "4"),
        ("The tag <think> begins it.", False, "", "The tag <think> begins it."),
        ("<think>never ends", False, "never ends", ""),
        ("<think>a </thin", False, "a </thin", ""),
        ("  plain", False, "", "  plain"),
        ("<thi", False, "", "<thi"),
    ],
)
def test_examples(text: str, opened: bool, thought: str, answer: str) -> None:
    assert pushed(list(text), opened) == (thought, answer)


def test_reasoning_arrives_at_once_except_what_may_be_the_tag() -> None:
    splitter = ReasoningParser()
    steps = ["<thi", "nk>", "a", " ", "b<", "/c", "</think", ">", "\n", "d"]
    assert [splitter.push(step) for step in steps] == [
        ("", ""),
        ("", ""),
        ("a", ""),
        ("", ""),
        (" b", ""),
        ("</c", ""),
        ("", ""),
        ("", ""),
        ("", ""),
        ("", "d"),
    ]


def test_it_knows_whether_it_is_thinking() -> None:
    splitter = ReasoningParser(opened=True)
    assert splitter.thinking
    splitter.push("a</think>")
    assert not splitter.thinking
    assert not ReasoningParser().thinking
