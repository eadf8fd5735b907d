"""Chat in a terminal: one answer or a conversation, through the running app's API. Knows no model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from together.desktop.client import RunningApp
from together.errors import TogetherError

INTERRUPTED = 130  # exit code after Ctrl-C, as shells expect it


@dataclass(slots=True)
class Talk:
    """A conversation so far. `options` are fields of the request body, those given only."""

    app: RunningApp
    options: dict[str, object]
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def ask(self, question: str) -> bool:
        """Print the answer as it comes, and remember both. False: Ctrl-C stopped it."""
        self.turns.append({"role": "user", "content": question})
        system = [{"role": "system", "content": self.system}] if self.system else []
        said: list[str] = []
        pieces = self.app.chat({**self.options, "messages": system + self.turns})
        try:
            for piece in pieces:
                said.append(piece)
                _write(piece)
        except KeyboardInterrupt:
            _write("\n(stopped)")
            return False
        except TogetherError:
            self.turns.pop()  # as if it was not asked: it can be asked again
            raise
        finally:
            _close(pieces)
            if said:
                _write("\n")
        self.turns.append({"role": "assistant", "content": "".join(said)})
        return True


def talk_once(talk: Talk, questions: tuple[str, ...]) -> int:
    """Each question in a conversation of its own. The exit code."""
    for question in questions:
        if len(questions) > 1:
            _write(f"> {question}\n")
        talk.turns.clear()
        if not talk.ask(question):
            return INTERRUPTED
    return 0


def talk_on(talk: Talk) -> int:
    """A conversation until the input ends; Ctrl-C stops an answer, and at the prompt (or twice) the conversation."""
    for question in _questions():
        try:
            if not talk.ask(question):
                talk.turns.pop()
        except TogetherError as error:
            print(f"together: {error}", file=sys.stderr)
    return 0


def _questions() -> Iterator[str]:
    """Lines a person types, or lines of a pipe, without empty ones."""
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


def _close(pieces: Iterator[str]) -> None:
    close = getattr(pieces, "close", None)
    if close is not None:
        close()


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
