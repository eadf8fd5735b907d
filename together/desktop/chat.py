"""One answer or a conversation in a terminal, through the running app's API."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.text import Text

from together.desktop.client import ChatDelta, RunningApp
from together.desktop.show import print_aside, printable
from together.errors import TogetherError
from together.models.generation import ANSWER_LIMIT
from together.requests import FinishReason, PromptProgress, Usage, cut_short
from together.sentences import NOTHING, Sentence, say

INTERRUPTED = 130  # exit code after Ctrl-C, as shells expect it


@dataclass(slots=True)
class Talk:
    """A conversation that nobody keeps. `options` are fields of the request body; `limit` is in tokens, -1 for none."""

    app: RunningApp
    options: dict[str, object]
    system: str | None = None
    limit: int = ANSWER_LIMIT
    turns: list[dict[str, str]] = field(default_factory=list)

    def ask(self, question: str, longer: Sentence) -> bool:
        """Print the answer as it comes, and remember both. False: Ctrl-C stopped it.

        One that was cut off is followed by a line about that; `longer` says how to get past the limit.
        """
        self.turns.append({"role": "user", "content": question})
        system = [{"role": "system", "content": self.system}] if self.system else []
        shown = Shown()
        try:
            with closing(self.app.chat(self._body(system + self.turns))) as pieces:
                for piece in pieces:
                    shown.add(piece)
        except KeyboardInterrupt:
            self.turns.pop()
            shown.end("stopped")
            return False
        except TogetherError:
            self.turns.pop()  # as if it was not asked: it can be asked again
            shown.end()
            raise
        self.turns.append({"role": "assistant", "content": shown.text})
        shown.end(str(cut_short(shown.finish, shown.usage, self.limit if self.limit > 0 else None, longer)))
        return True

    def _body(self, messages: list[dict[str, str]]) -> dict[str, object]:
        return {**self.options, "max_tokens": self.limit, "messages": messages}


@dataclass(slots=True)
class Shown:
    """One answer on its way to the terminal, reasoning dimmed. A pipe gets the text alone, unchanged."""

    text: str = ""
    finish: FinishReason | None = None
    usage: Usage = field(default_factory=Usage)
    terminal: bool = field(default_factory=lambda: sys.stdout.isatty())
    _thinking_since: float | None = None
    _begun: bool = False
    _waits: bool = False  # a line says what for

    def add(self, piece: ChatDelta) -> None:
        if piece.reasoning:
            self._think(piece.reasoning)
        if piece.text:
            self.text += piece.text
            self.write(piece.text)
        self.finish = piece.finish or self.finish
        self.usage = piece.usage or self.usage

    def wait(self, progress: PromptProgress) -> None:
        """A line that goes with the first word: the place in the queue, or how much of the prompt was read."""
        self._end_waiting()
        if self.terminal and (line := str(waiting_for(progress))):
            self._dim(line)
            self._waits = True

    def _end_waiting(self) -> None:
        if self._waits:
            _write("\r\x1b[2K")
            self._waits = False

    def write(self, text: str) -> None:
        self._end_waiting()
        self._end_reasoning()
        self._begun = True
        _write(printable(text) if self.terminal else text)

    def end(self, remark: str = "") -> None:
        """`remark` is a line about the answer, which is no part of it."""
        self._end_waiting()
        self._end_reasoning()
        if self._begun:
            _write("\n")
        if remark:
            print_aside(f"({remark})")

    def _think(self, reasoning: str) -> None:
        self._end_waiting()
        if self._thinking_since is None:
            self._thinking_since = time.monotonic()
            self._dim("Thinking…\n")
        self._dim(reasoning)

    def _end_reasoning(self) -> None:
        if self._thinking_since is None:
            return
        seconds, self._thinking_since = time.monotonic() - self._thinking_since, None
        self._dim(f"\n(thought for {seconds:.0f} s)\n\n")

    def _dim(self, text: str) -> None:
        if self.terminal:
            Console(highlight=False).print(Text(printable(text), style="dim"), end="", soft_wrap=True)


def waiting_for(progress: PromptProgress) -> Sentence:
    """NOTHING where there is nothing to tell."""
    if progress.place:
        return say("next_in_queue") if progress.place == 1 else say("in_queue", place=progress.place)
    return say("reads_prompt", read=progress.read, prompt=progress.prompt) if progress.prompt else NOTHING


def talk_once(talk: Talk, questions: tuple[str, ...]) -> int:
    """Ask each question in a conversation of its own; the exit code."""
    for question in questions:
        if len(questions) > 1:
            _write(f"> {question}\n")
        talk.turns.clear()
        if not talk.ask(question, say("longer_in_command", more=2 * talk.limit)):
            return INTERRUPTED
    return 0


class Asked(Protocol):
    """A conversation that can be asked."""

    def ask(self, question: str, longer: Sentence) -> bool:
        """Print the answer as it comes; False: Ctrl-C stopped it."""


def talk_on(talk: Asked, limit: int) -> None:
    """A conversation until the input ends; Ctrl-C stops an answer, or at the prompt the conversation.

    `limit` is that of an answer, in tokens.
    """
    for question in _questions():
        try:
            talk.ask(question, say("longer_in_terminal", more=2 * limit))
        except TogetherError as error:
            print_aside(f"together: {error}")


def _questions() -> Iterator[str]:
    """Lines from the terminal or a pipe, without empty ones."""
    prompt = "you> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt)
        except (EOFError, KeyboardInterrupt):
            if prompt:
                _write("\n")
            return
        if line.strip():
            yield line.strip()


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
