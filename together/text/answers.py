"""Answers as text: token streams become pieces that may be shown, for one choice or several. Knows no HTTP."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from together.engine.engine import Engine, TokenStream
from together.errors import BadRequest, ContextTooLong
from together.requests import (
    AnswerChunk,
    CallDelta,
    ChatRequest,
    CompletionRequest,
    FinishReason,
    GenerateRequest,
    Scored,
    TokenLogprob,
    ToolUse,
    Usage,
)
from together.sampling import choice_seed
from together.text.detokenizer import Decoder, StopFilter, TokenBytes
from together.text.grammar import Compiled, GrammarConstraint
from together.text.parser import OPEN, AnswerParser, ParsedAnswer, ReasoningParser, ToolCallParser
from together.text.tokenizer import TextModel
from together.text.tool_grammar import call_grammar
from together.types import Sampled

Pieces = AsyncGenerator[AnswerChunk, None]
TAIL = 8  # tokens of a prompt that its continuation is decoded after


# --- what a head answers ----------------------------------------------------------------------------------------------


async def answer_chat(engine: Engine, model: TextModel, request: ChatRequest) -> Pieces:
    """All choices' pieces as they come; closing it cancels them.

    The first step raises what `Engine.submit` raises and BadRequest for what the template refuses; a full queue is
    said before any work is done.
    """
    engine.check_room(request.choices)
    use = request.tool_use
    request = replace(request, grammar=call_grammar(model.template.tool_format, use, model.tool_tags, request.grammar))
    grammar = await _compiled(engine, model, request)
    text = await model.template.render(request.messages, use.tools, request.chosen_template, **request.template)
    prompt = await model.encode_aside(text, context=engine.context)
    async with aclosing(_answer(engine, model, [prompt], request, grammar, text)) as pieces:
        async for piece in pieces:
            yield piece


async def answer_prompts(engine: Engine, model: TextModel, request: CompletionRequest) -> Pieces:
    """As `answer_chat`, for prompts as they are; the tokenizer adds the special tokens that it adds to any text."""
    engine.check_room(request.choices * len(request.prompts))
    grammar = await _compiled(engine, model, request)
    try:
        prompts = [await _ids(engine, model, prompt) for prompt in request.prompts]
        async with aclosing(_answer(engine, model, prompts, request, grammar)) as pieces:
            async for piece in pieces:
                yield piece
    except BadRequest as error:
        error.param = "prompt" if error.param == "messages" else error.param
        raise


async def _ids(engine: Engine, model: TextModel, prompt: str | tuple[int, ...]) -> tuple[int, ...]:
    """Raises ContextTooLong before anything else looks at the prompt."""
    if isinstance(prompt, str):
        return await model.encode_prompt(prompt, context=engine.context)
    if len(prompt) >= engine.context:
        raise ContextTooLong(len(prompt), engine.context)
    return prompt


async def generate_text(engine: Engine, model: TextModel, request: GenerateRequest) -> Pieces:
    """One answer piece by piece, thoughts and all; the last piece has reason, usage and timings.

    Closing it early cancels the sequence. The first step raises what `Engine.submit` raises, a later one RingBroken.
    """
    async with aclosing(_read(engine.submit(request), model, request)) as pieces:
        async for piece in pieces:
            yield piece


# --- several choices --------------------------------------------------------------------------------------------------


async def _answer(
    engine: Engine,
    model: TextModel,
    prompts: Sequence[tuple[int, ...]],
    request: ChatRequest | CompletionRequest,
    grammar: Compiled | None,
    opening: str | None = None,
) -> Pieces:
    """`opening` is the prompt's text, where thoughts and calls are to be parted from the answer."""
    wanted = [
        _generate(prompt, request, i, grammar.start(opening) if grammar else None)
        for prompt in prompts
        for i in range(request.choices)
    ]
    streams = _submit_all(engine, wanted)
    use, goes_on = (request.tool_use, False) if isinstance(request, ChatRequest) else (ToolUse(), True)
    readers = [
        _read(
            stream,
            model,
            each,
            None if opening is None else _chat_parser(model, opening, use, each.stop),
            index,
            goes_on,
        )
        for index, (stream, each) in enumerate(zip(streams, wanted, strict=True))
    ]
    try:
        async with aclosing(readers[0] if len(readers) == 1 else merged(readers)) as pieces:
            async for piece in pieces:
                yield piece
    finally:
        for stream in streams:  # a reader that was never asked does not know that it is over
            stream.cancel()


