"""What the chat's buttons do: ask, retry, stop, clear.

Closing a generator here closes the head's answer: that is how Stop, and a closed tab, really stop.
"""

from __future__ import annotations

import html
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

from together.errors import BadRequest, NotServing, TogetherError
from together.head.head import Head
from together.head.service import Service
from together.requests import AnswerChunk, Owner
from together.types import Sampling
from webui import gr
from webui.conversation import (
    Knobs,
    Turns,
    is_thought,
    measured,
    names_in,
    picture,
    pictures_of,
    text_of,
    thought,
    turn,
    up_to_question,
)

logger = logging.getLogger(__name__)

REDRAW = 0.03  # seconds between two updates of a growing answer
INSIDE = "something went wrong inside together; its log says what"
THINKING, THOUGHT = "Thinking…", "Thought for"  # and then the seconds

# new values of: question, chat, notice, send, stop
Update = tuple[Any, Any, Any, Any, Any]
Updates = AsyncGenerator[Update, None]


class Answers:
    """Handlers of the chat's events, bound to one head."""

    def __init__(self, head: Head) -> None:
        self._head = head

    async def ask(self, owner: Owner, question: str, attached: str, turns: Turns, *knobs: Any) -> Updates:
        """Ask what stands in the input box, with the pictures beside it, whose names are `attached`."""
        try:
            shown = [picture(name) for name in names_in(attached)]
        except BadRequest as error:
            yield _update(notice="")  # the same notice twice would not be drawn again
            yield _update(notice=notice_of(error, attached.split()))
            return
        asked = [*turns, turn("user", question.strip(), *shown)] if question.strip() or shown else []
        async with aclosing(self._answer(owner, asked, Knobs(*knobs))) as updates:
            async for update in updates:
                yield update

    async def example(self, owner: Owner, turns: Turns, event: gr.SelectData, *knobs: Any) -> Updates:
        """Ask one of the preset questions."""
        async with aclosing(self.ask(owner, str(event.value["text"]), "", turns, *knobs)) as updates:
            async for update in updates:
                yield update

    async def again(self, owner: Owner, turns: Turns, *knobs: Any) -> Updates:
        """Answer the last question once more."""
        async with aclosing(self._answer(owner, up_to_question(turns), Knobs(*knobs))) as updates:
            async for update in updates:
                yield update

    def stop(self, turns: Turns) -> tuple[Any, Any, Any]:
        """Buttons back to rest; the event it cancels closes the answer. A chat that was cleared meanwhile stays so:

        it comes as none at all, and a last part of the answer may have brought it back since.
        """
        rest = stopped(turns)
        return (gr.skip() if rest is turns and turns else rest, *_buttons(busy=False))

    def clear(self) -> Update:
        return _update(question="", chat=[], notice="")

    async def _answer(self, owner: Owner, asked: Turns, knobs: Knobs) -> Updates:
        """Nothing changes where nothing is asked. The answer is redrawn no more often than REDRAW says."""
        if not asked:
            yield _update()
            return
        yield _update(question="", chat=[*asked, turn("assistant", "…")], notice="", busy=True)
        said, drawn, held = AnswerDelta(), 0.0, self._head.attachments
        try:
            said.limit = knobs.request(asked, Sampling(), partial(held.data, owner)).max_tokens
            async with aclosing(self._chunks(owner, asked, knobs)) as chunks:
                async for chunk in chunks:
                    said.add(chunk)
                    if time.monotonic() - drawn >= REDRAW:
                        yield _update(chat=[*asked, *said.turns()], busy=True)
                        drawn = time.monotonic()
        except Exception as error:
            names = [name for name in pictures_of(asked[-1]) if held.find(owner, name)]
            yield _failed(asked, said, notice(sentence_of(error)) if said.text else notice_of(error, names))
            return
        yield _update(chat=[*asked, *said.turns(ended=True)])

    def _chunks(self, owner: Owner, asked: Turns, knobs: Knobs) -> AsyncGenerator[AnswerChunk, None]:
        """Of the model that was chosen; one that has gone meanwhile comes back where requests load models."""
        head, name = self._head, knobs.model or ""
        files = partial(head.attachments.data, owner)

        def answer(service: Service) -> AsyncGenerator[AnswerChunk, None]:
            return head.chat(knobs.request(asked, service.opened.defaults.sampling, files, owner), service.name)

        if name and head.demands.on:
            return head.on_demand(name, answer)
        return answer(head.ready(name))


