"""Answers as text: token streams become chunks that may be shown, for one choice or several."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from secrets import token_hex

from together.engine.engine import Engine
from together.engine.prefixes import common
from together.engine.streams import Tokens, TokenStream
from together.errors import BadRequest, ContextTooLong, TogetherError
from together.picture import Picture
from together.requests import (
    AnswerChunk,
    CallDelta,
    ChatRequest,
    CompletionRequest,
    FinishReason,
    GenerateRequest,
    Grammar,
    Message,
    ToolUse,
    Usage,
)
from together.sampling import choice_seed
from together.sentences import Sentence
from together.text.grammar import Compiled, GrammarConstraint
from together.text.harmony import HarmonyParser
from together.text.logprobs import HeldLogprobs
from together.text.parser import AnswerParser, ParsedAnswer, Parser, StopFilter, ToolCallParser
from together.text.pictures import of_owner, placed, refuse_marks
from together.text.thinking import CHANNELS, ReasoningParser
from together.text.tokenizer import Decoder, TextModel
from together.text.tool_grammars import call_grammar
from together.types import Sampled

Chunks = AsyncGenerator[AnswerChunk, None]
TAIL = 8  # last tokens of a prompt that the decoder of its continuation sees


# --- what a head answers ----------------------------------------------------------------------------------------------


def answer_chat(engine: Engine, model: TextModel, request: ChatRequest) -> Chunks:
    """The chunks of all choices as they come; closing it cancels them.

    The first step raises what `Engine.submit` raises, QueueFull before any work is done, and BadRequest for what the
    template refuses.
    """
    return _answer(partial(_chat_choices, engine, model, request))


def answer_prompts(engine: Engine, model: TextModel, request: CompletionRequest) -> Chunks:
    """As `answer_chat`, for prompts as they are; the tokenizer adds the special tokens that it adds to any text."""
    return _answer(partial(_prompt_choices, engine, model, request))


def generate_text(engine: Engine, model: TextModel, request: GenerateRequest) -> Chunks:
    """One answer, with its reasoning as text between its tags. Raises as `answer_chat` does.

    A later step raises RingBroken.
    """
    tags = _by_id(model.reasoning_tags, model.tool_tags if model.thinks == CHANNELS else {})
    parser = AnswerParser(stops=StopFilter(request.stop), tags=tags)

    async def choices(ready: asyncio.Event) -> list[_Choice]:
        return [_Choice(engine.submit(request, ready), model, parser)]

    return _answer(choices)


async def _answer(submit: Callable[[asyncio.Event], Awaitable[list[_Choice]]]) -> Chunks:
    """The first error ends all choices, and so does closing. `submit` gets the event that their new tokens set."""
    ready = asyncio.Event()
    choices = await submit(ready)
    running = list(choices)
    try:
        while running:
            await ready.wait()
            ready.clear()
            for choice in tuple(running):
                chunk = choice.poll()
                if chunk is None:
                    continue
                if chunk.finish is not None:
                    running.remove(choice)
                yield chunk
    finally:
        for choice in choices:
            choice.stream.cancel()


# --- from a request to its choices ------------------------------------------------------------------------------------


async def _chat_choices(engine: Engine, model: TextModel, request: ChatRequest, ready: asyncio.Event) -> list[_Choice]:
    engine.check_room(request.choices)
    use, tool_format = request.tool_use, model.template.tool_format
    grammar = await _compiled(engine, model, call_grammar(tool_format, use, model.tool_tags, request.grammar))
    text, prompt, pictures = await _chat_prompt(engine, model, request)
    stable = 0 if engine.rewinds or pictures else await _stable(engine, model, request, prompt)
    requests = (replace(each, pictures=pictures) for each in _requests([prompt], request, grammar, text, stable))
    streams = _submit_all(engine, requests, ready)
    parser = partial(chat_parser, model, text, use, request.stop)
    return [_Choice(stream, model, parser(), index) for index, stream in enumerate(streams)]


async def chat_ids(engine: Engine, model: TextModel, request: ChatRequest) -> tuple[int, ...]:
    """The tokens of a chat's prompt. Raises as an answer to it does."""
    return (await _chat_prompt(engine, model, request))[1]


async def _chat_prompt(
    engine: Engine, model: TextModel, request: ChatRequest
) -> tuple[str, tuple[int, ...], tuple[Picture, ...]]:
    """A conversation as text up to where the answer begins, its tokens, and where its pictures are."""
    variables = {**request.template, **({"add_generation_prompt": False} if request.continues else {})}
    mark = token_hex(16) if request.continues else ""
    messages = _marked(request.messages, mark) if mark else request.messages
    rendered = model.template.render(messages, request.tool_use.tools, request.chosen_template, **variables)
    text = await asyncio.wrap_future(rendered)
    text = _open_end(text, mark) if mark else text
    prompt = await model.encode_aside(text, context=engine.context)
    return text, *(await _seen(engine, model, request, prompt))


_CANNOT_GO_ON = (
    "the answer cannot go on with the last message: it is empty, or the chat template writes it otherwise; end with a "
    "user's message"
)


