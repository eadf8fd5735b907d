"""Texts as scores: how likely a model finds each of their tokens after those before it, window by window."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import nan

from together.engine.engine import Engine
from together.errors import BadRequest
from together.requests import (
    AnswerChunk,
    CompletionRequest,
    GenerateRequest,
    Owner,
    Scored,
    ScoreRequest,
    TextScore,
    TokenLogprob,
    Usage,
)
from together.text.answers import Chunks, prompt_ids
from together.text.tokenizer import TextModel


async def score_text(engine: Engine, model: TextModel, request: ScoreRequest) -> TextScore:
    """The scores of a text; cancelling it ends it on every stage, too.

    Each window starts with the begin token, if the model wants one. Raises BadRequest for a text without a token to
    score, and for a window or stride that cannot be; QueueFull, RingBroken and NotServing as an answer does.
    """
    window, stride = _sizes(engine, request)
    engine.check_room()
    begin, ids = model.begin, await _ids(model, request.text)
    if ids[: len(begin)] == begin:
        ids = ids[len(begin) :]
    if len(ids) + len(begin) < 2:
        few = "the text is a single token; give more words" if ids else "the text is empty; give some words"
        raise BadRequest(few, "text")
    cuts = list(windows(len(ids), window - len(begin), stride, first=0 if begin else 1))
    scores: list[float] = []
    for cut in cuts:
        prompt = (*begin, *ids[cut.start : cut.stop])
        scores += await _scores(engine, prompt, len(begin) + cut.scored - cut.start, request.owner)
    first, scored = ids[: len(ids) - len(scores)], ids[len(ids) - len(scores) :]
    words = [model.token_bytes.of(token) for token in scored]
    tokens = tuple(Scored(*each) for each in zip(scored, words, scores, strict=True))
    return TextScore(b"".join(map(model.token_bytes.of, first)), tokens, window, stride, len(cuts))


async def score_prompts(engine: Engine, model: TextModel, request: CompletionRequest) -> Chunks:
    """Each prompt as a choice that adds nothing to it: its text and the log-probabilities of its tokens.

    Raises as `answer_prompts` does, also for a prompt that is longer than the context.
    """
    engine.check_room()
    try:
        prompts = [await prompt_ids(engine, model, prompt) for prompt in request.prompts]
        for place, ids in enumerate(prompts):
            scores = [nan, *await _scores(engine, ids, 1, request.owner)]
            chunk = _echo(model, ids, scores)
            for choice in range(request.choices):
                yield replace(chunk, index=place * request.choices + choice)
    except BadRequest as error:
        error.param = "prompt"
        raise


def _echo(model: TextModel, ids: Sequence[int], scores: Sequence[float]) -> AnswerChunk:
    decoder, text, tokens = getincrementaldecoder("utf-8")("replace"), "", list[TokenLogprob]()
    for token, score in zip(ids, scores, strict=True):
        data = model.token_bytes.of(token)
        tokens.append(TokenLogprob(Scored(token, data, score), offset=len(text)))
        text += decoder.decode(data)
    return AnswerChunk(text + decoder.decode(b"", final=True), (), "length", Usage(len(ids)), logprobs=tuple(tokens))


@dataclass(frozen=True, slots=True)
class TextWindow:
    """The tokens of a text that the model sees at once, of which those from `scored` on are scored."""

    start: int
    stop: int
    scored: int


def windows(count: int, size: int, stride: int, first: int) -> Iterator[TextWindow]:
    """Windows of at most `size` tokens, `stride` apart, that together score the tokens from `first` to `count` once."""
    start, scored = 0, first
    while scored < count:
        stop = min(start + size, count)
        yield TextWindow(start, stop, scored)
        start, scored = start + stride, stop


def _sizes(engine: Engine, request: ScoreRequest) -> tuple[int, int]:
    """Window and stride in tokens."""
    most = engine.context - 1
    window = most if request.window is None else request.window
    if not 2 <= window <= most:
        raise BadRequest("window must be from 2 to {most} tokens, not {window}", "window", most=most, window=window)
    stride = window // 2 if request.stride is None else request.stride
    if not 1 <= stride < window:
        wrong = "stride must be from 1 to {most} tokens, not {stride}"
        raise BadRequest(wrong, "stride", most=window - 1, stride=stride)
    return window, stride


async def _ids(model: TextModel, text: str | tuple[int, ...]) -> tuple[int, ...]:
    return await model.encode_prompt(text) if isinstance(text, str) else text


async def _scores(engine: Engine, prompt: tuple[int, ...], score_from: int, owner: Owner) -> list[float]:
    stream = engine.submit(GenerateRequest(prompt, max_tokens=0, score_from=score_from, owner=owner))
    try:
        return [score async for tokens in stream for score in tokens.scores]
    finally:
        stream.cancel()