@dataclass(slots=True)
class AnswerDelta:
    """An answer so far: what was thought, and for how long, then what is said."""

    limit: int | None = None  # tokens; None: up to the context
    text: str = ""
    reasoning: str = ""
    last: AnswerChunk = field(default_factory=lambda: AnswerChunk(""))
    _since: float = 0.0  # the first thought, on the monotonic clock
    _until: float = 0.0  # the first letter of the text

    def add(self, chunk: AnswerChunk) -> None:
        now = time.monotonic()
        if chunk.reasoning and not self.reasoning:
            self._since = now
        if chunk.text and not self.text:
            self._until = now
        self.text += chunk.text
        self.reasoning += chunk.reasoning
        self.last = chunk

    def turns(self, ended: bool = False) -> Turns:
        """As the chat shows it; the measurements when it has ended."""
        line = measured(self.last, self.limit) if ended else ""
        answer = turn("assistant", self.text or ("" if ended else "…"), *([line] if line else []))
        if not self.reasoning:
            return [answer]
        seconds = (self._until or time.monotonic()) - self._since
        title = f"{THOUGHT} {seconds:.0f} s" if self.text or ended else f"{THINKING} {seconds:.0f} s"
        return [thought(self.reasoning, title), *([answer] if self.text or ended else [])]


def _failed(asked: Turns, said: AnswerDelta, notice: str) -> Update:
    """Half an answer stays; without any, the question goes back into its box, to be sent again with its pictures."""
    if said.text:
        return _update(chat=[*asked, *stopped(said.turns())], notice=notice)
    return _update(question=text_of(asked[-1]), chat=asked[:-1], notice=notice)


def stopped(turns: Turns) -> Turns:
    """Nobody thinks any more, whatever the last title says."""
    if not turns or not is_thought(turns[-1]):
        return turns
    title = str(turns[-1]["metadata"]["title"])
    if not title.startswith(THINKING):  # it was stopped already
        return turns
    return [*turns[:-1], thought(text_of(turns[-1]), f"{title.replace(THINKING, THOUGHT)}, stopped")]


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


def notice_of(error: Exception, pictures: Sequence[str] = ()) -> str:
    """Why there is no answer. Where no model serves the header says why, and the notice goes when one does.

    `pictures`: the names of those that attach.js puts beside the question again.
    """
    if isinstance(error, NotServing):
        text = "the question was not answered: no model answers now, for the reason at the top"
        return notice(text, "until-ready", pictures)
    return notice(sentence_of(error), pictures=pictures)


def sentence_of(error: Exception) -> str:
    """At the edge of the page: the user gets a sentence; of an error that is not ours the log gets the traceback."""
    if isinstance(error, TogetherError):
        return str(error)
    logger.error("an event of the page failed", exc_info=error)
    return INSIDE


def notice(sentence: str, until: str = "", pictures: Sequence[str] = ()) -> str:
    """A sentence as HTML: it may hold names from other machines, so nothing in it is markup. `until`: a class."""
    names = f' data-pictures="{html.escape(" ".join(pictures))}"' if pictures else ""
    return f'<div class="notice {until}" role="alert"{names}>{html.escape(sentence)}</div>'


def _update(question: Any = None, chat: Any = None, notice: Any = None, busy: bool = False) -> Update:
    question, chat, notice = (gr.skip() if value is None else value for value in (question, chat, notice))
    return (question, chat, notice, *_buttons(busy))


def _buttons(busy: bool) -> tuple[Any, Any]:
    return gr.update(visible=not busy), gr.update(visible=busy)
