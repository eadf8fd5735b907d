"""Parts what a model thought from what it answers: `<think>…</think>` at the beginning. Knows text only, no tokens."""

from __future__ import annotations

from enum import Enum, auto

OPEN, CLOSE = "<think>", "</think>"


class _Place(Enum):
    START = auto()  # nothing but spaces, perhaps the beginning of the tag
    THINKING = auto()
    BETWEEN = auto()  # after the end of the thoughts, before the answer's first letter
    ANSWER = auto()


class ThinkSplitter:
    """Takes text in any pieces; gives (thought, answer) without the tags and the spaces around them.

    Only thoughts at the very beginning count: later on the tag may be what the answer talks about. What might be a part
    of a tag, and spaces that might be the last of the thoughts, are held back until they are known not to be.
    """

    def __init__(self, opened: bool = False) -> None:
        """`opened`: the prompt has the opening tag already; should the model say it again, that is no thought."""
        self._opened = opened
        self._place = _Place.START
        self._begun = False  # a letter of the thoughts was given
        self._held = ""

    @property
    def thinking(self) -> bool:
        """Whether what comes next belongs to the thoughts, as far as is known."""
        return self._place is _Place.THINKING or (self._opened and self._place is _Place.START)

    @property
    def held(self) -> int:
        """Letters held back."""
        return len(self._held)

    def push(self, text: str) -> tuple[str, str]:
        """What is certain now."""
        self._held += text
        if self._place is _Place.START:
            self._leave_start()
        thought = self._take_thought() if self._place is _Place.THINKING else ""
        return thought, self._take_answer()

    def flush(self) -> tuple[str, str]:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        if self.thinking:
            return held.rstrip() if self._begun else held.strip(), ""
        return "", "" if self._place is _Place.BETWEEN else held

    def _leave_start(self) -> None:
        begun = self._held.lstrip()
        if begun.startswith(OPEN):
            self._held = begun.removeprefix(OPEN)
            self._place = _Place.THINKING
        elif not OPEN.startswith(begun):
            self._place = _Place.THINKING if self._opened else _Place.ANSWER

    def _take_thought(self) -> str:
        end = self._held.find(CLOSE)
        if end >= 0:
            thought, self._held = self._held[:end].rstrip(), self._held[end + len(CLOSE) :]
            self._place = _Place.BETWEEN
        else:
            certain = len(self._held) - _possible_beginning(self._held)
            certain = len(self._held[:certain].rstrip())
            thought, self._held = self._held[:certain], self._held[certain:]
        if not self._begun:
            thought = thought.lstrip()
            self._begun = bool(thought)
        return thought

    def _take_answer(self) -> str:
        if self._place is _Place.BETWEEN:
            self._held = self._held.lstrip()
            if self._held:
                self._place = _Place.ANSWER
        if self._place is not _Place.ANSWER:
            return ""
        answer, self._held = self._held, ""
        return answer


def _possible_beginning(text: str) -> int:
    """Length of the end of `text` that may be the beginning of the closing tag."""
    for length in range(min(len(CLOSE) - 1, len(text)), 0, -1):
        if text.endswith(CLOSE[:length]):
            return length
    return 0
