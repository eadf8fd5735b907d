"""What full-text search sees of a text, and how it is asked.

SQLite's tokenizer takes a run of Chinese or Japanese letters for one word. Each such letter becomes a word of its own
here, and a searched word a phrase of these: so a word of one letter is found, too.
"""

from __future__ import annotations

import re
from hashlib import sha256

# Kana, CJK ideographs with their extensions and compatibility forms; Hangul has spaces between words, but its words
# take endings, so that a part of one is searched for as well.
_LETTER = re.compile(
    "([\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff])"
)
_WORD = re.compile(r"\w+")
MOST_WORDS = 12  # of a search
AROUND = 60  # letters of a hit before and after the word


def spread(text: str) -> str:
    """`text` with spaces around each letter that is a word of its own."""
    return _LETTER.sub(r" \1 ", text)


def owner_word(owner: str) -> str:
    """One word for the index that stands for `owner`."""
    return "o" + sha256(owner.encode()).hexdigest()[:24]


def query(searched: str, owner: str) -> str | None:
    """The full-text query for what a user types: all its words, the last one perhaps unfinished. None: no words."""
    phrases = [_WORD.findall(spread(word)) for word in searched.split()]
    phrases = [words for words in phrases if words][:MOST_WORDS]
    if not phrases:
        return None
    asked = [f'"{" ".join(words)}"' for words in phrases]
    if len(phrases[-1][-1]) > 1:  # nearly every text has a word that begins with a given letter
        asked[-1] += "*"
    return f"(owner : {owner_word(owner)}) AND (text : ({' AND '.join(asked)}))"


def hit(text: str, searched: str) -> str:
    """The part of `text` around the first searched word that it has."""
    folded, places = text.casefold(), []
    for word in _WORD.findall(searched.casefold()):
        if (at := folded.find(word)) >= 0:
            places.append(at)
    at = min(places, default=0)
    begin, end = max(0, at - AROUND), min(len(text), at + AROUND)
    part = " ".join(text[begin:end].split())
    return f"{'…' if begin else ''}{part}{'…' if end < len(text) else ''}"
