"""A stranger's words in a sentence of ours: escaped, and never long. Imports nothing of ours."""

from __future__ import annotations

from reprlib import Repr

MOST = 200  # characters of one quotation
SENTENCE = 1000  # characters of what another machine or a library says as a whole

_INNER = Repr()
_INNER.maxstring = _INNER.maxother = _INNER.maxlong = 60


def quoted(value: object, most: int = MOST) -> str:
    """`value` as Python writes it, in at most `most` characters; the cost does not grow with a text's length."""
    if isinstance(value, (str, bytes)):
        text = repr(value[:most])
        whole = len(value) <= most
    else:
        text, whole = _INNER.repr(value), True
    return text if whole and len(text) <= most else f"{text[: most - 1]}…"


def cut(text: str, most: int = SENTENCE) -> str:
    """A sentence that somebody else wrote, in at most `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
