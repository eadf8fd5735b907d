"""A token's own bytes, for log-probabilities: one token may be a part of a character. Knows no model and no answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """Bytes by token id, by the kind of the tokenizer: byte-level (GPT-2's alphabet) or words with byte tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        decoders = list(_decoders(tokenizer))
        self._byte_level = any(item["type"] == "ByteLevel" for item in decoders)
        self._byte_tokens = any(item["type"] == "ByteFallback" for item in decoders)
        self._spaces = [space for item in decoders if (space := _space_of(item))]
        self._added = {index: token.content for index, token in tokenizer.get_added_tokens_decoder().items()}

    def of(self, token_id: int) -> bytes:
        """Empty for ids that the tokenizer does not know: a model's matrix may be padded."""
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


def _decoders(tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """The decoder's parts as the tokenizer's file describes them."""
    if tokenizer.decoder is not None:
        yield from _parts(json.loads(tokenizer.decoder.__getstate__()))


def _parts(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield decoder
    for part in decoder.get("decoders", ()):
        yield from _parts(part)


def _space_of(decoder: dict[str, Any]) -> str:
    """What stands for a space in the words, where the decoder says so."""
    if decoder["type"] == "Metaspace":
        return str(decoder["replacement"])
    if decoder["type"] == "Replace" and decoder["content"] == " ":
        return str(decoder["pattern"].get("String", ""))
    return ""


@lru_cache(maxsize=1)
def _alphabet() -> dict[str, bytes]:
    """GPT-2's letters for bytes: printable bytes are themselves, the others letters from 256 on.

    From `bytes_to_unicode` of openai/gpt-2, encoder.py.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): bytes((byte,)) for byte in printable}
    return letters | {chr(256 + index): bytes((byte,)) for index, byte in enumerate(others)}
