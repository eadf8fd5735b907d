"""Constrained answers: schemas and grammars as masks of allowed tokens, by llguidance."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark
from numpy.typing import NDArray
from tokenizers import Tokenizer

from together.errors import BadRequest
from together.requests import Grammar
from together.text.thinking import Phase, ThinkTags
from together.text.tool_grammars import STYLE
from together.wording import cut

logger = logging.getLogger(__name__)

Bits = NDArray[np.uint8]  # [bytes], bit i (low bit first) is token i

MOST_GAPS = 3  # tokens of line breaks between reasoning and answer, and before reasoning; templates write up to three


class Words:
    """The masks of reasoning: tokens that may begin it, continue it and follow it."""

    def __init__(self, data: Sequence[bytes], tags: ThinkTags, inner: Iterable[int] = ()) -> None:
        """`data` are the tokens' bytes, empty for those that reasoning never has; `inner` are only in its opening."""
        self._data = data
        self.tags = tags
        self.opening_tag, self.closing_tag = opening, closing = tags.opening.encode(), tags.closing.encode()
        openers = [(i, word) for i, word in enumerate(data) if word and word.rstrip() in opening]
        self._opening = [
            _bits((i for i, word in openers if self.opens(start + word) or self.begins(start + word)), len(data))
            for start in (opening[:length] for length in range(len(opening)))
        ]
        self.gaps = _bits((i for i, word in enumerate(data) if word in (b"\n", b"\n\n", b"\n\n\n")), len(data))
        free = np.fromiter(map(bool, data), np.bool_, len(data))
        free[list(inner)] = False
        enders = [(i, word) for i, word in enumerate(data) if closing[-1:] in word]
        self._free = [_without(free, _bad_enders(enders, closing[:length], closing)) for length in range(len(closing))]

    def opens(self, written: bytes) -> bool:
        """Whether it is the whole opening tag, followed by nothing but spaces."""
        return written.startswith(self.opening_tag) and not written[len(self.opening_tag) :].strip()

    def begins(self, written: bytes) -> bool:
        return bool(written) and self.opening_tag.startswith(written)

    def of(self, token_id: int) -> bytes:
        return self._data[token_id] if token_id < len(self._data) else b""

    def opening(self, written: bytes) -> Bits:
        """The tokens that continue the opening tag after `written`, a part of it."""
        return self._opening[len(written)]

    def reasoning(self, written: bytes) -> Bits:
        """The tokens that continue reasoning after `written`: all but those that end it and go on with an answer."""
        tag = self.closing_tag
        begun = next((length for length in range(len(tag) - 1, 0, -1) if written.endswith(tag[:length])), 0)
        return self._free[begun]


