"""The command `score`: where its text comes from, and what it prints."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from together.errors import BadSetting
from together.wording import MOST, cut, reason_of

STANDARD_INPUT = "-"
MOST_LETTERS = 2_000_000  # such a text fits into a request in most languages, and takes minutes
_LIKE_A_FILE = re.compile(r"\S*(?:[/\\]\S*|\.\w{2,5})")  # one word with a folder or an ending


def text_of(words: str) -> str:
    """The text to score: that of a file, of standard input (`-`), or `words` themselves.

    Raises BadSetting for a file that is not there, cannot be read or is no text, and for a text that is too long.
    """
    text = _text(words)
    if len(text) > MOST_LETTERS:
        wrong = "the text has {count:,} letters, and at most {most:,} are scored at once; give a part of it"
        raise BadSetting(wrong, count=len(text), most=MOST_LETTERS)
    return text


def _text(words: str) -> str:
    if words == STANDARD_INPUT:
        return _decoded(sys.stdin.buffer.read(), "standard input")
    if os.path.isdir(words):  # unlike a Path, it takes a text of any length
        raise BadSetting("{file} is a folder; name one of the files in it", file=words)
    if os.path.exists(words):
        try:
            return _decoded(Path(words).read_bytes(), words)
        except OSError as error:
            raise BadSetting("{file} cannot be read: {why}", file=words, why=reason_of(error)) from None
    if _LIKE_A_FILE.fullmatch(words):
        wrong = "there is no file {file}; name a file, - for standard input, or give a text of several words"
        raise BadSetting(wrong, file=cut(words, MOST))
    return words


def _decoded(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = "{source} is no text in UTF-8 (byte {byte}); save it in UTF-8"
        raise BadSetting(wrong, source=source, byte=error.start) from None


def score_lines(score: dict[str, Any], each: bool) -> Iterator[str]:
    """The app's answer for a person; `each`: every token on a line before the figures of the text."""
    for token in score["tokens"] if each else ():
        value = "" if token["logprob"] is None else f"{token['logprob']:.4f}"
        yield f"{value:>10}  {token['text']!r}"
    count, scored = len(score["tokens"]), score["scored"]
    yield f"tokens: {count}" + (f"; {scored} are scored, as nothing comes before the first" if scored < count else "")
    yield f"mean log-probability: {_figure(score['mean_logprob'])}"
    yield f"perplexity: {_figure(score['perplexity'])}"
    if score["windows"] > 1:
        yield f"windows: {score['windows']} of {score['window']} tokens, {score['stride']} apart"


def _figure(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4f}"