def _marked(messages: Sequence[Message], mark: str) -> tuple[Message, ...]:
    """With a mark after the last message, whose own words may be found after it too: templates close what they write.

    Raises BadRequest for an empty message, or one with calls, which a template writes after its text.
    """
    *before, last = messages
    if not last.content.strip() or last.tool_calls:
        raise BadRequest(_CANNOT_GO_ON, "messages")
    return (*before, replace(last, content=last.content.rstrip() + mark))


def _open_end(text: str, mark: str) -> str:
    """A rendered conversation up to the mark. Raises BadRequest where the template did not write it."""
    end = text.rfind(mark)
    if end < 0:
        raise BadRequest(_CANNOT_GO_ON, "messages")
    return text[:end]


async def _seen(
    engine: Engine, model: TextModel, request: ChatRequest, prompt: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[Picture, ...]]:
    """The prompt with the tokens of its pictures, and where they are. Raises BadRequest or QueueFull."""
    first = next((index for index, message in enumerate(request.messages) if message.pictures), None)
    if first is None:
        return prompt, ()
    sight, where = model.sight, f"messages.{first}.content"
    if isinstance(sight, Sentence):
        raise BadRequest("{where}: {reason}", where, where=where, reason=sight)
    refuse_marks(request, model.tokenizer.id_to_token(sight.eyes.token))
    seen = await sight.prepare(request.messages, engine.check_pictures)
    return placed(prompt, [of_owner(picture, request.owner) for picture in seen], sight.eyes.token)


async def _stable(engine: Engine, model: TextModel, request: ChatRequest, prompt: tuple[int, ...]) -> int:
    """Leading tokens of a chat's prompt that its next turn begins with too: all but what only opens the answer.

    Templates drop earlier thoughts, so that neither the prompt's end nor the answer's need be there again.
    """
    if request.continues:
        return 0
    tools, variables = request.tool_use.tools, {**request.template, "add_generation_prompt": False}
    try:
        rendered = model.template.render(request.messages, tools, request.chosen_template, **variables)
        closed = await model.encode_aside(await asyncio.wrap_future(rendered), context=engine.context)
    except TogetherError:  # of a template that cannot do without, or is too busy: then nothing is kept
        return 0
    return common(list(prompt), list(closed))


async def _prompt_choices(
    engine: Engine, model: TextModel, request: CompletionRequest, ready: asyncio.Event
) -> list[_Choice]:
    engine.check_room(request.choices * len(request.prompts))
    grammar = await _compiled(engine, model, request.grammar)
    try:
        prompts = [await prompt_ids(engine, model, prompt) for prompt in request.prompts]
        streams = _submit_all(engine, _requests(prompts, request, grammar), ready)
    except BadRequest as error:
        error.param = "prompt" if error.param == "messages" else error.param
        raise
    return [
        _Choice(stream, model, AnswerParser(stops=StopFilter(request.stop)), index, stream.request.prompt[-TAIL:])
        for index, stream in enumerate(streams)
    ]


async def prompt_ids(engine: Engine, model: TextModel, prompt: str | tuple[int, ...]) -> tuple[int, ...]:
    """Raises ContextTooLong before anything else looks at the prompt."""
    if isinstance(prompt, str):
        return await model.encode_prompt(prompt, context=engine.context)
    if len(prompt) >= engine.context:
        raise ContextTooLong(len(prompt), engine.context)
    return prompt


async def _compiled(engine: Engine, model: TextModel, grammar: Grammar | None) -> Compiled | None:
    return await model.grammars.compile(grammar, engine.vocabulary) if grammar else None


def _requests(
    prompts: Sequence[tuple[int, ...]],
    request: ChatRequest | CompletionRequest,
    grammar: Compiled | None,
    opening: str | None = None,
    stable: int = 0,
) -> Iterator[GenerateRequest]:
    """One for each choice of each prompt; `opening` is the text that the answer to a chat follows.

    `stable` is as in GenerateRequest.
    """
    for prompt in prompts:
        for choice in range(request.choices):
            yield GenerateRequest(
                prompt,
                replace(request.sampling, seed=choice_seed(request.sampling.seed, choice)),
                request.max_tokens,
                request.stop,
                request.ignore_eos and grammar is None,  # a grammar allows nothing after its end
                request.top_logprobs,
                grammar.start(opening) if grammar else None,
                stable,
                owner=request.owner,
                followed=isinstance(request, ChatRequest) and request.followed,
            )


def _submit_all(engine: Engine, requests: Iterator[GenerateRequest], ready: asyncio.Event) -> list[TokenStream]:
    """All or none."""
    streams: list[TokenStream] = []
    try:
        for request in requests:
            streams.append(engine.submit(request, ready))
    except BaseException:
        for stream in streams:
            stream.cancel()
        raise
    return streams


