"""What is odd about a model's files: for the person who loads that model, not for everybody who looks at it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

log = logging.getLogger(__name__)
_kept: ContextVar[list[str] | None] = ContextVar("_kept", default=None)


def remark(text: str, *values: object) -> None:
    """Keep a sentence for the block of `remarks` that this runs in, also in a thread of it; without one, log it."""
    kept = _kept.get()
    if kept is None:
        log.warning(text, *values)
    elif (said := text % values) not in kept:
        kept.append(said)


@contextmanager
def remarks() -> Iterator[list[str]]:
    """What is remarked while the block runs; nothing of it is logged."""
    kept: list[str] = []
    token = _kept.set(kept)
    try:
        yield kept
    finally:
        _kept.reset(token)
