"""Turns as the page shows them: rendered once, on a thread of their own, and kept while there is room."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from together.chats.blocks import BlockSplitter
from together.chats.records import Conversation, Grown, Turn

LONGEST = 40_000  # letters that are rendered as one
ROOM = 16 * 2**20  # letters of texts and their HTML


class AnswerRenderer:
    """HTML of texts by their content. The libraries are loaded with the first text."""

    def __init__(self, room: int = ROOM) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="markup")
        self._kept: OrderedDict[str, str | None] = OrderedDict()
        self._room, self._size = room, 0

    async def html(self, text: str) -> str | None:
        """None for a text that is shown as it was written."""
        if text in self._kept:
            self._kept.move_to_end(text)
            return self._kept[text]
        made = await asyncio.get_running_loop().run_in_executor(self._thread, _to_html, text)
        if text not in self._kept:
            self._keep(text, made)
        return made

    def _keep(self, text: str, made: str | None) -> None:
        self._kept[text] = made
        self._size += len(text) + len(made or "")
        while self._size > self._room:
            old, its = self._kept.popitem(last=False)
            self._size -= len(old) + len(its or "")


def _to_html(text: str) -> str | None:
    from together.chats.markup import to_html  # its libraries take a moment, which no start should

    return to_html(text) if len(text) <= LONGEST else None


@dataclass(frozen=True, slots=True)
class RenderedBlock:
    """A finished part of an answer: its HTML, or where there is none the text as it was written."""

    html: str | None
    text: str = ""


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """What the page shows of an answer: finished blocks, and the text behind them."""

    blocks: tuple[RenderedBlock, ...] = ()
    tail: str = ""


@dataclass(slots=True)
class AnswerWatch:
    """What one watcher was shown of the answers of a conversation."""

    renderer: AnswerRenderer
    _splitters: dict[str, BlockSplitter] = field(default_factory=dict)  # of those that are being written, by turn

    async def whole(self, chat: Conversation) -> dict[str, ShownAnswer]:
        """All answers, by turn. A finished one is rendered as a whole, unless it is very long."""
        self._splitters.clear()
        return {turn.id: await self._turn(turn) for turn in chat.turns if turn.role == "assistant" and turn.said.text}

    async def _turn(self, turn: Turn) -> ShownAnswer:
        text = turn.said.text
        if turn.state == "writing":
            return await self._add(turn.id, text)
        if len(text) <= LONGEST:
            return ShownAnswer((await self._block(text),))
        splitter = BlockSplitter()
        parts = [*await _split(splitter, text), splitter.tail]
        return ShownAnswer(tuple([await self._block(part) for part in parts]))

    async def grown(self, step: Grown) -> ShownAnswer | None:
        """The blocks that became finished, with the whole tail; None where only the tail grew by the step's text."""
        shown = await self._add(step.turn, step.text)
        return shown if shown.blocks else None

    async def _add(self, turn: str, text: str) -> ShownAnswer:
        splitter = self._splitters.setdefault(turn, BlockSplitter())
        blocks = [await self._block(part) for part in await _split(splitter, text)]
        return ShownAnswer(tuple(blocks), splitter.tail)

    async def _block(self, text: str) -> RenderedBlock:
        html = await self.renderer.html(text)
        return RenderedBlock(html) if html is not None else RenderedBlock(None, text)


async def _split(splitter: BlockSplitter, text: str) -> list[str]:
    """As the splitter's `add`; a long text on a thread."""
    return splitter.add(text) if len(text) <= LONGEST else await asyncio.to_thread(splitter.add, text)