class GrammarConstraint:
    """A `Constraint`: the masks of a grammar, which begins after the model's reasoning.

    Reasoning may be anything but special tokens. End-of-text is one, so an answer that ends has matched the grammar.
    If the library gives up within an answer, at a limit of its own, only end-of-text is allowed and `failure` says why.
    """

    def __init__(
        self, matcher: LLMatcher, eos: Iterable[int], size: int, words: Words | None, *, opened: bool = False
    ) -> None:
        """`size`: tokens of the masks; `words`: None without reasoning; `opened`: the prompt has the opening tag."""
        self._matcher = matcher
        self._end = _bits(eos, size)
        self._words = words
        self._phase = Phase.ANSWER if words is None else Phase.REASONING if opened else Phase.START
        self._written = b""  # of the opening tag, or the end of the reasoning
        self._fits = True  # the text so far may also begin the answer
        self._gaps = 0
        self._taken = 0  # tokens of the answer
        self._mask: bytes | None = None  # for the token after those
        self.failure = ""

    def allowed(self, answer: Sequence[int]) -> bytes:
        """As `Constraint.allowed`."""
        if self._mask is None or len(answer) != self._taken:
            try:
                self._mask = self._after(answer[self._taken :]).tobytes()
            except Exception:  # other requests' tokens come from the same loop
                logger.exception("a grammar failed in the middle of an answer")
                self._fail("an internal error")
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
        if self._phase is Phase.START:
            self._begin(token_id)
        elif self._phase is Phase.REASONING:
            self._reason(self._known.of(token_id))
        elif self._phase is Phase.BETWEEN and self._gaps < MOST_GAPS and not self._matcher.validate_tokens([token_id]):
            self._gaps += 1
        else:
            self._phase = Phase.ANSWER
            if not self._matcher.consume_token(token_id):
                self._fail(_complaint(self._matcher))

    def _begin(self, token_id: int) -> None:
        """Take a token that may belong to the tag, to the answer, or to either."""
        word = self._known.of(token_id)
        written = self._written + word
        if self._may_break and not word.strip():
            self._gaps, self._fits = self._gaps + 1, False
            return
        self._fits = self._fits and self._matcher.try_consume_tokens([token_id]) == 1
        if word and self._known.opens(written):
            self._phase, self._written, self._gaps = Phase.REASONING, b"", 0
            self._matcher.reset()
            self._reason(written[len(self._known.opening_tag) :])
        elif word and self._known.begins(written):
            self._written = written
        elif self._fits:
            self._phase = Phase.ANSWER
        else:
            self._fail("the answer began neither with reasoning nor as the grammar allows")

    def _reason(self, word: bytes) -> None:
        self._written += word
        if self._known.closing_tag in self._written:
            self._phase = Phase.BETWEEN
        self._written = self._written[1 - len(self._known.closing_tag) :]

    @property
    def _may_break(self) -> bool:
        """Whether a line break may come before the opening tag; then nothing else than that follows."""
        return self._known.tags.break_first and not self._written and self._gaps < MOST_GAPS

    def _bits(self) -> Bits:
        if self._phase is Phase.REASONING:
            return self._known.reasoning(self._written)
        if self._phase is Phase.START:
            opening = self._known.opening(self._written)
            if self._may_break:
                opening = _either(opening, self._known.gaps)
            return _either(opening, self._grammar()) if self._fits else opening
        if self._phase is Phase.BETWEEN and self._gaps < MOST_GAPS:
            return _either(self._known.gaps, self._grammar())
        return self._grammar()

    def _grammar(self) -> Bits:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            self._fail(_complaint(self._matcher))
        return bits

    @property
    def _known(self) -> Words:
        assert self._words is not None, "reasoning needs its words"
        return self._words

    def _fail(self, reason: str) -> None:
        self.failure = self.failure or reason
        logger.warning("a grammar was given up, and its answer ends early: %s", self.failure)


def _bad_enders(words: Iterable[tuple[int, bytes]], written: bytes, closing: bytes) -> list[int]:
    """Tokens that, after `written`, end the reasoning and already begin an answer, which no grammar could check."""
    parted = ((i, (written + word).partition(closing)) for i, word in words)
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


MOST_GBNF = 2**14  # letters of a grammar that Python reads
MOST_LETTERS = 2**17  # of a grammar; the worst ones of that size take a second to compile
LONGEST_REASON = 300  # letters of the library's words in an error


