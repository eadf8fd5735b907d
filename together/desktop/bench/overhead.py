"""`bench serve --overhead`: what HTTP, JSON and text add to a token, against the engine alone. Knows no node.

The engine alone runs the same layers on stage processes of its own, in this process; both are asked in turn.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from together.cluster.loopback import Place, bare_ring
from together.desktop.bench.serve import ANSWER_WITHIN, Exchange, exchange
from together.engine.engine import Engine
from together.errors import NotServing, TogetherError
from together.requests import GenerateRequest, Message
from together.text.tokenizer import TextModel
from together.types import LayerRange, Sampling

WARM = 2  # rounds that do not count


@dataclass(frozen=True, slots=True)
class Overhead:
    """Milliseconds to the first token and for each other one, medians over the rounds: with the server, and without."""

    rounds: int
    first_ms: float
    engine_first_ms: float
    per_token_ms: float
    engine_per_token_ms: float

    @property
    def added_first_ms(self) -> float:
        return self.first_ms - self.engine_first_ms

    @property
    def added_per_token_ms(self) -> float:
        return self.per_token_ms - self.engine_per_token_ms


async def bench_overhead(url: str, plan: dict[str, Any], prompt: int, new: int, rounds: int) -> Overhead:
    """`plan` is the one that the app at `url` serves, as `/status` shows it. Raises NotServing for an early end."""
    timeout = httpx.Timeout(10.0, read=ANSWER_WITHIN)
    served, alone = [], []
    text = await asyncio.to_thread(TextModel.open, Path(plan["model"]["path"]))
    async with (
        _engine(plan, 2 * prompt + 64 + new) as engine,
        httpx.AsyncClient(base_url=url, timeout=timeout, trust_env=False) as client,
    ):
        for turn in range(rounds + WARM):
            ids = _question(text, turn, prompt)
            served.append(_complete(await _ask_server(client, ids, new), new))
            alone.append(_complete(await _ask_engine(engine, ids, new), new))
    return Overhead(
        rounds,
        median(each.first_ms for each in served[WARM:]),
        median(each.first_ms for each in alone[WARM:]),
        median(each.per_token_ms for each in served[WARM:]),
        median(each.per_token_ms for each in alone[WARM:]),
    )


def _question(text: TextModel, turn: int, length: int) -> tuple[int, ...]:
    """About `length` tokens that a model answers with text at once; another beginning each time: nothing is reused."""
    words = f"{secrets.token_hex(4)} {turn}: what is the capital of France? "
    return text.prompt_ids([Message("user", words * (length // text.count(words) or 1))])


async def _ask_server(client: httpx.AsyncClient, ids: tuple[int, ...], new: int) -> Exchange:
    body = {"prompt": list(ids), "max_tokens": new, "temperature": 0, "ignore_eos": True}
    return await exchange(client, "/v1/completions", body | {"stream_options": {"include_usage": True}})


async def _ask_engine(engine: Engine, ids: tuple[int, ...], new: int) -> Exchange:
    found = Exchange(time.perf_counter())
    async for tokens, _ in engine.submit(GenerateRequest(ids, Sampling(temperature=0.0), new, ignore_eos=True)):
        found.ended = time.perf_counter()
        found.first = found.first or found.ended
        found.tokens += len(tokens)
    return found


def _complete(found: Exchange, new: int) -> Exchange:
    if found.refusal or found.tokens != new:
        raise NotServing(f"an answer ended early ({found.refusal or f'{found.tokens} of {new} tokens'}); try again")
    return found


@asynccontextmanager
async def _engine(plan: dict[str, Any], context: int) -> AsyncIterator[Engine]:
    places = tuple(
        Place(stage["backend"], stage["device"], LayerRange(stage["layers"]["start"], stage["layers"]["stop"]))
        for stage in plan["stages"]
    )
    async with bare_ring(Path(plan["model"]["path"]), places, plan["dtype"], context) as ring:
        engine = Engine(ring.client, frozenset())
        loop = asyncio.create_task(engine.run())
        try:
            yield engine
        finally:
            engine.close()
            await asyncio.gather(loop, return_exceptions=True)


def plan_of(status: dict[str, Any]) -> dict[str, Any]:
    """The plan that an app serves by. Raises TogetherError where that cannot be compared."""
    plan: dict[str, Any] | None = status["serving"]["plan"]
    if plan is None:
        raise NotServing("no model is loaded; load one, then measure again")
    if not Path(plan["model"]["path"]).is_dir():
        raise TogetherError("--overhead needs the app's model in a folder of this machine")
    return plan
