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
    response: tuple[str, str] = ("", "")  # around the text that follows thoughts

    @property
    def both(self) -> tuple[str, str]:
        return self.opening, self.closing


THINK = ThinkTags()
RESPONSE = ("<response>", "</response>")  # Granite 3.3 is asked for both, side by side
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
    response = RESPONSE if "".join(RESPONSE) in template else ("", "")
    return ThinkTags(break_first=f"\\n{THINK.opening}" in template, response=response)


_SWITCHES = ("enable_thinking", "thinking")  # what templates call it: Qwen's and GLM's, DeepSeek's and Granite's


def thinking_switch(on: bool | None) -> dict[str, object]:
    """What tells a chat template whether the model is to think; None leaves it to the template."""
    return {} if on is None else dict.fromkeys(_SWITCHES, on)


class Phase(Enum):
    """How far an answer is."""

    START = auto()  # only spaces, or the beginning of the opening tag
    REASONING = auto()
    BETWEEN = auto()  # after the closing tag, only spaces, or the beginning of what is around a response
    RESPONSE = auto()  # within it
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
        self._responded = False  # alike, of a response between tags
        self._spaced = False  # spaces after the response are text, too, if more of it follows
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
        return "", held.lstrip() if self._phase is Phase.BETWEEN else held

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
        opening = "" if self._responded else self._tags.response[0]
        if self._phase is Phase.BETWEEN:
            begun = self._held.lstrip()
            self._held = self._held if self._spaced else begun
            if opening and begun.startswith(opening):
                self._held = begun.removeprefix(opening)
                self._phase = Phase.RESPONSE
            elif begun and not opening.startswith(begun):
                self._phase = Phase.ANSWER
        if self._phase is Phase.RESPONSE:
            return self._take_response()
        if self._phase is not Phase.ANSWER:
            return ""
        text, self._held = self._held, ""
        return text

    def _take_response(self) -> str:
        """Text up to its closing tag, without the spaces around it; what follows the tag is text, too.

        Then the spaces on both sides of the tag stand between them.
        """
        if not self._responded:
            self._held = self._held.lstrip()
        text, closed, rest = self._held.partition(self._tags.response[1])
        if closed:
            self._phase = Phase.BETWEEN
        else:
            text = text[: len(text) - possible_beginning(text, self._tags.response[1:])]
        whole, text = text, text.rstrip()
        self._spaced = self._spaced or bool(text)
        if closed and self._spaced:
            rest = whole[len(text) :] + rest
        self._held = rest if closed else self._held[len(text) :]
        self._responded = bool(self._responded or closed or text)
        return text + self._take_text() if closed else text


def possible_beginning(text: str, words: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of `words` and is not all of it."""
    longest = min(max(map(len, words), default=1) - 1, len(text))
    for length in range(longest, 0, -1):
        if any(word.startswith(text[-length:]) for word in words):
            return length
    return 0
