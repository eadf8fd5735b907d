"""`bench serve`: many HTTP clients at once, and what the server adds to a token."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx

from together.desktop.bench.engine import Percentiles, percentiles
from together.desktop.bench.rings import token_times
from together.errors import BadSetting, NotServing, TogetherError, Unreachable
from together.head.loopback import Place, local_engine
from together.requests import Message
from together.sentences import template
from together.text.tokenizer import TextModel
from together.types import Plan

ANSWER_WITHIN = 600.0  # seconds without a byte


@dataclass(frozen=True, slots=True)
class ServeRequest:
    """What is asked: `requests` chats, `concurrent` at a time, `prompt` words each, answered with `new` tokens."""

    concurrent: int
    requests: int
    prompt: int
    new: int
    model: str | None = None  # where several are served


@dataclass(frozen=True, slots=True)
class ServeReport:
    """What came of it. A token's time is an answer's time after its first token over its other tokens."""

    model: str
    requests: int
    answered: int
    refused: dict[str, int]  # by status or error
    seconds: float
    prompt_tokens: int
    generated_tokens: int
    tokens_per_s: float
    first_token_ms: Percentiles
    per_token_ms: Percentiles
    request_ms: Percentiles


@dataclass(slots=True)
class Exchange:
    """One request: moments on the clock of `time.perf_counter`, and what was counted."""

    asked: float = 0.0
    first: float = 0.0
    ended: float = 0.0
    prompt_tokens: int = 0
    tokens: int = 0
    refusal: str = ""

    @property
    def first_ms(self) -> float:
        return (self.first - self.asked) * 1e3

    @property
    def per_token_ms(self) -> float:
        return (self.ended - self.first) * 1e3 / max(self.tokens - 1, 1)


async def bench_serve(url: str, request: ServeRequest) -> ServeReport:
    """Ask the server at `url`. Raises Unreachable where nobody answers."""
    async with http_client(url) as client:
        model = await served_model(client, request.model)
        places, run = asyncio.Semaphore(request.concurrent), secrets.token_hex(4)

        async def one(index: int) -> Exchange:
            words = f"{run} {index}: " + "How far does a hidden state travel? " * (request.prompt // 7 + 1)
            body = {"messages": [{"role": "user", "content": words}], "max_tokens": request.new, "model": model}
            async with places:
                return await exchange(client, "/v1/chat/completions", body)

        began = time.perf_counter()
        done = await asyncio.gather(*(one(index) for index in range(request.requests)))
        return report(model, done, time.perf_counter() - began)


def http_client(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    timeout = httpx.Timeout(10.0, read=ANSWER_WITHIN, pool=None)
    return httpx.AsyncClient(base_url=url, limits=limits, timeout=timeout, trust_env=False)


async def served_model(client: httpx.AsyncClient, wanted: str | None) -> str:
    """The wanted model, or the first one that is served."""
    try:
        models = (await client.get("/v1/models")).json()["data"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise Unreachable(
            "{url} does not answer as an OpenAI-compatible server: {error}", url=str(client.base_url), error=str(error)
        ) from error
    url = str(client.base_url)
    if not models:
        raise Unreachable("{url} serves no model; load one, then measure again", url=url)
    names = tuple(str(model["id"]) for model in models)
    if wanted is not None and wanted not in names:
        raise BadSetting("{url} serves {names:and}; {wanted} is none of them", url=url, names=names, wanted=wanted)
    return names[0] if wanted is None else wanted


async def exchange(client: httpx.AsyncClient, path: str, body: dict[str, object]) -> Exchange:
    """One streamed request that no end of text ends; its first token is the first event with text."""
    found = Exchange(time.perf_counter())
    body |= {"ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    try:
        async with client.stream("POST", path, json=body) as reply:
            if reply.status_code != 200:
                found.refusal = str(reply.status_code)
                return found
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    _note(found, json.loads(line.removeprefix("data: ")))
    except httpx.HTTPError as error:
        found.refusal = type(error).__name__
    return found


def _note(found: Exchange, chunk: dict[str, object]) -> None:
    now = time.perf_counter()
    if "error" in chunk:
        found.refusal = "error in the stream"
    usage = chunk.get("usage")
    if isinstance(usage, dict):
        found.prompt_tokens, found.tokens = usage["prompt_tokens"], usage["completion_tokens"]
    if has_text(chunk):
        found.first = found.first or now
        found.ended = now


def has_text(chunk: dict[str, object]) -> bool:
    """Whether an event of a stream brings text, or thoughts or a call."""
    choices = chunk.get("choices")
    return isinstance(choices, list) and any(_said(choice) for choice in choices)


def _said(choice: dict[str, object]) -> object:
    delta = choice.get("delta")
    said = delta.values() if isinstance(delta, dict) and "role" not in delta else (choice.get("text"),)
    return any(said)


def report(model: str, done: list[Exchange], seconds: float) -> ServeReport:
    good = [each for each in done if not each.refusal and each.first]
    generated = sum(each.tokens for each in good)
    return ServeReport(
        model=model,
        requests=len(done),
        answered=len(good),
        refused=dict(Counter(each.refusal or "no text" for each in done if each not in good)),
        seconds=seconds,
        prompt_tokens=sum(each.prompt_tokens for each in good),
        generated_tokens=generated,
        tokens_per_s=generated / seconds,
        first_token_ms=percentiles([each.first_ms for each in good]),
        per_token_ms=percentiles([each.per_token_ms for each in good if each.tokens > 1]),
        request_ms=percentiles([(each.ended - each.asked) * 1e3 for each in good]),
    )


# --- what the server adds -------------------------------------------------------------------------------------------

WARM = 2  # rounds that do not count


@dataclass(frozen=True, slots=True)
class Overhead:
    """Milliseconds to the first token and for each other one, medians over the rounds: with the server, and without."""

    rounds: int
    first_ms: float
    engine_first_ms: float
    per_token_ms: float
    engine_per_token_ms: float
    added_first_ms: float
    added_per_token_ms: float


async def bench_overhead(url: str, plan: Plan, home: Path, prompt: int, new: int, rounds: int) -> Overhead:
    """`plan` is the one that the app at `url` serves by. Raises NotServing for an answer that ends early."""
    folder = Path(plan.model.path)
    places = tuple(Place(stage.backend, stage.device, stage.layers) for stage in plan.stages)
    served, alone = [], []
    text = await asyncio.to_thread(TextModel.open, folder)
    async with (
        local_engine(folder, home, places, plan.dtype, 2 * prompt + 64 + new) as (engine, _),
        http_client(url) as client,
    ):
        for turn in range(rounds + WARM):
            ids = _question(text, turn, prompt)
            body: dict[str, object] = {"prompt": list(ids), "max_tokens": new, "temperature": 0}
            served.append(_complete(await exchange(client, "/v1/completions", body), new))
            asked = time.perf_counter()
            times = await token_times(engine, ids, new)
            alone.append(_complete(Exchange(asked, times[0], times[-1], tokens=len(times)), new))
    first, each = _medians(served[WARM:])
    engine_first, engine_each = _medians(alone[WARM:])
    return Overhead(rounds, first, engine_first, each, engine_each, first - engine_first, each - engine_each)


def _medians(done: list[Exchange]) -> tuple[float, float]:
    return median(each.first_ms for each in done), median(each.per_token_ms for each in done)


def _question(text: TextModel, turn: int, length: int) -> tuple[int, ...]:
    """About `length` tokens that a model answers with text at once; another beginning each time: nothing is reused."""
    words = f"{secrets.token_hex(4)} {turn}: what is the capital of France? "
    return text.prompt_ids([Message("user", words * (length // len(text.encode(words)) or 1))])


def _complete(found: Exchange, new: int) -> Exchange:
    if found.refusal or found.tokens != new:
        why = found.refusal or template("{tokens} of {new} tokens", tokens=found.tokens, new=new)
        raise NotServing("an answer ended early ({why}); try again", why=why)
    return found


def comparable(plan: Plan | None) -> Plan:
    """The plan that an app serves by. Raises NotServing or TogetherError where it cannot be compared."""
    if plan is None:
        raise NotServing("no model is loaded; load one, then measure again")
    if not Path(plan.model.path).is_dir():
        raise TogetherError("--overhead needs the app's model in a folder of this machine")
    return plan
