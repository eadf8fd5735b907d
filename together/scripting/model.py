"""`partition`: a model split over this machine's devices, its engine in a thread of its own."""

from __future__ import annotations

import asyncio
import atexit
import secrets
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict, Unpack

from together.cluster.claims import Claim, claiming, pool_of_name
from together.engine.engine import Engine
from together.engine.stats import EngineStats
from together.errors import BadRequest, BrokenModel, NotServing
from together.head.loopback import Place, local_engine
from together.head.plan import ModelHandle
from together.models.form import PUBLISHED
from together.models.manifest import describe
from together.models.reading import units_here
from together.models.units import Unit, words
from together.requests import AnswerChunk, GenerateRequest, Message, ScoreRequest, TextScore
from together.sampling import validate
from together.scripting.strategy import PartitionPlan, PartitionStrategy, open_and_place, settings_of
from together.scripting.thread import LoopThread
from together.settings import Settings
from together.text.answers import generate_text
from together.text.scoring import score_text
from together.types import ModelRef
from together.weights.hub import fetch_units
from together.weights.room import CacheRoom, cache_limit
from together.weights.store import Store

Prompt = str | Sequence[Message | Mapping[str, str]]

_WHOLE = ("max_tokens", "top_k", "seed")
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


class Options(TypedDict, total=False):
    """An option that is left out is as the model's author set it; `max_tokens` is then as many as the context holds.

    `temperature` 0 is greedy; the same `seed` gives the same answer.
    """

    max_tokens: int | None
    stop: str | Sequence[str]
    ignore_eos: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None


class PartitionedModel:
    """A loaded model. Any thread may ask, several at once; as a context manager it ends its processes at the end."""

    def __init__(self, plan: PartitionPlan, opened: ModelHandle, engine: Engine, thread: LoopThread) -> None:
        self.plan = plan
        self.text = opened.text
        self.defaults = opened.defaults
        self._engine = engine
        self._thread = thread
        atexit.register(self.close)

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> str:
        """The whole answer to a question, or to a conversation of {"role": …, "content": …}. Options: see `Options`.

        Raises BadRequest (ContextTooLong), QueueFull, RingBroken when a process died, NotServing after `close`.
        """
        return "".join(self.stream(prompt, **options))

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Iterator[str]:
        """The answer's text as it comes; leaving the loop early ends it. Raises as `generate` does."""
        return (piece.text for piece in self.pieces(prompt, **options))

    def pieces(self, prompt: Prompt, **options: Unpack[Options]) -> Iterator[AnswerChunk]:
        """As `stream`, with token ids, and in the last piece why it ended, token counts and times."""
        answer = generate_text(self._engine, self.text, self._request(prompt, options))
        try:
            while (piece := self._thread.run(lambda: anext(answer, None))) is not None:
                yield piece
        finally:
            with suppress(NotServing):
                self._thread.submit(answer.aclose)

    def score(self, text: str, window: int | None = None, stride: int | None = None) -> TextScore:
        """The log-probability of every token of a text, and its perplexity.

        A text longer than `window` tokens (None: the context) is scored in windows, `stride` tokens apart (None: half a
        window). Raises BadRequest, QueueFull, RingBroken when a process died, NotServing after `close`.
        """
        return self._thread.run(lambda: score_text(self._engine, self.text, ScoreRequest(text, window, stride)))

    def stats(self) -> EngineStats:
        """What runs and waits, tokens so far, and milliseconds per step, stage and link."""

        async def stats() -> EngineStats:
            return self._engine.stats()

        return self._thread.run(stats)

    def close(self) -> None:
        """End the processes; their memory is free when this returns. Open answers end with NotServing."""
        atexit.unregister(self.close)
        self._thread.close()
        self.text.template.close()

    def __enter__(self) -> PartitionedModel:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __str__(self) -> str:
        return str(self.plan)

    def _request(self, prompt: Prompt, options: Options) -> GenerateRequest:
        """By the model's own template; its author's values hold where `options` are silent. Raises BadRequest."""
        for name, value in options.items():
            _check(name, value)
        given: dict[str, Any] = {name: value for name, value in options.items() if name in (*_NUMBERS, "top_k")}
        seed, stop = options.get("seed"), options.get("stop", ())
        bias = tuple(options.get("logit_bias", {}).items())
        given |= {"logit_bias": bias, "seed": secrets.randbits(63) if seed is None else seed}
        sampling = replace(self.defaults.sampling, **given)
        validate(sampling)
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        ids = self.text.prompt_ids(_messages(prompt))
        return GenerateRequest(ids, sampling, options.get("max_tokens"), stops, options.get("ignore_eos", False))


