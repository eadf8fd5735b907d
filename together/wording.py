"""Numbers, names and other programs' text in our sentences."""

from __future__ import annotations

import unicodedata
from reprlib import Repr

_UNITS = (("GB", 1e9), ("MB", 1e6))


def titled(model: str, form: str) -> str:
    """A model and its form for a person: `mine`, `mine (4 bit)`."""
    return f"{model} ({form})" if form else model


def size_text(size: float) -> str:
    """Bytes in the unit that fits: from 50 MB on in GB, with one decimal. Of nothing there is no number."""
    if size <= 0:
        return "nothing"
    if size >= 5e7:
        return f"{size / 1e9:.1f} GB"
    if size >= 5e4:
        return f"{size / 1e6:.1f} MB"
    return f"{size:g} bytes"


def exact_size_text(size: int) -> str:
    """Bytes with three digits, as `135 MB`."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} bytes"


def sizes_text(*sizes: float) -> tuple[str, ...]:
    """Bytes that a sentence compares: where they would read alike, in as many digits as show which is larger."""
    usual = tuple(size_text(size) for size in sizes)
    if len(set(usual)) == len(set(sizes)):
        return usual
    name, scale = next((unit for unit in _UNITS if max(sizes) >= unit[1] / 20), ("bytes", 1))
    if scale > 1:
        for digits in range(2, 6):
            shown = tuple(f"{size / scale:.{digits}f}" for size in sizes)
            if len(set(shown)) == len(set(sizes)):
                return tuple(f"{text} {name}" for text in shown)
    return tuple(f"{size:,.15g} bytes" for size in sizes)


def part_text(part: float, whole: float) -> str:
    """Bytes of a whole, in its unit: `8.7 of 8.8 GB`."""
    first, last = size_text(part), size_text(whole)
    unit = last.rpartition(" ")[2]
    return f"{first.removesuffix(f' {unit}')} of {last}"


def ms_text(ms: float) -> str:
    """Milliseconds with at least two digits that mean something."""
    return f"{ms:.1f} ms" if ms >= 1 else f"{ms:.2g} ms"


def times_text(*times: float) -> tuple[str, ...]:
    """Milliseconds that a sentence compares, in as many digits as show which is longer."""
    for digits in range(1, 6):
        shown = tuple(f"{ms:.{digits}f} ms" for ms in times)
        if len(set(shown)) == len(set(times)):
            break
    return shown


def count_text(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def names_text(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def cells(text: str) -> int:
    """Columns of a terminal that `text` takes: two for CJK letters and emoji, none for accents and joiners."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.category(letter) in ("Mn", "Me", "Cf") for letter in text)


def padded(text: str, width: int) -> str:
    """`text` and spaces, in that many columns of a terminal."""
    return text + " " * (width - cells(text))


def reason_of(error: Exception) -> str:
    """Why, without the number and the file that an OSError's own text has besides: the sentence names the file."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


# --- text of others ---------------------------------------------------------------------------------------------------

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
