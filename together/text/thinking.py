"""Thoughts of a model before its answer: the tags around them, and how they are split off while it streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto


@dataclass(frozen=True, slots=True)
class ThinkTags:
    """What a model writes before and after its thoughts."""

    opening: str = "<think>"
    closing: str = "</think>"
    break_first: bool = False  # it was taught to write a line break before the opening tag

    @property
    def both(self) -> tuple[str, str]:
        return self.opening, self.closing


THINK = ThinkTags()
GEMMA = ThinkTags("<|channel>thought", "<channel|>")  # since Gemma 4
CHANNELS = ThinkTags("<|channel|>analysis<|message|>", "<|end|>")  # of OpenAI's harmony format; see harmony.py


def think_tags_of(template: str, has_token: Callable[[str], bool]) -> ThinkTags | None:
    """The tags of a model, by its template's source and its vocabulary; None if it shows none."""
    if "<|channel|>" in template and "<|message|>" in template:
        return CHANNELS
    if GEMMA.closing in template:
        return GEMMA
    if THINK.opening not in template and not has_token(THINK.opening):
        return None
    return ThinkTags(break_first=f"\\n{THINK.opening}" in template)


class Phase(Enum):
    """How far an answer is."""

    START = auto()  # only spaces, or the beginning of the opening tag
    REASONING = auto()
    BETWEEN = auto()  # after the closing tag, only spaces
    ANSWER = auto()


class ReasoningParser:
    """Splits text in any pieces into (reasoning, text), without the tags and the spaces around them.

    Only reasoning at the very beginning counts: later, the tag may be what the answer is about. Holds back whatever may
    belong to a tag, and spaces that may end the reasoning.
    """

    def __init__(self, opened: bool = False, tags: ThinkTags = THINK) -> None:
        """`opened`: the prompt ends with the opening tag; the model may repeat it."""
        self._opened = opened
        self._tags = tags
        self._phase = Phase.START
        self._begun = False  # a letter of the reasoning was given
        self._held = ""

    @property
    def thinking(self) -> bool:
        """Whether the next letter belongs to the reasoning, as far as known."""
        return self._phase is Phase.REASONING or (self._opened and self._phase is Phase.START)

    @property
    def held(self) -> int:
        """Letters held back."""
        return len(self._held)

    def push(self, text: str) -> tuple[str, str]:
        """What is certain now."""
        self._held += text
        if self._phase is Phase.START:
            self._leave_start()
        reasoning = self._take_reasoning() if self._phase is Phase.REASONING else ""
        return reasoning, self._take_text()

    def flush(self) -> tuple[str, str]:
        """What was held back, at the end of the answer."""
        held, self._held = self._held, ""
        if self.thinking:
            return held.rstrip() if self._begun else held.strip(), ""
        return "", "" if self._phase is Phase.BETWEEN else held

    def _leave_start(self) -> None:
        begun = self._held.lstrip()
        if begun.startswith(self._tags.opening):
            self._held = begun.removeprefix(self._tags.opening)
            self._phase = Phase.REASONING
        elif not self._tags.opening.startswith(begun):
            self._phase = Phase.REASONING if self._opened else Phase.ANSWER

    def _take_reasoning(self) -> str:
        reasoning, closed, rest = self._held.partition(self._tags.closing)
        if closed:
            self._phase = Phase.BETWEEN
        else:
            reasoning = reasoning[: len(reasoning) - possible_beginning(reasoning, (self._tags.closing,))]
        reasoning = reasoning.rstrip()
        self._held = rest if closed else self._held[len(reasoning) :]
        if not self._begun:
            reasoning = reasoning.lstrip()
            self._begun = bool(reasoning)
        return reasoning

    def _take_text(self) -> str:
        if self._phase is Phase.BETWEEN:
            self._held = self._held.lstrip()
            if self._held:
                self._phase = Phase.ANSWER
        if self._phase is not Phase.ANSWER:
            return ""
        text, self._held = self._held, ""
        return text


def possible_beginning(text: str, words: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of `words` and is not all of it."""
    longest = min(max(map(len, words), default=1) - 1, len(text))
    for length in range(longest, 0, -1):
        if any(word.startswith(text[-length:]) for word in words):
            return length
    return 0
