"""A conversation in other forms that say the same, for templates that refuse the one that was sent.

Programs send several system messages, late ones, or two turns of one role; many templates take one system message at
the beginning, or none, and strictly alternating turns.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from together.requests import Message

BETWEEN = "\n\n"  # between texts that become one


def forms(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """The conversation as it is, then in forms that more templates take, each one once."""
    seen: list[list[Message]] = []
    others = (_merged(_systems_first(messages)), _merged(_late_as_user(messages)), _no_system(messages))
    for form in (list(messages), *others):
        if form not in seen:
            seen.append(form)
            yield form


def culprit(messages: Sequence[Message]) -> int | None:
    """Which message a template most likely refuses: calls that are no JSON object, a late system, a repeated role."""
    for index, message in enumerate(messages):
        if not all(_is_object(call.arguments) for call in message.calls):
            return index
    for index in range(1, len(messages)):
        roles = messages[index - 1].role, messages[index].role
        if roles[1] == "system" or (roles[0] == roles[1] and roles[1] != "tool"):
            return index
    return None


def _is_object(arguments: str) -> bool:
    try:
        return isinstance(json.loads(arguments or "{}"), dict)
    except (ValueError, RecursionError):
        return False


def _systems_first(messages: Sequence[Message]) -> list[Message]:
    """All system messages at the beginning are one."""
    first = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    return [*_one_system(messages[:first]), *messages[first:]]


def _late_as_user(messages: Sequence[Message]) -> list[Message]:
    """A later system message begins the next turn of the user, or is one where none follows."""
    leading = _systems_first(messages)
    done: list[Message] = []
    for index, message in enumerate(leading):
        late = message.role == "system" and index > 0
        done.append(replace(message, role="user") if late else message)
    return done


def _no_system(messages: Sequence[Message]) -> list[Message]:
    """The system's text begins the first turn of the user."""
    turns = _late_as_user(messages)
    if turns and turns[0].role == "system":
        turns = [replace(turns[0], role="user"), *turns[1:]]
    return _merged(turns)


def _one_system(systems: Sequence[Message]) -> Iterator[Message]:
    if systems:
        yield replace(systems[0], content=_joined(system.content for system in systems))


def _merged(messages: Iterable[Message]) -> list[Message]:
    """Turns of one role that follow one another are one; those of tools, and with calls, stay apart."""
    runs: list[list[Message]] = []
    for message in messages:
        before = runs[-1][-1] if runs else None
        if before is None or before.role != message.role or message.role == "tool" or before.calls or message.calls:
            runs.append([message])
        else:
            runs[-1].append(message)
    return [run[0] if len(run) == 1 else _one(run) for run in runs]


def _one(run: Sequence[Message]) -> Message:
    reasoning = _joined(message.reasoning for message in run)
    return replace(run[0], content=_joined(message.content for message in run), reasoning=reasoning)


def _joined(texts: Iterable[str]) -> str:
    return BETWEEN.join(filter(None, texts))
