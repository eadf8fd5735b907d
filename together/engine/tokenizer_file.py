"""Whether a tokenizer's file may be given to the library, which makes ten times as much of it in memory."""

from __future__ import annotations

from pathlib import Path

from together.models.folder import broken, inside, read_bytes
from together.models.tables import as_utf8

FILE = "tokenizer.json"
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
        return as_utf8(data)
    except ValueError as error:
        raise broken(inside(folder, FILE), f"it is in no encoding of JSON ({error})") from error
