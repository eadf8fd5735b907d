"""Log-probabilities of an answer's tokens, which come with the text that they made."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from together.requests import Scored, TokenLogprob
from together.text.tokenizer import TokenBytes
from together.types import Sampled


class HeldLogprobs:
    """Holds tokens' log-probabilities back until their text is shown: those of a stop string would give it away."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._bytes = token_bytes
        self._undecoded: list[TokenLogprob] = []  # no text has come out of them yet
        self._waiting: deque[tuple[TokenLogprob, int]] = deque()  # and the letters of the answer up to its end
        self._decoded = self._shown = self._given = 0  # letters

    def push(self, sampled: Sampled | None, letters: int, withheld: int) -> None:
        """Take a token, if there is a new one; of all letters so far, the last `withheld` are not shown.

        `letters` came out of the token and those before it without text.
        """
        if sampled is not None:
            assert sampled.logprob is not None, "requested, so every stage gives it"
            top = tuple(self._scored(*each) for each in sampled.top)
            self._undecoded.append(TokenLogprob(self._scored(sampled.token_id, sampled.logprob), top))
        self._decoded += letters
        self._shown = self._decoded - withheld
        if letters:
            self._decode()

    def show_all(self) -> None:
        """The answer is over, and all of its text is shown."""
        self._shown = self._decoded
        self._decode()

    def take(self) -> tuple[TokenLogprob, ...]:
        """The tokens whose text was shown since the last call."""
        taken = []
        while self._waiting and self._waiting[0][1] <= self._shown:
            token, end = self._waiting.popleft()
            taken.append(replace(token, offset=self._given))
            self._given = end
        return tuple(taken)

    def _decode(self) -> None:
        self._waiting.extend((token, self._decoded) for token in self._undecoded)
        self._undecoded.clear()

    def _scored(self, token_id: int, logprob: float) -> Scored:
        return Scored(token_id, self._bytes.of(token_id), logprob)