class Grammars:
    """Compiles grammars for one model's tokenizer; the first use prepares its vocabulary."""

    def __init__(self, tokenizer: Tokenizer, eos: frozenset[int], thinks: ThinkTags | None) -> None:
        """`thinks`: what is around the model's reasoning, if it may reason; grammars begin after that."""
        self._tokenizer = tokenizer
        self._eos = eos
        self._thinks = thinks
        self._lock = Lock()

    async def compile(self, grammar: Grammar, vocabulary: int | None = None) -> Compiled:
        """Compile in a thread; `vocabulary` is the width of the model's logits, if known.

        Raises BadRequest, naming the grammar's field, for a grammar that is too large or that the library refuses.
        """
        if len(grammar.source) > MOST_LETTERS:
            raise _refusal(grammar, f"it has {len(grammar.source)} letters, more than {MOST_LETTERS}")
        return await asyncio.to_thread(self._compile, grammar, vocabulary)

    def _compile(self, grammar: Grammar, vocabulary: int | None) -> Compiled:
        with self._lock:  # both are made once
            environment = self._environment
            if environment is None:
                raise _refusal(grammar, "this model has no token that ends an answer")
            words = self._words if self._thinks else None
        limits = LLParserLimits(verbose_errors=False)  # verbose ones quote the whole schema
        matcher = LLMatcher(environment, _source(grammar), log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first mask is the slowest, and shows some faults
        if matcher.is_error():
            raise _refusal(grammar, _complaint(matcher))
        size = environment.vocab_size if vocabulary is None else min(vocabulary, environment.vocab_size)
        return Compiled(matcher, frozenset(environment.eos_tokens), size, words)

    @cached_property
    def _environment(self) -> LLTokenizer | None:
        """None if no token ends an answer."""
        known = self._tokenizer.get_vocab_size()
        eos = sorted(each for each in self._eos if each < known)
        return LLTokenizer(self._tokenizer.to_str(), eos_token=eos) if eos else None

    @cached_property
    def _words(self) -> Words:
        environment, tags = self._environment, self._thinks
        assert environment is not None, "nothing is compiled without it"
        assert tags is not None, "only reasoning needs them"
        added = self._tokenizer.get_added_tokens_decoder().items()
        special = {index: token.content for index, token in added if token.special}
        hidden = {i for i, word in special.items() if word not in tags.opening + tags.closing}.union(self._eos)
        inner = [i for i, word in special.items() if word in tags.opening and word not in tags.both]
        ids = range(environment.vocab_size)
        return Words(tuple(b"" if i in hidden else environment.decode_bytes([i]) for i in ids), tags, inner)


@dataclass(frozen=True, slots=True)
class Compiled:
    """One request's grammar; each choice starts a constraint."""

    matcher: LLMatcher  # stays at its beginning
    eos: frozenset[int]
    size: int  # tokens of a mask
    words: Words | None  # None if the model does not reason

    def start(self, opening: str | None = None) -> GrammarConstraint:
        """Start an answer to the prompt `opening`, which may open the reasoning; None: reasoning is not split off.

        Copies of the matcher share its cache, not its position.
        """
        opening = None if opening is None else opening.rstrip()
        words = self.words if opening is not None else None
        if words is not None and opening is not None and opening.endswith(words.tags.closing):
            words = None
        opened = words is not None and opening is not None and opening.endswith(words.tags.opening)
        return GrammarConstraint(self.matcher.deep_copy(), self.eos, self.size, words, opened=opened)


def schema_fault(schema: dict[str, object]) -> str:
    """Why answers cannot be held to a schema, whatever the model; empty where they can. May take a second."""
    source = json.dumps(schema)
    if len(source) > MOST_LETTERS:
        return f"it has {len(source)} letters, more than {MOST_LETTERS}"
    try:
        wrong, said = LLMatcher.validate_grammar_with_warnings(_source(Grammar("json_schema", source)))
    except BadRequest as error:
        return str(error)
    return cut(" ".join(" ".join(said).split()), LONGEST_REASON) if wrong else ""


def _source(grammar: Grammar) -> str:
    """The grammar in the library's form."""
    match grammar.kind:
        case "lark":
            return LLMatcher.grammar_from_lark(grammar.source)
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.source)
        case "choice":
            texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in json.loads(grammar.source))
            return LLMatcher.grammar_from_lark(f"start: {texts}")
        case "gbnf":
            return LLMatcher.grammar_from_lark(_lark_of(grammar))
    try:
        schema = json.loads(grammar.source, parse_constant=_no_number)
        if not isinstance(schema, dict):
            raise ValueError("it is not a JSON object")
        schema.pop("x-guidance", None)  # requests may not set the library's options
        return LLMatcher.grammar_from_json_schema(schema, overrides=STYLE)  # type: ignore[arg-type]
    except ValueError as error:
        raise _refusal(grammar, str(error)) from error


def _lark_of(grammar: Grammar) -> str:
    if len(grammar.source) > MOST_GBNF:
        raise _refusal(grammar, f"it has {len(grammar.source)} letters, more than {MOST_GBNF}")
    try:
        return gbnf_to_lark(grammar.source)
    except Exception as error:  # the library has no kind of its own for rules that are missing
        raise _refusal(grammar, str(error)) from error


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is not a number in JSON")


def _complaint(matcher: LLMatcher) -> str:
    words = " ".join(matcher.get_error().replace("<non-verbose/>", "").split())
    if words == "NoExtensionBias":  # the library's word for a grammar without a first token
        return "nothing matches it"
    return words if len(words) <= LONGEST_REASON else words[:LONGEST_REASON] + "…"


def _refusal(grammar: Grammar, reason: str) -> BadRequest:
    text = "{field}: answers cannot be held to this grammar ({reason}); change it"
    return BadRequest(text, grammar.param, field=grammar.param, reason=reason)
