"""The lower bound of a text's tokens is never too high, for any tokenizer; it is 0 if nothing is proven."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from tests.support.tokenizers import byte_fallback, byte_level
from together.text.vocabulary import COMPOSED, SPACES, TokenBound


def with_normalizer(normalizer: normalizers.Normalizer) -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizer
    return tokenizer


def with_added(**how: bool) -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<mask>" * 5, **how)])
    return tokenizer


PROVEN: dict[str, Callable[[], Tokenizer]] = {
    "bytes": byte_level,
    "fallback": byte_fallback,
    "nfc": lambda: with_normalizer(normalizers.NFC()),
    "nfkc and strip": lambda: with_normalizer(normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])),
    "lower": lambda: with_normalizer(normalizers.Lowercase()),
    "replace": lambda: with_normalizer(normalizers.Replace("aaa", "b")),
    "strips left": lambda: with_added(lstrip=True),
    "strips right": lambda: with_added(rstrip=True),
    "normalized": lambda: with_added(normalized=True),
}
UNPROVEN: dict[str, Callable[[], Tokenizer]] = {
    "deletes": lambda: with_normalizer(normalizers.Replace("a", "")),
    "deletes by a pattern": lambda: with_normalizer(normalizers.Replace(Regex(" +"), " ")),
    "makes spaces, which may be stripped": lambda: with_normalizer(normalizers.Replace("a", " ")),
    "accents": lambda: with_normalizer(normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])),
    "words": lambda: Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")),
    "unknown letters are dropped": lambda: Tokenizer(models.BPE({"a": 0}, [])),
    "splits and drops": lambda: dropping(),
}


def dropping() -> Tokenizer:
    tokenizer = byte_level()
    splits = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    return tokenizer


TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="a e\u0301\u0308 \u00a8\u3000\uff21<mask>\U0001d400\u1100\u1161\u11a8\n", max_size=60),
    st.lists(st.sampled_from(["<mask>" * 5, "hello world", " " * 40, "aaa", "the end"]), max_size=8).map("".join),
)


@pytest.mark.parametrize("name", PROVEN)
def test_no_text_has_fewer_tokens(name: str) -> None:
    tokenizer = PROVEN[name]()
    bound = TokenBound.of(tokenizer)
    assert bound.least("word " * 10_000) > 1000 / 4

    @given(text=TEXTS)
    @settings(max_examples=300, deadline=None)
    def check(text: str) -> None:
        assert bound.least(text) <= len(tokenizer.encode(text, add_special_tokens=False).ids)

    check()


@pytest.mark.parametrize("name", UNPROVEN)
def test_nothing_is_said_where_letters_may_vanish(name: str) -> None:
    assert TokenBound.of(UNPROVEN[name]()).least("a" * 10**6) == 0


def test_what_is_taken_for_granted_of_unicode() -> None:
    letters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    assert {letter for letter in letters if letter.isspace()} == set(SPACES)
    assert max(len(unicodedata.normalize("NFD", letter)) for letter in letters) == COMPOSED
    vanishing = [letter for letter in letters if not unicodedata.normalize("NFKC", letter).strip()]
    assert set(vanishing) == set(SPACES)
