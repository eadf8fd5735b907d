"""How few tokens a text can become, before it is tokenized: proven from the tokenizer's parts, or not known.

Tokenizing a million tokens takes seconds and 700 MB; a prompt that cannot fit is refused for the cost of its length.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

# What `str.isspace` is true of: more than what the library strips, so what is left is never too much.
SPACES = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
# The most letters that canonical composition makes one of: no letter's decomposition has more (Unicode keeps that).
COMPOSED = 4

_KEEPING = ("Prepend", "Lowercase", "NFD", "NFKD", "ByteLevel")  # normalizers that drop no letter
_COMPOSING = ("NFC", "NFKC")
_SPLITTING = ("ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "FixedLength")  # pre-tokenizers that drop none
_CHOOSING = ("Split", "Punctuation")  # those that may drop what they split at


@dataclass(frozen=True, slots=True)
class TokenBound:
    """`most` letters of a text are one token at most; None where nothing is proven."""

    most: int | None
    skips_spaces: bool  # white space may vanish, so it does not count

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TokenBound:
        """Only byte-level BPE, and BPE with all byte tokens: others drop letters they do not know, or make them one."""
        shrinks, longest = _shrinks(tokenizer), _longest(tokenizer)
        if shrinks is None or not longest or not _drops_nothing(tokenizer):
            return cls(None, skips_spaces=False)
        added = tokenizer.get_added_tokens_decoder().values()
        stripping = any(part["type"] == "Strip" for part in _normalizers(tokenizer))
        skips = stripping or any(token.lstrip or token.rstrip for token in added)
        words = [word for token in added for word in (token.content, _normalized(tokenizer, token.content))]
        return cls(shrinks * max(longest, *map(len, words), 1), skips)

    def least(self, text: str) -> int:
        """`text` becomes at least so many tokens."""
        if self.most is None:
            return 0
        spaces = sum(map(text.count, SPACES)) if self.skips_spaces else 0
        return -(-(len(text) - spaces) // self.most)


def _shrinks(tokenizer: Tokenizer) -> int | None:
    """How many letters the normalizers may make one of; None where nobody knows."""
    shrinks = 1
    for part in _normalizers(tokenizer):
        kind = part["type"]
        if kind in _COMPOSING:
            shrinks *= COMPOSED
        elif kind == "Replace":
            pattern, content = part["pattern"].get("String", ""), part["content"]
            if not pattern or not content or any(letter.isspace() for letter in content):
                return None
            shrinks *= -(-len(pattern) // len(content))
        elif kind not in (*_KEEPING, "Strip"):
            return None
    return shrinks


def _longest(tokenizer: Tokenizer) -> int:
    """Letters of the longest word; 0 where ids have gaps, so that not all were seen.

    One by one: the library's whole vocabulary at once holds every other thread up for 0.4 s.
    """
    model = tokenizer.model
    words = map(model.id_to_token, range(tokenizer.get_vocab_size(with_added_tokens=False)))
    lengths = [0 if word is None else len(word) for word in words]
    return max(lengths, default=0) if all(lengths) else 0


def _drops_nothing(tokenizer: Tokenizer) -> bool:
    """Whether every letter of the normalized text is in some token, and none of a token that takes any number."""
    model, parts = tokenizer.model, list(_pre_tokenizers(tokenizer))
    if not isinstance(model, models.BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    if not all(_keeps(part) for part in parts):
        return False
    if any(part["type"] == "ByteLevel" for part in (*parts, *_normalizers(tokenizer))):
        return _has(model, pre_tokenizers.ByteLevel.alphabet())
    return bool(model.byte_fallback) and _has(model, [f"<0x{byte:02X}>" for byte in range(256)])


def _has(model: models.BPE, words: Sequence[str]) -> bool:
    return all(model.token_to_id(word) is not None for word in words)


def _keeps(part: dict[str, Any]) -> bool:
    kind = part["type"]
    return kind in _SPLITTING or (kind in _CHOOSING and part.get("behavior") not in (None, "Removed"))


def _normalized(tokenizer: Tokenizer, word: str) -> str:
    return word if tokenizer.normalizer is None else str(tokenizer.normalizer.normalize_str(word))


def _normalizers(tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    if tokenizer.normalizer is not None:
        yield from _flat(json.loads(tokenizer.normalizer.__getstate__()), "normalizers")


def _pre_tokenizers(tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    if tokenizer.pre_tokenizer is not None:
        yield from _flat(json.loads(tokenizer.pre_tokenizer.__getstate__()), "pretokenizers")


def _flat(part: dict[str, Any], inner: str) -> Iterator[dict[str, Any]]:
    if part["type"] != "Sequence":
        yield part
    for each in part.get(inner, ()):
        yield from _flat(each, inner)
