"""One answer, a conversation, or the menu in a terminal, through the running app's API."""

from __future__ import annotations

import sys
import time
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from together.desktop.client import ChatDelta, RunningApp
from together.desktop.show import load_last_and_show, print_aside, print_line, printable, show_status
from together.errors import TogetherError

INTERRUPTED = 130  # exit code after Ctrl-C, as shells expect it


@dataclass(slots=True)
class Talk:
    """A conversation so far. `options` are fields of the request body."""

    app: RunningApp
    options: dict[str, object]
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def ask(self, question: str) -> bool:
        """Print the answer as it comes, and remember both. False: Ctrl-C stopped it."""
        self.turns.append({"role": "user", "content": question})
        system = [{"role": "system", "content": self.system}] if self.system else []
        shown = Shown()
        try:
            with closing(self.app.chat({**self.options, "messages": system + self.turns})) as pieces:
                for piece in pieces:
                    shown.add(piece)
        except KeyboardInterrupt:
            shown.write("\n(stopped)")
            return False
        except TogetherError:
            self.turns.pop()  # as if it was not asked: it can be asked again
            raise
        finally:
            shown.end()
        self.turns.append({"role": "assistant", "content": shown.text})
        return True


@dataclass(slots=True)
class Shown:
    """One answer on its way to the terminal, reasoning dimmed. A pipe gets the text alone, unchanged."""

    text: str = ""
    terminal: bool = field(default_factory=lambda: sys.stdout.isatty())
    _thinking_since: float | None = None
    _begun: bool = False

    def add(self, piece: ChatDelta) -> None:
        if piece.reasoning:
            self._think(piece.reasoning)
        if piece.text:
            self.text += piece.text
            self.write(piece.text)

    def write(self, text: str) -> None:
        self._end_reasoning()
        self._begun = True
        _write(printable(text) if self.terminal else text)

    def end(self) -> None:
        self._end_reasoning()
        if self._begun:
            _write("\n")

    def _think(self, reasoning: str) -> None:
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


def talk_once(talk: Talk, questions: tuple[str, ...]) -> int:
    """Ask each question in a conversation of its own; the exit code."""
    for question in questions:
        if len(questions) > 1:
            _write(f"> {question}\n")
        talk.turns.clear()
        if not talk.ask(question):
            return INTERRUPTED
    return 0


def talk_on(talk: Talk) -> None:
    """A conversation until the input ends; Ctrl-C stops an answer, or at the prompt the conversation."""
    for question in _questions():
        try:
            if not talk.ask(question):
                talk.turns.pop()
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


# --- the menu ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the menu. `last`: the menu ends after it."""

    label: str
    act: Callable[[], object]
    last: bool = False


def menu_items(app: RunningApp) -> tuple[Item, ...]:
    """What the menu offers while the app runs."""

    def open_page() -> None:
        print_line(app.url)
        webbrowser.open(app.url)

    def nodes(action: str, done: str) -> None:
        app.ask("nodes", {"action": action})
        print_line(done)

    return (
        Item("Open the page", open_page),
        Item("Chat here", lambda: talk_on(Talk(app, {}))),
        Item("Status", lambda: show_status(app.status(), app.url, Console())),
        Item("Load the last model again", lambda: load_last_and_show(app)),
        Item("Start a node on this machine", lambda: nodes("start", "a node is starting")),
        Item("Stop a node on this machine", lambda: nodes("stop", "a node was stopped")),
        Item("Stop the app", app.stop, last=True),
        Item("Quit this menu; the app goes on", lambda: None, last=True),
    )


def run_menu(title: str, entries: tuple[Item, ...], ask: Callable[[str], str]) -> None:
    """Act until an item that is the last, the end of the input, or Ctrl-C. `ask` raises EOFError at the end."""
    print_line(title)
    while True:
        for number, item in enumerate(entries, 1):
            print_line(f"  {number}  {item.label}")
        try:
            chosen = choose(entries, ask(f"1-{len(entries)}> "))
            if chosen is None:
                print_line(f"type a number from 1 to {len(entries)}, or q to quit")
                continue
            chosen.act()
            if chosen.last:
                return
        except TogetherError as error:
            print_line(f"together: {error}")
        except (EOFError, KeyboardInterrupt):
            print_line("")
            return


def choose(entries: tuple[Item, ...], line: str) -> Item | None:
    """The item of that number, or the last for `q`."""
    text = line.strip().lower()
    if text in ("q", "quit", "exit"):
        return entries[-1]
    if text.isascii() and text.isdecimal() and 1 <= int(text) <= len(entries):
        return entries[int(text) - 1]
    return None
