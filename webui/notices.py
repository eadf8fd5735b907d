"""What the page says of an order that failed: a sentence, and never one that its header has already."""

from __future__ import annotations

import html
import logging
from collections.abc import Awaitable, Callable
from functools import wraps

from together.errors import TogetherError
from together.head.head import Head

logger = logging.getLogger(__name__)

INSIDE = "something went wrong inside together; its log says what"


def tried(head: Head, order: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[str]]:
    """A handler that gives `order` to the head and answers with the notice: why it failed, or nothing.

    Nor is anything said twice: while no model answers, the header has the reason.
    """

    @wraps(order)
    async def handler() -> str:
        try:
            await order()
        except Exception as error:
            return "" if in_header(head, error) else notice(sentence_of(error))
        return ""

    return handler


def in_header(head: Head, error: Exception) -> bool:
    """Whether the page says this error already, at its top, because nothing serves now."""
    return isinstance(error, TogetherError) and error.sentence == head.view().serving.sentence


def sentence_of(error: Exception) -> str:
    """At the edge of the page: the user gets a sentence; of an error that is not ours the log gets the traceback."""
    if isinstance(error, TogetherError):
        return str(error)
    logger.error("an event of the page failed", exc_info=error)
    return INSIDE


def notice(sentence: str) -> str:
    """A sentence as HTML: it may hold names from other machines, so nothing in it is markup."""
    return f'<div class="notice" role="alert">{html.escape(sentence)}</div>'
