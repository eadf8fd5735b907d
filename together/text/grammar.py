"""Answers that match a schema: grammars become masks of tokens, by llguidance. Knows no ring, no scheduler and no HTTP.

Measured for a made-up byte-level vocabulary of 128,000 tokens: the tokenizer's tree takes 0.55 s and 80 MB once per
model, in which the library leaves Python no turn; a schema of 12 properties 3 ms; a mask 0.03 ms, 0.2 ms in one of a
hundred, 10 ms for patterns that are made to be hard.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from tokenizers import Tokenizer

from together.errors import BadRequest
from together.requests import Grammar
from together.text.constraint import GrammarConstraint, Words, reason_of
from together.text.thinking import CLOSE, OPEN

MOST_LETTERS = 2**17  # of a grammar; compiling the worst ones of that size takes a second of a worker thread
LONGEST_REASON = 300  # letters of the library's own words in an error

# At most one space after a comma or a colon: with any white space a small model may go on with it for ever. A schema
# inside a lark grammar has this as its "x-guidance".
STYLE: dict[str, str | bool] = {"whitespace_flexible": False, "item_separator": ",[ ]?", "key_separator": ":[ ]?"}


class Grammars:
    """Compiles grammars for one model's tokenizer. What belongs to the tokenizer is made at the first use."""

    def __init__(self, tokenizer: Tokenizer, eos: frozenset[int], thinks: bool) -> None:
        """`thinks`: the model may think before it answers; grammars begin after its thoughts."""
        self._tokenizer = tokenizer
        self._eos = eos
        self._thinks = thinks
        self._lock = Lock()

    async def compile(self, grammar: Grammar, vocabulary: int | None = None) -> Compiled:
        """In a thread. `vocabulary` is the width of the model's logits, where it is known.

        Raises BadRequest, naming the grammar's field, for what the library refuses and what is too large.
        """
        if len(grammar.source) > MOST_LETTERS:
            raise _refusal(grammar, f"it has {len(grammar.source)} letters, {MOST_LETTERS} are the most")
        return await asyncio.to_thread(self._compile, grammar, vocabulary)

    def _compile(self, grammar: Grammar, vocabulary: int | None) -> Compiled:
        with self._lock:  # for what is made once
            environment = self._environment
            if environment is None:
                raise _refusal(grammar, "this model names no token that ends an answer")
            words = self._words if self._thinks else None
        limits = LLParserLimits(verbose_errors=False)  # verbose ones hold the whole schema
        matcher = LLMatcher(environment, _source(grammar), log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first one is the slowest, and some faults only show here
        if matcher.is_error():
            raise _refusal(grammar, _reason(matcher))
        size = environment.vocab_size if vocabulary is None else min(vocabulary, environment.vocab_size)
        return Compiled(matcher, frozenset(environment.eos_tokens), size, words)

    @cached_property
    def _environment(self) -> LLTokenizer | None:
        """None: nothing could end an answer."""
        known = self._tokenizer.get_vocab_size()
        eos = sorted(each for each in self._eos if each < known)
        return LLTokenizer(self._tokenizer.to_str(), eos_token=eos) if eos else None

    @cached_property
    def _words(self) -> Words:
        environment = self._environment
        assert environment is not None, "without it nothing is compiled"
        added = self._tokenizer.get_added_tokens_decoder().items()
        special = {index for index, token in added if token.special and token.content not in (OPEN, CLOSE)}
        hidden = special.union(self._eos)
        ids = range(environment.vocab_size)
        return Words(tuple(b"" if i in hidden else environment.decode_bytes([i]) for i in ids))


@dataclass(frozen=True, slots=True)
class Compiled:
    """A grammar of one request; every choice starts a constraint of its own."""

    matcher: LLMatcher  # at its beginning, and it stays there
    eos: frozenset[int]
    size: int  # of the vocabulary that masks are for
    words: Words | None  # of a model that thinks

    def start(self, opening: str | None = None) -> GrammarConstraint:
        """A new answer to the prompt `opening`, which may open thoughts; None where no thoughts are parted from it.

        Copies share what the library has learned of the grammar, not where they are in it.
        """
        opening = None if opening is None else opening.rstrip()
        thinks = self.words is not None and opening is not None and not opening.endswith(CLOSE)
        opened = opening is not None and opening.endswith(OPEN)
        return GrammarConstraint(
            self.matcher.deep_copy(), self.eos, self.size, self.words if thinks else None, opened=opened
        )


def _source(grammar: Grammar) -> str:
    """The grammar in the library's own form."""
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.source)
    try:
        schema = json.loads(grammar.source, parse_constant=_no_number)
        if not isinstance(schema, dict):
            raise ValueError("it is no JSON object")
        schema.pop("x-guidance", None)  # options of the library are not for requests
        return LLMatcher.grammar_from_json_schema(schema, overrides=STYLE)  # type: ignore[arg-type]
    except ValueError as error:
        raise _refusal(grammar, str(error)) from error


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number in JSON")


def _reason(matcher: LLMatcher) -> str:
    words = " ".join(reason_of(matcher).split())
    if words == "NoExtensionBias":  # what the library calls a grammar without a first token
        return "nothing matches it"
    return words if len(words) <= LONGEST_REASON else words[:LONGEST_REASON] + "…"


def _refusal(grammar: Grammar, reason: str) -> BadRequest:
    return BadRequest(f"{grammar.param}: answers cannot be held to this grammar ({reason}); change it", grammar.param)
