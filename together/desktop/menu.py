"""The menu as data: what a person can do while the app runs. Knows no terminal: it is given lines and says lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from together.errors import TogetherError

Ask = Callable[[str], str]  # shows a prompt, returns a line; raises EOFError at the end
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the menu. `last`: the menu ends after it."""

    label: str
    act: Callable[[], None]
    last: bool = False


@dataclass(frozen=True, slots=True)
class Actions:
    """What the items do, given by whoever shows the menu."""

    open_page: Callable[[], None]
    chat: Callable[[], None]
    status: Callable[[], None]
    load_last: Callable[[], None]
    start_node: Callable[[], None]
    stop_node: Callable[[], None]
    stop_app: Callable[[], None]


def items(actions: Actions) -> tuple[Item, ...]:
    return (
        Item("Open the page", actions.open_page),
        Item("Chat here", actions.chat),
        Item("Status", actions.status),
        Item("Load the last model again", actions.load_last),
        Item("Start a node on this machine", actions.start_node),
        Item("Stop a node on this machine", actions.stop_node),
        Item("Stop the app", actions.stop_app, last=True),
        Item("Quit this menu; the app goes on", lambda: None, last=True),
    )


def run_menu(title: str, entries: tuple[Item, ...], ask: Ask, say: Say) -> None:
    """Ask and act until an item that is the last, the end of the input, or Ctrl-C."""
    say(title)
    while True:
        for number, item in enumerate(entries, 1):
            say(f"  {number}  {item.label}")
        try:
            item_chosen = choose(entries, ask(f"1-{len(entries)}> "))
        except (EOFError, KeyboardInterrupt):
            say("")
            return
        if isinstance(item_chosen, str):
            say(item_chosen)
            continue
        if not _act(item_chosen, say) or item_chosen.last:
            return


def choose(entries: tuple[Item, ...], line: str) -> Item | str:
    """The item of that number (or `q`), else a sentence that says what is possible."""
    text = line.strip().lower()
    if text in ("q", "quit", "exit"):
        return entries[-1]
    if text.isascii() and text.isdecimal() and 1 <= int(text) <= len(entries):
        return entries[int(text) - 1]
    return f"There is no {line.strip()!r} here; type a number from 1 to {len(entries)}, or q to quit."


def _act(item: Item, say: Say) -> bool:
    """False: Ctrl-C in the middle of it."""
    try:
        item.act()
    except TogetherError as error:
        say(f"together: {error}")
    except KeyboardInterrupt:
        say("")
        return False
    return True
