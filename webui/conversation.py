"""The chat as plain data: what the page shows, and what of it goes to the model.

An answer on the page has one text part, and a second with its measurements: only the first is part of the conversation.
What was thought before it is a turn of its own, which the page folds away.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from together.errors import BadRequest
from together.models.generation import ANSWER_LIMIT
from together.requests import LOCAL, AnswerChunk, Attached, ChatRequest, Message, Owner, cut_short
from together.sentences import say
from together.text.pictures import MOST_PICTURES
from together.types import Sampling

Turn = dict[str, Any]  # a message as gr.Chatbot gives and takes it
Turns = list[Turn]
Files = Callable[[str], bytes]  # a picture's file by its name; raises BadRequest
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PICTURE = re.compile(rf"!\[picture\]\(/attachments/({_NAME.pattern})\)")


def no_files(name: str) -> bytes:
    raise BadRequest("there are no pictures here")


@dataclass(frozen=True, slots=True)
class Knobs:
    """The chat's settings as their controls give them; None is an emptied field and means the default."""

    system: str | None = ""
    temperature: float | None = None
    top_k: float | None = None
    top_p: float | None = None
    max_tokens: float | None = ANSWER_LIMIT
    seed: str | None = ""
    model: str | None = ""  # which one answers, where several do

    def request(self, turns: Turns, defaults: Sampling, files: Files = no_files, owner: Owner = LOCAL) -> ChatRequest:
        """The conversation so far as a request; without a seed a fresh random one. `files` has those of pictures."""
        system = (Message("system", self.system.strip()),) if self.system and self.system.strip() else ()
        sampling = replace(
            defaults,
            temperature=defaults.temperature if self.temperature is None else float(self.temperature),
            top_k=defaults.top_k if self.top_k is None else int(self.top_k),
            top_p=defaults.top_p if self.top_p is None else float(self.top_p or 1.0),
            seed=_seed(self.seed),
        )
        messages = system + tuple(_messages(turns, files))
        return ChatRequest(messages, sampling, _limit(self.max_tokens), owner=owner)


def _messages(turns: Turns, files: Files) -> Iterator[Message]:
    """Thoughts belong to the answer after them; those that were stopped before one belong to an empty answer."""
    thoughts = ""
    for turn in turns:
        if is_thought(turn):
            thoughts = text_of(turn)
            continue
        if thoughts and turn["role"] == "user":
            yield Message("assistant", "", thoughts)
            thoughts = ""
        pictures = tuple(Attached(0, files(name)) for name in pictures_of(turn))
        yield Message(turn["role"], text_of(turn), thoughts, pictures=pictures)
        thoughts = ""


def _limit(tokens: float | None) -> int:
    if tokens is not None and tokens < 1:
        text = "Max tokens is at least 1, or empty for {usual}"
        raise BadRequest(text, param="max_tokens", usual=ANSWER_LIMIT)
    return ANSWER_LIMIT if tokens is None else int(tokens)


def _seed(text: str | None) -> int:
    if not text or not text.strip():
        return secrets.randbits(63)
    try:
        return int(text) % 2**64
    except ValueError:
        raise BadRequest("the seed is a whole number, or empty for a random one", param="seed") from None


def turn(role: str, *texts: str) -> Turn:
    # parts as dicts: a plain str would lose its indentation on the way to the browser
    return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}


def picture(name: str) -> str:
    """What shows a picture of a question, of which the chat knows the name alone."""
    return f"![picture](/attachments/{name})"


def pictures_of(turn: Turn) -> list[str]:
    """The names of a question's pictures, which come after its text."""
    parts = turn["content"][1:] if turn["role"] == "user" and isinstance(turn["content"], list) else []
    return [match[1] for part in parts if (match := _PICTURE.fullmatch(str(part.get("text", ""))))]


def names_in(attached: str) -> list[str]:
    """Of pictures that go with a question. Raises BadRequest for what is none."""
    names = attached.split()
    if len(names) > MOST_PICTURES or not all(map(_NAME.fullmatch, names)):
        raise BadRequest("a question has at most {most} pictures, each by its name", most=MOST_PICTURES)
    return names


def thought(text: str, title: str) -> Turn:
    """What a model thought, folded away under a title until a person opens it."""
    return turn("assistant", text) | {"metadata": {"title": title, "status": "done"}}


def is_thought(turn: Turn) -> bool:
    return bool((turn.get("metadata") or {}).get("title"))


def text_of(turn: Turn) -> str:
    content = turn["content"]
    return content if isinstance(content, str) else str(content[0].get("text", "")) if content else ""


def up_to_question(turns: Turns) -> Turns:
    """The turns up to the last question: what a new answer answers."""
    for index in range(len(turns) - 1, -1, -1):
        if turns[index]["role"] == "user":
            return turns[: index + 1]
    return []


def measured(last: AnswerChunk, limit: int | None) -> str:
    """The small line below an answer: tokens, tokens per second after the first, time to the first, what cut it off."""
    if last.usage is None or last.timings is None:
        return ""
    tokens, timings = last.usage.completion_tokens, last.timings
    decoding = timings.total - timings.first_token
    parts = [f"{tokens} token{'' if tokens == 1 else 's'}"]
    if tokens > 1 and decoding > 0:
        parts.append(f"{(tokens - 1) / decoding:.1f} tokens/s")
    parts.append(f"first token after {timings.first_token:.2f} s")
    short = cut_short(last.finish, last.usage, limit, say("longer_on_page"))
    return " · ".join([*parts, str(short)] if short else parts)