def chat_parser(model: TextModel, prompt: str, use: ToolUse, stops: Sequence[str]) -> Parser:
    """Splits one answer to the chat `prompt` into reasoning, text before one of `stops`, and tool calls."""
    thinks, one_call = model.thinks, not use.parallel
    if thinks == CHANNELS:
        names = frozenset(tool.name for tool in use.tools)
        return HarmonyParser(names, StopFilter(stops), one_call, _by_id(model.reasoning_tags, model.tool_tags))
    reasoning = ReasoningParser(prompt.rstrip().endswith(thinks.opening), thinks) if thinks else None
    tools = ToolCallParser(model.template.tool_format, use.tools) if use.tools else None
    tags = _by_id(model.reasoning_tags if reasoning else {}, model.tool_tags if tools else {})
    return AnswerParser(reasoning, StopFilter(stops), tools, one_call, tags)


def _by_id(*tags: Mapping[str, int]) -> dict[int, str]:
    return {token_id: tag for each in tags for tag, token_id in each.items()}


# --- one choice -------------------------------------------------------------------------------------------------------


class _Choice:
    """One answer: its tokens, and what may be shown of them."""

    def __init__(
        self, stream: TokenStream, model: TextModel, parser: Parser, index: int = 0, before: Sequence[int] = ()
    ) -> None:
        """`before` are the last tokens of a prompt that the text continues: they say whether a space comes first."""
        self.stream = stream
        self._decoder = Decoder(model.tokenizer, before)
        self._parser = parser
        self._index = index
        self._logprobs = HeldLogprobs(model.token_bytes) if stream.request.top_logprobs >= 0 else None
        self._tokens: list[int] = []  # since the last chunk
        self._count = 0
        self._reasoned = 0  # tokens of the reasoning
        self._text = ""  # safe to show, not shown yet; so is the following
        self._reasoning = ""
        self._calls: list[CallDelta] = []
        self._begun = False
        self._told = stream.progress

    def poll(self) -> AnswerChunk | None:
        """What can be shown since the last call, with `finish` at the end; None for nothing. Raises what ended it."""
        tokens = self.stream.poll()
        if tokens is None:
            return self._progress()
        self._push(tokens)
        reason = self._true_reason(self._finish(tokens.finish))
        if reason is None:
            return self._chunk() if self._text or self._reasoning or self._calls else None
        self.stream.cancel()  # a stop string or a call ends it before the ring knows
        usage = Usage(len(self.stream.request.prompt), self._count, self.stream.reused, self._reasoned)
        return replace(
            self._chunk(), finish=reason, usage=usage, timings=self.stream.clock.timings, stop=self._parser.stopped
        )

    def _progress(self) -> AnswerChunk | None:
        """Where it is, where that is news."""
        told, self._told = self._told, self.stream.progress
        return AnswerChunk("", index=self._index, progress=self._told) if told != self._told else None

    def _push(self, tokens: Tokens) -> None:
        """Take tokens up to a stop string or the only call; later ones are not part of the answer."""
        for place, token_id in enumerate(tokens.ids):
            if self._parser.stopped or self._parser.done:
                return
            self._tokens.append(token_id)
            self._count += 1
            tag = self._parser.tags.get(token_id)
            text = self._decoder.push(token_id) if tag is None else self._decoder.flush() + tag
            self._take(text, tokens.sampled[place] if tokens.sampled else None)

    def _take(self, text: str, sampled: Sampled | None) -> None:
        was_thinking = self._parser.thinking
        parts = self._parser.push(text)
        self._add(parts)
        if self._logprobs is not None:
            self._logprobs.push(sampled, len(text), self._parser.withheld)
        if was_thinking or self._parser.thinking or parts.reasoning:
            self._reasoned = self._count

    def _add(self, parts: ParsedAnswer) -> None:
        self._reasoning += parts.reasoning
        self._text += parts.text
        self._calls += parts.tool_calls

    def _finish(self, reason: FinishReason | None) -> FinishReason | None:
        """Why the answer ends now, if it does; releases the text held back until here."""
        parser = self._parser
        if reason is not None and not parser.stopped:
            self._take(self._decoder.flush(), None)
        if reason is None and not parser.stopped and not parser.done:
            return None
        self._add(parser.flush())
        if self._logprobs is not None and reason is not None and not parser.stopped:
            self._logprobs.show_all()
        ended = "stop" if parser.stopped or parser.done else reason
        return "tool_calls" if ended == "stop" and parser.called else ended

    def _true_reason(self, reason: FinishReason | None) -> FinishReason | None:
        """`reason`, or "length" if the grammar was given up: such an answer ended early."""
        constraint = self.stream.request.constraint
        failed = isinstance(constraint, GrammarConstraint) and bool(constraint.failure)
        return "length" if reason in ("stop", "tool_calls") and failed else reason

    def _chunk(self) -> AnswerChunk:
        chunk = AnswerChunk(
            self._text,
            tuple(self._tokens),
            reasoning=self._reasoning,
            logprobs=self._logprobs.take() if self._logprobs is not None else (),
            index=self._index,
            tool_calls=tuple(self._calls),
            begun=None if self._begun else Usage(len(self.stream.request.prompt), 0, self.stream.reused),
        )
        self._begun = True
        self._text = self._reasoning = ""
        self._tokens.clear()
        self._calls.clear()
        return chunk
