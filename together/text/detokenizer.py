"""Turns token ids into text that may be shown, and into bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.decoders import DecodeStream

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """The bytes of each token, of byte-level tokenizers (GPT-2's alphabet) and of those with byte tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        parts = list(parts_of(tokenizer.decoder))
        self._byte_level = any(item["type"] == "ByteLevel" for item in parts)
        self._byte_tokens = any(item["type"] == "ByteFallback" for item in parts)
        self._spaces = [space for item in parts if (space := _space_of(item))]
        self._added = {index: token.content for index, token in tokenizer.get_added_tokens_decoder().items()}

    def of(self, token_id: int) -> bytes:
        """Empty for ids outside the tokenizer: a model's matrix may be padded."""
        if token_id in self._added:
            return self._added[token_id].encode()
        word = self._tokenizer.id_to_token(token_id)
        if word is None:
            return b""
        if self._byte_level:
            return b"".join(_alphabet().get(letter) or letter.encode() for letter in word)
        if self._byte_tokens and (match := _BYTE.fullmatch(word)):
            return bytes.fromhex(match[1])
        for space in self._spaces:
            word = word.replace(space, " ")
        return word.encode()


def parts_of(
    component: decoders.Decoder | normalizers.Normalizer | pre_tokenizers.PreTokenizer | None,
) -> Iterator[dict[str, Any]]:
    """The single parts of a tokenizer's component, as its file describes them."""
    if component is not None:
        yield from _flat(json.loads(component.__getstate__()))


def _flat(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if part["type"] != "Sequence":
        yield part
    for inner in ("normalizers", "pretokenizers", "decoders"):
        for each in part.get(inner, ()):
            yield from _flat(each)


def _space_of(decoder: dict[str, Any]) -> str:
    """What stands for a space in the words, where the decoder says so."""
    if decoder["type"] == "Metaspace":
        return str(decoder["replacement"])
    if decoder["type"] == "Replace" and decoder["content"] == " ":
        return str(decoder["pattern"].get("String", ""))
    return ""


@lru_cache(maxsize=1)
def _alphabet() -> dict[str, bytes]:
    """GPT-2's letters for bytes, as in `bytes_to_unicode` of openai/gpt-2, encoder.py.

    Printable bytes are themselves, the others letters from 256 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): bytes((byte,)) for byte in printable}
    return letters | {chr(256 + index): bytes((byte,)) for index, byte in enumerate(others)}


class Decoder:
    """Detokenizes one answer, token by token; special tokens are skipped.

    Together the texts equal `tokenizer.decode` of all ids, even if the last character is cut off (U+FFFD).
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        """`before`: the last tokens of a prompt that the answer continues; a space between them is then kept."""
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=_whole(tokenizer, before), skip_special_tokens=True)
        self._pending: list[int] = []  # tokens since the last text

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        self._pending.append(token_id)
        try:
            text = self._stream.step(self._tokenizer, token_id)
        except Exception:  # the library raises nothing narrower; decode at once what it cannot stream
            return self._start_over()
        if text:
            self._pending.clear()
        return text or ""

    def flush(self) -> str:
        """An incomplete character at the end, as U+FFFD."""
        text = self._decode(self._pending)
        self._pending.clear()
        return text

    def _start_over(self) -> str:
        """Byte tokens that make no character invalidate the run before them, which the stream cannot take back."""
        text = self._decode(self._pending)
        self._stream = DecodeStream(ids=self._pending[-1:], skip_special_tokens=True)
        self._pending.clear()
        return text

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)


def _whole(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """`ids`, or none if they end within a character."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True) if ids else ""
    return list(ids) if text and not text.endswith("\ufffd") else []


class StopFilter:
    """Ends a text before the first stop string, and holds back whatever may become one.

    The match that ends first counts, and of several the longest, so the result does not depend on how the text was cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.matched = False
        self.withheld = 0  # letters pushed and not given out: held back, or cut off by a match

    def push(self, text: str) -> str:
        """The text that is safe to show now; empty after a match."""
        self.withheld += len(text)
        if self.matched:
            return ""
        self._held += text
        start = self._match()
        if start is not None:
            self.matched = True
            return self._show(start, rest="")
        shown = len(self._held) - possible_beginning(self._held, self._stops)
        return self._show(shown, rest=self._held[shown:])

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        return self._show(len(self._held), rest="")

    def _show(self, length: int, rest: str) -> str:
        shown, self._held = self._held[:length], rest
        self.withheld -= length
        return shown

    def _match(self) -> int | None:
        """Where the match that ends first begins."""
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        return min(found)[1] if found else None


def possible_beginning(text: str, words: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of `words` and is not all of it."""
    longest = min(max(map(len, words), default=1) - 1, len(text))
    for length in range(longest, 0, -1):
        if any(word.startswith(text[-length:]) for word in words):
            return length
    return 0
