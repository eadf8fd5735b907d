"""Messages that are one turn of a conversation, though an API brings them one by one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from together.requests import Message

BETWEEN = "\n\n"  # texts of one turn


def one_turn_each(messages: Iterable[Message], roles: Collection[str]) -> Iterator[Message]:
    """The same, but that neighbours of one of these roles are one message: many templates ask for that."""
    turn: Message | None = None
    for message in messages:
        if turn is not None and turn.role == message.role and message.role in roles:
            turn = _merged(turn, message)
            continue
        if turn is not None:
            yield turn
        turn = message
    if turn is not None:
        yield turn


def _merged(first: Message, second: Message) -> Message:
    gap = BETWEEN if first.content and second.content else ""
    at = len(first.content) + len(gap)
    return replace(
        first,
        content=first.content + gap + second.content,
        reasoning=first.reasoning + second.reasoning,
        tool_calls=(*first.tool_calls, *second.tool_calls),
        pictures=(*first.pictures, *(replace(each, at=each.at + at) for each in second.pictures)),
    )
