"""Whether a tokenizer's file may be given to the library, which makes ten times as much of it in memory."""

from __future__ import annotations

import json
import re
from pathlib import Path

from together.models.folder import broken, inside, read_bytes
from together.models.tables import as_utf8

FILE = "tokenizer.json"
MOST_LETTERS = 200_000  # of added words; Gemma's 6,400 have 100,000
MOST_LISTED = 4 * 2**20  # bytes of the list of added words; Gemma's has 1.2 million
_ADDED = re.compile(rb'"added_tokens"\s*:\s*\[')
# Signs of the file, and how often they may stand in it. The largest published, Gemma's, has 0.3 million keys, half a
# million lists (of merges) and 1.3 million commas.
_MOST = {b":": 700_000, b"[": 900_000, b",": 3_000_000}


def read_tokenizer_file(folder: Path) -> bytes:
    """The file in UTF-8. Raises BrokenModel where it is larger, or says more, than any tokenizer's."""
    data = read_bytes(folder, FILE)
    for sign, most in _MOST.items():
        if data.count(sign) > most:
            raise broken(inside(folder, FILE), f"it has more than {most} times {sign.decode()!r}")
    try:
        data = as_utf8(data)
        letters = _added_letters(data)
    except ValueError as error:
        raise broken(inside(folder, FILE), f"it is no tokenizer in JSON ({error})") from error
    if letters > MOST_LETTERS:
        raise broken(inside(folder, FILE), f"its added words have {letters} letters, more than {MOST_LETTERS}")
    return data


def _added_letters(data: bytes) -> int:
    """Letters of all added words: the library takes seconds for a million. Raises ValueError for too long a list."""
    found = _ADDED.search(data)
    if found is None:
        return 0
    listed = data[found.end() - 1 : found.end() + MOST_LISTED].decode("utf-8", "ignore")
    try:
        words, _ = json.JSONDecoder().raw_decode(listed)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return sum(len(str(word.get("content"))) for word in words if isinstance(word, dict))