def partition(model: str | PathLike[str], strategy: PartitionStrategy | None = None) -> PartitionedModel:
    """Load a model as the strategy says (None: as recommended), in one stage process per partition.

    `model` is a folder, a name that this machine knows, or org/name on the hub: what is missing is downloaded. Raises
    as `PartitionStrategy.plan` does, before anything is loaded, and LoadFailed.
    """
    how = strategy or PartitionStrategy()
    settings, thread = settings_of(how), LoopThread()
    try:
        opened, plan = thread.run(lambda: open_and_place(model, how, settings))
        room = CacheRoom(settings.home_path, cache_limit(settings))
        thread.enter(_held(room, opened.ref.key))
        _bring(opened, room, thread)
        engine = thread.enter(_engine(opened, plan, settings))
    except BaseException:
        thread.close()
        raise
    return PartitionedModel(plan, opened, engine, thread)


@asynccontextmanager
async def _engine(opened: ModelHandle, plan: PartitionPlan, settings: Settings) -> AsyncIterator[Engine]:
    """Other programs of ours on this machine know meanwhile what the partitions were granted."""
    places = tuple(Place(item.backend, item.device, item.layers) for item in plan.partitions)
    claims = [Claim(pool_of_name(item.device), item.memory_bytes) for item in plan.partitions]
    sizes = plan.dtype, plan.context, plan.users
    with claiming(settings, Path(sys.argv[0]).name or "python", claims) as say_pids:
        ring = local_engine(
            opened.folder.resolve(), settings.home_path, places, *sizes, opened.text.eos, exact=opened.exact
        )
        async with ring as (engine, local):
            say_pids([stage.status.pid for stage in local.stages])
            yield engine


@asynccontextmanager
async def _held(room: CacheRoom, key: str) -> AsyncIterator[None]:
    """No node of this machine lets go of the model meanwhile."""
    lock = await asyncio.to_thread(room.hold, key)
    try:
        yield
    finally:
        lock.release()


def _bring(opened: ModelHandle, room: CacheRoom, thread: LoopThread) -> None:
    """Fetch what a model of the hub lacks here, and convert what a form of it lacks.

    Raises BrokenModel for a folder of somebody's that lacks a part, DiskFull or LoadFailed.
    """
    ref, plain = opened.ref, Path(opened.ref.path)
    if not ref.form:
        _fetch(ref, opened.folder, room, thread)
    elif missing := _missing(opened.folder):
        need = sum(unit.size for unit in missing)
        _fetch(replace(ref, form=PUBLISHED), plain, room, thread, beside=need)
        thread.run(lambda: room.convert(plain, ref.key, missing))


def _fetch(model: ModelRef, folder: Path, room: CacheRoom, thread: LoopThread, *, beside: int = 0) -> None:
    """Where the cache has room for it, and for `beside` bytes of what is made of it."""
    store, missing = Store(room.home), _missing(folder)
    if not missing:
        return
    if folder.resolve() != store.folder(model.key).resolve():
        raise BrokenModel(
            "{folder} has only {held} of {model}; copy the rest, or name the model",
            folder=str(folder),
            held=words(units_here(folder, describe(folder))),
            model=model.name,
        )
    thread.run(lambda: room.fit(model.key, missing, beside=beside))
    fetch_units(model, missing, store)


def _missing(folder: Path) -> list[Unit]:
    manifest = describe(folder)
    here = units_here(folder, manifest)
    return [unit for name, unit in manifest.units.items() if name not in here]


def _check(name: str, value: object) -> None:
    """Raises BadRequest for an option that does not exist, or a value of another type."""
    if name not in Options.__annotations__:
        known = tuple(Options.__annotations__)
        raise BadRequest("there is no option {name!r}; choose among {known}", name, name=name, known=known)
    wrong = ""
    if name in _WHOLE and value is not None and type(value) is not int:
        wrong = "{name} must be a whole number, not {value}"
    elif name in _NUMBERS and type(value) not in (int, float):
        wrong = "{name} must be a number, not {value}"
    elif name == "logit_bias" and not isinstance(value, Mapping):
        wrong = "{name} maps token ids to numbers, as {{42: -5.0}}, not {value}"
    elif name == "stop":
        texts = [value] if isinstance(value, str) else value
        if not (isinstance(texts, Sequence) and all(isinstance(text, str) and text for text in texts)):
            wrong = "{name} must be a text or several, none of them empty"
    if wrong:
        raise BadRequest(wrong, name, name=name, value=repr(value))


def _messages(prompt: Prompt) -> list[Message]:
    if isinstance(prompt, str):
        return [Message("user", prompt)]
    return [_message(index, turn) for index, turn in enumerate(prompt)]


def _message(index: int, turn: Message | Mapping[str, str]) -> Message:
    match turn:
        case Message():
            return turn
        case {"role": str(role), "content": str(content)}:
            return Message(role, content)
    raise BadRequest(
        "messages.{number} must have a role and a content, both texts, not {turn}",
        "messages",
        number=index,
        turn=repr(turn),
    )
