"""Calls of tools in a terminal chat: shown, asked about, and waited for until the answer goes on."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING

from together.chats.calls import call_of, results_after
from together.chats.records import Conversation, Turn
from together.desktop.show import one_line, print_aside
from together.wording import cut

if TYPE_CHECKING:
    from together.desktop.kept_chat import KeptChats

MOST_SHOWN = 300  # letters of arguments and results
_WORDS = {"y": "once", "yes": "once", "a": "always", "always": "always"}


def goes_on_with(chats: KeptChats, chat: str, answer: Turn) -> str:
    """The id of the answer after the calls of `answer`; empty where they wait for a user who is not at a terminal.

    Raises AppError or Unreachable.
    """
    told: set[str] = set()
    with closing(chats.watch(chat)) as steps:
        for step in steps:
            if not isinstance(step, Conversation) or not (calls := _calls_of(step, answer)):
                continue
            for turn in calls:
                if turn.id in told or turn.state == "writing":
                    continue
                told.add(turn.id)
                if turn.state != "asking":
                    print_aside(f"({_shown(step, turn)}: {_short(turn.said.note or turn.said.text)})")
                elif not sys.stdin.isatty():
                    print_aside(f"({_shown(step, turn)} waits for your word, on the page or in a terminal)")
                    return ""
                else:
                    chats.word(chat, turn.id, _asked(step, turn))
            if any(turn.state == "stopped" for turn in calls):
                return ""
            after = [turn for turn in step.turns if turn.parent == calls[-1].id and turn.role == "assistant"]
            if after:
                return after[-1].id
    return ""


def _calls_of(chat: Conversation, answer: Turn) -> tuple[Turn, ...]:
    first = next((turn for turn in chat.turns if turn.parent == answer.id and turn.role == "tool"), None)
    return results_after(chat, first) if first is not None else ()


def _asked(chat: Conversation, turn: Turn) -> dict[str, object]:
    shown = _shown(chat, turn)
    try:
        if not turn.said.server:
            return {"result": input(f"result of {shown}> ")}
        word = input(f"allow {shown}? yes, always or no> ").strip().lower()
    except (EOFError, KeyboardInterrupt):
        word = "no"
    return {"allow": _WORDS.get(word, "no")}


def _shown(chat: Conversation, turn: Turn) -> str:
    call = call_of(chat, turn)
    of = f" of {turn.said.server}" if turn.said.server else ""
    return f"{one_line(turn.said.tool or call.name)}{of} with {_short(call.arguments)}"


def _short(text: str) -> str:
    return cut(one_line(text), MOST_SHOWN)