async def _compiled(engine: Engine, model: TextModel, request: ChatRequest | CompletionRequest) -> Compiled | None:
    return await model.grammars.compile(request.grammar, engine.vocabulary) if request.grammar else None


def _generate(
    prompt: tuple[int, ...],
    request: ChatRequest | CompletionRequest,
    choice: int,
    constraint: GrammarConstraint | None,
) -> GenerateRequest:
    """A grammar says itself where its text may end: after that nothing else is allowed, whatever `ignore_eos` says."""
    sampling = replace(request.sampling, seed=choice_seed(request.sampling.seed, choice))
    ignore_eos = request.ignore_eos and constraint is None
    return GenerateRequest(
        prompt, sampling, request.max_tokens, request.stop, ignore_eos, request.top_logprobs, constraint
    )


def _submit_all(engine: Engine, wanted: Sequence[GenerateRequest]) -> list[TokenStream]:
    """All or none."""
    streams: list[TokenStream] = []
    try:
        for request in wanted:
            streams.append(engine.submit(request))
    except BaseException:
        for stream in streams:
            stream.cancel()
        raise
    return streams


async def merged(sources: Sequence[Pieces]) -> Pieces:
    """The pieces of all, as they come. The first error ends all of them, and so does closing."""
    arrived: asyncio.Queue[AnswerChunk | Exception | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_forward(source, arrived)) for source in sources]
    left = len(tasks)
    try:
        while left:
            match await arrived.get():
                case AnswerChunk() as piece:
                    yield piece
                case None:
                    left -= 1
                case error:
                    raise error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _forward(source: Pieces, arrived: asyncio.Queue[AnswerChunk | Exception | None]) -> None:
    try:
        async with aclosing(source):
            async for piece in source:
                arrived.put_nowait(piece)
        arrived.put_nowait(None)
    except Exception as error:  # raised again to whoever reads
        arrived.put_nowait(error)


# --- one choice -------------------------------------------------------------------------------------------------------


def _chat_parser(model: TextModel, prompt: str, use: ToolUse, stops: Sequence[str]) -> AnswerParser:
    """Splits one answer to the chat `prompt` into reasoning, text before one of `stops`, and tool calls."""
    reasoning = ReasoningParser(opened=prompt.rstrip().endswith(OPEN)) if model.thinks else None
    tools = ToolCallParser(model.template.tool_format, use.tools) if use.tools else None
    return AnswerParser(reasoning, StopFilter(stops), tools, one_call=not use.parallel)


async def _read(
    stream: TokenStream,
    model: TextModel,
    request: GenerateRequest,
    parter: AnswerParser | None = None,
    index: int = 0,
    goes_on: bool = False,
) -> Pieces:
    """`goes_on`: the text continues the prompt, whose end says whether a space comes first."""
    before = request.prompt[-TAIL:] if goes_on else ()
    answer = _Answer(model, parter or AnswerParser(stops=StopFilter(request.stop)), index, before)
    try:
        async for token_ids, finish in stream:
            answer.push(token_ids, stream.sampled)
            reason = _true_reason(answer.finish(finish), request)
            if reason is not None:
                stream.cancel()  # a stop string or a call ends it before the ring knows
                yield answer.last_piece(reason, stream, len(request.prompt))
                return
            if answer.has_news:
                yield answer.piece()
    finally:
        stream.cancel()


def _true_reason(reason: FinishReason | None, request: GenerateRequest) -> FinishReason | None:
    """An answer whose grammar was given up is not whole: it ended early, as one that is too long does."""
    constraint = request.constraint
    failed = isinstance(constraint, GrammarConstraint) and bool(constraint.failure)
    return "length" if reason in ("stop", "tool_calls") and failed else reason


