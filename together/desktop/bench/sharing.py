"""`bench serve --beside`: what a stream of one model loses while another model answers, over HTTP.

Alone and beside take turns, round by round, so a slow moment of the machine hits both.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

import httpx

from together.desktop.bench.engine import percentiles
from together.desktop.bench.serve import has_text, http_client, served_model
from together.errors import NotServing


@dataclass(frozen=True, slots=True)
class SharingRequest:
    """One stream of `model` with `new` tokens, alone and beside `streams` of another model, `rounds` times each."""

    beside: str
    streams: int
    prompt: int  # words
    new: int
    rounds: int
    model: str | None = None  # the first one


@dataclass(frozen=True, slots=True)
class SharingReport:
    """Medians over the rounds; ratios are medians of those within a round. Gaps are what a reader sees."""

    model: str
    beside: str
    streams: int
    rounds: int
    alone_tok_s: float
    beside_tok_s: float
    other_tok_s: float  # of all streams of the other model meanwhile
    speed: float  # beside over alone
    gap_ms: float  # the median one, alone
    alone_p95_ms: float
    beside_p95_ms: float
    p95: float  # beside over alone
    p95_of_gap: float  # the same over the median one, alone


@dataclass(slots=True)
class Spoken:
    """One answer: when text came."""

    at: list[float] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    def came(self) -> None:
        self.at.append(time.perf_counter())
        self.begun.set()

    @property
    def gaps_ms(self) -> list[float]:
        return [(after - before) * 1e3 for before, after in pairwise(self.at)]


@dataclass(frozen=True, slots=True)
class _Round:
    tok_s: float
    p50_ms: float
    p95_ms: float
    other_tok_s: float = 0.0


async def bench_sharing(url: str, request: SharingRequest) -> SharingReport:
    """Ask the server at `url`. Raises Unreachable, BadSetting for a model that it does not serve, NotServing."""
    async with http_client(url) as client:
        model, other = await served_model(client, request.model), await served_model(client, request.beside)
        alone: list[_Round] = []
        beside: list[_Round] = []
        await _measured(client, model, request)  # warm
        for turn in range(request.rounds):
            if turn % 2:
                beside.append(await _beside(client, model, other, request))
            alone.append(await _measured(client, model, request))
            if not turn % 2:
                beside.append(await _beside(client, model, other, request))
    pairs = list(zip(alone, beside, strict=True))
    return SharingReport(
        model=model,
        beside=other,
        streams=request.streams,
        rounds=request.rounds,
        alone_tok_s=median(each.tok_s for each in alone),
        beside_tok_s=median(each.tok_s for each in beside),
        other_tok_s=median(each.other_tok_s for each in beside),
        speed=median(both.tok_s / one.tok_s for one, both in pairs),
        gap_ms=median(each.p50_ms for each in alone),
        alone_p95_ms=median(each.p95_ms for each in alone),
        beside_p95_ms=median(each.p95_ms for each in beside),
        p95=median(both.p95_ms / one.p95_ms for one, both in pairs),
        p95_of_gap=median(both.p95_ms / one.p50_ms for one, both in pairs),
    )


async def _beside(client: httpx.AsyncClient, model: str, other: str, request: SharingRequest) -> _Round:
    async with _busy(client, other, request) as spoken:
        began, before = time.perf_counter(), sum(len(each.at) for each in spoken)
        found = await _measured(client, model, request)
        others = (sum(len(each.at) for each in spoken) - before) / (time.perf_counter() - began)
    return _Round(found.tok_s, found.p50_ms, found.p95_ms, others)


async def _measured(client: httpx.AsyncClient, model: str, request: SharingRequest) -> _Round:
    spoken = Spoken()
    await _speak(client, model, request.prompt, request.new, spoken)
    if len(spoken.at) < 3:
        raise NotServing("{model} answered with almost no text; try again", model=model)
    found = percentiles(spoken.gaps_ms)
    return _Round((len(spoken.at) - 1) / (spoken.at[-1] - spoken.at[0]), found.p50, found.p95)


@asynccontextmanager
async def _busy(client: httpx.AsyncClient, model: str, request: SharingRequest) -> AsyncIterator[list[Spoken]]:
    """Streams of a model that all speak, and do until the end."""
    spoken = [Spoken() for _ in range(request.streams)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_speak_on(client, model, request, each)) for each in spoken]
        for each in spoken:
            await each.begun.wait()
        yield spoken
        for task in tasks:
            task.cancel()


async def _speak_on(client: httpx.AsyncClient, model: str, request: SharingRequest, spoken: Spoken) -> None:
    """One answer after another, each with a prompt of its own."""
    while True:
        before = len(spoken.at)
        await _speak(client, model, request.prompt, request.new, spoken)
        if len(spoken.at) == before:
            raise NotServing("{model} answered without text; try again", model=model)


async def _speak(client: httpx.AsyncClient, model: str, prompt: int, new: int, spoken: Spoken) -> None:
    """One answer that no end of text ends; another prompt each time: nothing is reused."""
    words = f"{secrets.token_hex(4)}: " + "How far does a hidden state travel? " * (prompt // 7 + 1)
    body = {"messages": [{"role": "user", "content": words}], "model": model, "max_tokens": new}
    body |= {"ignore_eos": True, "stream": True}
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            raise NotServing("{model} refused a request ({status})", model=model, status=reply.status_code)
        async for line in reply.aiter_lines():
            if line.startswith("data: {") and has_text(json.loads(line.removeprefix("data: "))):
                spoken.came()
