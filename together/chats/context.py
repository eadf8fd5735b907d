"""What of a conversation goes to the model: the shown turns, and the files that go with questions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from together.chats.records import ChatSettings, KeptFile, Said, Turn
from together.requests import Attached, ChatRequest, Message
from together.text.thinking import thinking_switch
from together.types import Sampling

Files = Mapping[str, tuple[KeptFile, bytes]]  # those of the turns, by id
PICTURE = "image/"  # how the media type of a picture begins
_FENCE = re.compile("^`{3,}", re.MULTILINE)


def request_of(
    branch: Sequence[Turn], settings: ChatSettings, defaults: Sampling, seed: int, files: Files
) -> ChatRequest:
    """The turns up to a question or a result as a request; `seed` is for settings without one. Raises BadRequest."""
    system = (Message("system", settings.system.strip()),) if settings.system.strip() else ()
    return ChatRequest(
        (*system, *(_message(turn, files) for turn in branch)),
        settings.sampling(defaults, seed),
        settings.limit,
        settings.stop,
        template=thinking_switch(settings.thinking),
        followed=True,
    )


_ASKED = re.compile(
    r"(?<![.\w'\"])(?:enable_thinking|thinking)\s+is\b|(?:if|not|and|or)\s+(?:enable_)?thinking(?![\w(.])"
)


def has_switch(templates: Iterable[str]) -> bool:
    """Whether one of the templates asks for the switch."""
    return any(_ASKED.search(source) for source in templates)


def _message(turn: Turn, files: Files) -> Message:
    said = turn.said
    match turn.role:
        case "user":
            return _question(said, files)
        case "assistant":
            return Message("assistant", said.text, said.reasoning, said.calls)
        case "tool":
            return Message("tool", _result(turn), tool_call_id=said.call_id)


def _result(turn: Turn) -> str:
    """What the model is told of a call, also of one that has no result."""
    said = turn.said
    match turn.state:
        case "failed":
            return f"This call failed: {said.note}"
        case "stopped":
            return "The user stopped this call; it has no result."
        case "done":
            return said.text
        case _:
            return "This call did not end; it has no result."


def _question(said: Said, files: Files) -> Message:
    """Texts of files stand before the question, each in a fence that it does not close itself."""
    texts, pictures = [], []
    for file, data in (files[name] for name in said.files):
        if file.kind.startswith(PICTURE):
            pictures.append(Attached(0, data))
        else:
            texts.append(fenced(file.name, data.decode(errors="replace")))
    return Message("user", "\n\n".join([*texts, said.text]).strip(), pictures=tuple(pictures))


def fenced(name: str, text: str) -> str:
    """A file's text under its name."""
    ticks = max((len(found) for found in _FENCE.findall(text)), default=2) + 1
    fence = "`" * ticks
    return f"{name}\n{fence}\n{text.rstrip()}\n{fence}"
