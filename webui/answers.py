"""What the chat's buttons do: ask, retry, stop, clear, load again. Knows controls only by the values they take.

Closing a generator here closes the head's answer: that is how Stop, and a closed tab, really stop.
"""

from __future__ import annotations

import html
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import gradio as gr

from together.api.port import HeadPort
from together.errors import TogetherError
from together.requests import Piece
from webui.conversation import Knobs, Turns, measured, text_of, turn, up_to_question

logger = logging.getLogger(__name__)

REDRAW = 0.03  # seconds between two updates of a growing answer

# new values of: question, chat, notice, send, stop
Update = tuple[Any, Any, Any, Any, Any]
Updates = AsyncGenerator[Update, None]


class Answers:
    """Handlers of the chat's events, bound to one head."""

    def __init__(self, head: HeadPort) -> None:
        self._head = head

    async def ask(self, question: str, turns: Turns, *knobs: Any) -> Updates:
        """Ask what stands in the input box."""
        if not question.strip():
            yield _update()
            return
        async with aclosing(self._answer([*turns, turn("user", question.strip())], Knobs(*knobs))) as updates:
            async for update in updates:
                yield update

    async def example(self, turns: Turns, event: gr.SelectData, *knobs: Any) -> Updates:
        """Ask one of the preset questions."""
        async with aclosing(self.ask(str(event.value["text"]), turns, *knobs)) as updates:
            async for update in updates:
                yield update

    async def again(self, turns: Turns, *knobs: Any) -> Updates:
        """Answer the last question anew."""
        asked = up_to_question(turns)
        if not asked:
            yield _update()
            return
        async with aclosing(self._answer(asked, Knobs(*knobs))) as updates:
            async for update in updates:
                yield update

    def stop(self) -> tuple[Any, Any]:
        """Buttons back to rest; the event it cancels closes the answer."""
        return _buttons(busy=False)

    def clear(self) -> Update:
        return _update(question="", chat=[], notice="")

    async def load_again(self) -> str:
        """Load the same model again; the notice says why if that fails."""
        try:
            await self._head.load()
        except TogetherError as error:
            return notice(str(error))
        return ""

    async def _answer(self, asked: Turns, knobs: Knobs) -> Updates:
        yield _update(question="", chat=[*asked, turn("assistant", "…")], notice="", busy=True)
        text, last = "", Piece("")
        try:
            async with aclosing(_growing(self._head.chat(knobs.request(asked)))) as growing:
                async for text, last in growing:  # noqa: B007  # the last piece measures
                    yield _update(chat=[*asked, turn("assistant", text or "…")], busy=True)
        except TogetherError as error:
            yield _failed(asked, text, str(error))
            return
        except Exception:  # the edge of the page: the person gets a sentence, the log the traceback
            logger.exception("an answer for the page failed")
            yield _failed(asked, text, "something went wrong inside together; its log says what")
            return
        line = measured(last)
        yield _update(chat=[*asked, turn("assistant", text, *([line] if line else []))])


async def _growing(pieces: AsyncIterator[Piece]) -> AsyncGenerator[tuple[str, Piece], None]:
    """The text so far with the newest piece: not more often than worth a redraw, and always the last."""
    text, last, drawn = "", Piece(""), 0.0
    try:
        async for last in pieces:
            text += last.text
            if time.monotonic() - drawn >= REDRAW:
                yield text, last
                drawn = time.monotonic()
        yield text, last
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()


def _failed(asked: Turns, text: str, sentence: str) -> Update:
    """Half an answer stays; without any, the question goes back into its box, to be sent again."""
    if text:
        return _update(chat=[*asked, turn("assistant", text)], notice=notice(sentence))
    return _update(question=text_of(asked[-1]), chat=asked[:-1], notice=notice(sentence))


def notice(sentence: str) -> str:
    """A sentence as HTML: it may hold names from other machines, so nothing in it is markup."""
    return f'<div class="notice" role="alert">{html.escape(sentence[:1].upper() + sentence[1:])}</div>'


def _update(question: Any = None, chat: Any = None, notice: Any = None, busy: bool = False) -> Update:
    question, chat, notice = (gr.skip() if value is None else value for value in (question, chat, notice))
    return (question, chat, notice, *_buttons(busy))


def _buttons(busy: bool) -> tuple[Any, Any]:
    return gr.update(visible=not busy), gr.update(visible=busy)
