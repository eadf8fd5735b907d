"""Numbers as a person reads them. Knows no plan."""

from __future__ import annotations

from together.types import LayerRange


def size_text(size: float) -> str:
    """Bytes in the unit that fits: from 50 MB on in GB, with one decimal."""
    if size >= 5e7:
        return f"{size / 1e9:.1f} GB"
    if size >= 5e4:
        return f"{size / 1e6:.1f} MB"
    return f"{size:g} bytes"


def ms_text(ms: float) -> str:
    """Milliseconds with at least two digits that mean something."""
    return f"{ms:.1f} ms" if ms >= 1 else f"{ms:.2g} ms"


def layers_text(layers: LayerRange) -> str:
    """First and last layer, both included: how a person counts them."""
    return f"{layers.start}–{layers.stop - 1}"


def count_text(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def names_text(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