class _Answer:
    """One answer's text between the decoder and the person who reads it."""

    def __init__(self, model: TextModel, parter: AnswerParser, index: int, before: Sequence[int] = ()) -> None:
        self._decoder: Decoder = Decoder(model.tokenizer, before)
        shown = (model.reasoning_tags if parter.reasoning else {}, model.tool_tags if parter.tools else {})
        self._tags = {token_id: tag for tags in shown for tag, token_id in tags.items()}
        self._parter = parter
        self._index = index
        self._logprobs = _Logprobs(model.token_bytes)
        self._tokens: list[int] = []  # since the last piece
        self._count = 0
        self._thought = 0  # tokens of the thoughts
        self._text = ""  # safe to show, not shown yet; so is the following
        self._reasoning = ""
        self._calls: list[CallDelta] = []

    @property
    def has_news(self) -> bool:
        return bool(self._text or self._reasoning or self._calls)

    def push(self, token_ids: Sequence[int], sampled: Sequence[Sampled]) -> None:
        """Take tokens up to a stop string or the only call; those after it were never asked for.

        `sampled` is empty or one for each.
        """
        for place, token_id in enumerate(token_ids):
            if self._parter.stopped or self._parter.done:
                return
            self._tokens.append(token_id)
            self._count += 1
            self._take(self._decode(token_id), sampled[place] if sampled else None)

    def _decode(self, token_id: int) -> str:
        tag = self._tags.get(token_id)
        return self._decoder.push(token_id) if tag is None else self._decoder.flush() + tag

    def _take(self, text: str, sampled: Sampled | None) -> None:
        if sampled is not None:
            self._logprobs.drawn(sampled)
        self._logprobs.decoded(len(text))
        was_thinking = self._parter.thinking
        parts = self._parter.push(text)
        self._add(parts)
        self._logprobs.shown_but(self._parter.withheld)
        if was_thinking or self._parter.thinking or parts.reasoning:
            self._thought = self._count

    def _add(self, parts: ParsedAnswer) -> None:
        self._reasoning += parts.reasoning
        self._text += parts.text
        self._calls += parts.tool_calls

    def finish(self, reason: FinishReason | None) -> FinishReason | None:
        """Why the answer ends now, if it does; lets go of the text held back until here."""
        if reason is not None and not self._parter.stopped:
            self._take(self._decoder.flush(), None)
        if reason is None and not self._parter.stopped and not self._parter.done:
            return None
        self._add(self._parter.flush())
        if reason is not None and not self._parter.stopped:
            self._logprobs.all_shown()
        ended = "stop" if self._parter.stopped or self._parter.done else reason
        return "tool_calls" if ended == "stop" and self._parter.called else ended

    def piece(self) -> AnswerChunk:
        piece = AnswerChunk(
            self._text,
            tuple(self._tokens),
            reasoning=self._reasoning,
            logprobs=self._logprobs.take(),
            index=self._index,
            tool_calls=tuple(self._calls),
        )
        self._text = self._reasoning = ""
        self._tokens.clear()
        self._calls.clear()
        return piece

    def last_piece(self, reason: FinishReason, stream: TokenStream, prompt_tokens: int) -> AnswerChunk:
        usage = Usage(prompt_tokens, self._count, stream.reused, self._thought)
        return replace(self.piece(), finish=reason, usage=usage, timings=stream.timings)


@dataclass(slots=True)
class _Pending:
    """A token's log-probability, and the letters of the answer that must be shown first; -1: not known yet."""

    logprob: TokenLogprob
    end: int = -1


class _Logprobs:
    """Holds tokens' log-probabilities back until their text is shown: those of a stop string would tell of it."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._bytes = token_bytes
        self._waiting: deque[_Pending] = deque()
        self._free: list[TokenLogprob] = []
        self._decoded = self._shown = self._given = 0  # letters

    def drawn(self, sampled: Sampled) -> None:
        assert sampled.logprob is not None, "asked for, so every stage gives it"
        top = tuple(self._scored(*each) for each in sampled.top)
        self._waiting.append(_Pending(TokenLogprob(self._scored(sampled.token_id, sampled.logprob), top)))

    def decoded(self, letters: int) -> None:
        """So many letters came out of the tokens that were drawn since the last ones did."""
        if letters:
            self._decoded += letters
            for pending in reversed(self._waiting):
                if pending.end >= 0:
                    break
                pending.end = self._decoded

    def shown_but(self, withheld: int) -> None:
        """Of all letters so far the last `withheld` are not shown."""
        self._shown = self._decoded - withheld
        while self._waiting and 0 <= self._waiting[0].end <= self._shown:
            self._give()

    def all_shown(self) -> None:
        while self._waiting:
            self._give()

    def _give(self) -> None:
        pending = self._waiting.popleft()
        self._free.append(replace(pending.logprob, offset=self._given))
        self._given = max(self._given, pending.end)

    def take(self) -> tuple[TokenLogprob, ...]:
        taken = tuple(self._free)
        self._free.clear()
        return taken

    def _scored(self, token_id: int, logprob: float) -> Scored:
        return Scored(token_id, self._bytes.of(token_id), logprob)
