"""Buttons that load something that the view speaks of: the last plan, a better split, the model that failed.

Knows controls only by the values they take; when a button is there to be pressed is for `page.js`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from together.errors import TogetherError
from together.head.head import Head
from webui.answers import notice

logger = logging.getLogger(__name__)


class Offers:
    """Handlers of those buttons, bound to one head. Each answers with the notice: why it failed, or nothing."""

    def __init__(self, head: Head) -> None:
        self._head = head

    async def load_again(self) -> str:
        """What was asked for and failed."""
        return await _tried(self._head.load_again)

    async def load_last(self) -> str:
        """What was applied last, also before a restart."""
        return await _tried(self._head.load_last)

    async def rebalance(self) -> str:
        """The split that the view advises."""
        return await _tried(self._head.rebalance)


async def _tried(order: Callable[[], Awaitable[None]]) -> str:
    try:
        await order()
    except TogetherError as error:
        return notice(str(error))
    except Exception:  # the edge of the page: the person gets a sentence, the log the traceback
        logger.exception("an order from the page failed")
        return notice("something went wrong inside together; its log says what")
    return ""
