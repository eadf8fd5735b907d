"""What one answer may go on with, token by token: free thoughts, then a grammar. Knows no schema and no request."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from enum import Enum, auto

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from together.text.thinking import CLOSE, OPEN

logger = logging.getLogger(__name__)

Bits = NDArray[np.uint8]  # [bytes], bit i (low bit first) is token i

MOST_GAPS = 2  # tokens of line breaks between the thoughts and the answer
_OPEN, _CLOSE = OPEN.encode(), CLOSE.encode()


class Words:
    """A vocabulary, sorted by what its tokens are to thoughts."""

    def __init__(self, data: Sequence[bytes]) -> None:
        """`data` are the tokens' bytes, empty for those that no thought has."""
        self._data = data
        self._openers = [(i, word) for i, word in enumerate(data) if _is_opener(word)]
        self.gaps = _bits((i for i, word in enumerate(data) if word in (b"\n", b"\n\n")), len(data))
        free = np.fromiter(map(bool, data), np.bool_, len(data))
        enders = [(i, word) for i, word in enumerate(data) if b">" in word]
        self._free = [_without(free, _bad_enders(enders, _CLOSE[:said])) for said in range(len(_CLOSE))]

    def of(self, token_id: int) -> bytes:
        return self._data[token_id] if token_id < len(self._data) else b""

    def opening(self, said: bytes) -> Bits:
        """What goes on with the opening tag, of which `said` is said."""
        return _bits((i for i, word in self._openers if _opens(said + word) or _begins(said + word)), len(self._data))

    def thoughts(self, said: bytes) -> Bits:
        """What thoughts that end with `said` may go on with: anything but a token that ends them and says more."""
        begun = next((length for length in range(len(_CLOSE) - 1, 0, -1) if said.endswith(_CLOSE[:length])), 0)
        return self._free[begun]


def reason_of(matcher: LLMatcher) -> str:
    """Why the library gave up; it is told not to be verbose, since this is logged and answers are not."""
    return matcher.get_error().replace("<non-verbose/>", "").strip()


class _Place(Enum):
    START = auto()  # perhaps the beginning of the opening tag, perhaps of the answer
    THINKING = auto()
    GAP = auto()  # after the thoughts, before the answer's first token
    ANSWER = auto()


class GrammarConstraint:
    """A `Constraint`: the grammar's own masks, after the thoughts of a model that thinks.

    Thoughts may be anything but special tokens; end-of-text is one, so an answer that ends has matched the grammar.
    Where the library gives up in the middle of an answer (at a limit of its own), only end-of-text is left, and
    `failure` says why: that answer is not whole.
    """

    def __init__(
        self, matcher: LLMatcher, eos: Iterable[int], size: int, words: Words | None, *, opened: bool = False
    ) -> None:
        """`size` is the vocabulary's; `words` None: there are no thoughts; `opened`: the prompt has opened them."""
        self._matcher = matcher
        self._end = _bits(eos, size)
        self._words = words
        self._place = _Place.ANSWER if words is None else _Place.THINKING if opened else _Place.START
        self._said = b""  # of the opening tag; of the thoughts their end
        self._fits = True  # what was said at the start may as well be the answer's beginning
        self._gaps = 0
        self._taken = 0  # tokens of the answer
        self._mask: bytes | None = None  # for the token after those
        self.failure = ""

    def allowed(self, answer: Sequence[int]) -> bytes:
        """As `Constraint.allowed`."""
        if self._mask is None or len(answer) != self._taken:
            try:
                self._mask = self._after(answer[self._taken :]).tobytes()
            except Exception:  # everybody else's tokens come from the same loop
                logger.exception("a grammar failed in the middle of an answer")
                self._fail("an error of its own")
                self._mask = self._end.tobytes()
            self._taken = len(answer)
        return self._mask

    def _after(self, token_ids: Sequence[int]) -> Bits:
        for token_id in token_ids:
            self._take(token_id)
        bits = self._bits()
        if not self.failure and not bits.any():
            self._fail("it allows no token at all")
        return self._end if self.failure else bits[: len(self._end)]

    def _take(self, token_id: int) -> None:
        if self._place is _Place.START:
            self._begin(token_id)
        elif self._place is _Place.THINKING:
            self._think(self._word(token_id))
        elif self._place is _Place.GAP and self._gaps < MOST_GAPS and not self._matcher.validate_tokens([token_id]):
            self._gaps += 1
        else:
            self._place = _Place.ANSWER
            if not self._matcher.consume_token(token_id):
                self._fail(reason_of(self._matcher))

    def _begin(self, token_id: int) -> None:
        """A token that may belong to the tag, to the answer, or as yet to both."""
        word = self._word(token_id)
        said = self._said + word
        self._fits = self._fits and self._matcher.try_consume_tokens([token_id]) == 1
        if word and _opens(said):
            self._place, self._said = _Place.THINKING, b""
            self._matcher.reset()
            self._think(said[len(_OPEN) :])
        elif word and _begins(said):
            self._said = said
        elif self._fits:
            self._place = _Place.ANSWER
        else:
            self._fail("the answer began as neither thoughts nor what the grammar allows")

    def _think(self, word: bytes) -> None:
        self._said += word
        if _CLOSE in self._said:
            self._place = _Place.GAP
        self._said = self._said[1 - len(_CLOSE) :]

    def _bits(self) -> Bits:
        if self._place is _Place.THINKING:
            return self._known.thoughts(self._said)
        if self._place is _Place.START:
            opening = self._known.opening(self._said)
            return _either(opening, self._grammar()) if self._fits else opening
        if self._place is _Place.GAP and self._gaps < MOST_GAPS:
            return _either(self._known.gaps, self._grammar())
        return self._grammar()

    def _grammar(self) -> Bits:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            self._fail(reason_of(self._matcher))
        return bits

    def _word(self, token_id: int) -> bytes:
        return self._known.of(token_id)

    @property
    def _known(self) -> Words:
        assert self._words is not None, "only a model that thinks is ever at its thoughts"
        return self._words

    def _fail(self, reason: str) -> None:
        self.failure = self.failure or reason
        logger.warning("a grammar was given up in the middle of an answer, which ends there: %s", self.failure)


def _opens(said: bytes) -> bool:
    """The whole opening tag; nothing but spaces may come with it in one token."""
    return said.startswith(_OPEN) and not said[len(_OPEN) :].strip()


def _begins(said: bytes) -> bool:
    return bool(said) and _OPEN.startswith(said)


def _is_opener(word: bytes) -> bool:
    """Whether it goes on with the tag from some place in it."""
    if not word or word.rstrip() not in _OPEN:  # nearly all of a vocabulary
        return False
    return any(_opens(_OPEN[:at] + word) or _begins(_OPEN[:at] + word) for at in range(len(_OPEN)))


def _bad_enders(words: Iterable[tuple[int, bytes]], said: bytes) -> list[int]:
    """Tokens that, after `said`, end the thoughts and begin an answer that no grammar has seen."""
    parted = ((i, (said + word).partition(_CLOSE)) for i, word in words)
    return [i for i, (_, tag, rest) in parted if tag and rest.strip()]


def _without(free: NDArray[np.bool_], ids: list[int]) -> Bits:
    free = free.copy()
    free[ids] = False
    return np.packbits(free, bitorder="little")


def _bits(ids: Iterable[int], size: int) -> Bits:
    flags = np.zeros(size, np.bool_)
    flags[[i for i in ids if i < size]] = True
    return np.packbits(flags, bitorder="little")


def _either(first: Bits, second: Bits) -> Bits:
    length = min(len(first), len(second))
    return first[:length] | second[:length]
