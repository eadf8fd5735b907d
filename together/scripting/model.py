"""`partition`: a model split over this machine's devices, its engine in a thread of its own."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from os import PathLike
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Unpack

from together.engine.engine import Engine
from together.engine.stats import EngineStats
from together.errors import BrokenModel, NotServing
from together.head.loopback import Place, local_engine
from together.head.model import ModelHandle
from together.models.manifest import describe
from together.models.reading import units_here
from together.models.units import words
from together.requests import AnswerChunk, GenerateRequest
from together.scripting.placing import PartitionPlan
from together.scripting.strategy import Options, PartitionStrategy, Prompt, make_request, open_and_place, settings_of
from together.scripting.thread import LOOK_EVERY, LoopThread, until_done
from together.settings import Settings
from together.text.answers import generate_text
from together.text.tokenizer import TextModel
from together.weights.hub import fetch_units
from together.weights.store import Store

Answers = SimpleQueue[AnswerChunk | BaseException | None]


class Running:
    """Loads at once, in `thread`, which belongs to it from then on. Raises LoadFailed."""

    def __init__(self, thread: LoopThread, folder: Path, home: Path, text: TextModel, plan: PartitionPlan) -> None:
        self._thread = thread
        self._text = text
        self._plan = plan
        self._stop = asyncio.Event()
        self._engine: Engine
        self._ready = threading.Event()
        self._served: Future[None] = thread.submit(self._serve(folder, home))
        atexit.register(self.close)
        try:
            while not self._ready.wait(LOOK_EVERY):
                if self._served.done():
                    self._served.result()
        except BaseException:
            self.close()
            raise

    def pieces(self, request: GenerateRequest) -> Iterator[AnswerChunk]:
        """The answer as it comes; leaving early ends it. Raises what the engine raises, NotServing after `close`."""
        answers: Answers = SimpleQueue()
        pump = self._thread.submit(self._pump(request, answers))
        try:
            while (item := _next(answers, pump)) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            pump.cancel()

    def stats(self) -> EngineStats:
        """Raises NotServing after `close`."""
        return self._thread.run(self._stats())

    def close(self) -> None:
        """End the engine and every process; open answers end with NotServing. Harmless the second time."""
        atexit.unregister(self.close)
        if self._ready.is_set() and not self._served.done():
            self._thread.call(self._stop.set)
            until_done(self._served)
        self._text.template.close()
        self._thread.close()

    # --- in the loop's thread -----------------------------------------------------------------------------------------

    async def _serve(self, folder: Path, home: Path) -> None:
        plan = self._plan
        places = tuple(Place(item.backend, item.device, item.layers) for item in plan.partitions)
        eos = self._text.eos
        async with local_engine(folder, home, places, plan.dtype, plan.context, plan.users, eos) as (self._engine, _):
            self._ready.set()
            await self._stop.wait()

    async def _stats(self) -> EngineStats:
        return self._engine.stats()

    async def _pump(self, request: GenerateRequest, answers: Answers) -> None:
        try:
            async for piece in generate_text(self._engine, self._text, request):
                answers.put(piece)
            answers.put(None)
        except asyncio.CancelledError:
            answers.put(NotServing("the model was closed while it answered; call partition again"))
            raise
        except Exception as error:  # the outermost edge: whoever asked gets it, in the thread that asked
            answers.put(error)


def _next(answers: Answers, pump: Future[None]) -> AnswerChunk | BaseException | None:
    while True:
        try:
            return answers.get(timeout=LOOK_EVERY)
        except Empty:
            if pump.done() and answers.empty():
                raise NotServing("the model was closed; call partition again") from None


class PartitionedModel:
    """A loaded model. Any thread may ask, several at once; as a context manager it ends its processes at the end."""

    def __init__(self, plan: PartitionPlan, opened: ModelHandle, running: Running) -> None:
        self.plan = plan
        self.text = opened.text
        self.defaults = opened.defaults
        self._running = running

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
        return self._running.pieces(make_request(self.text, self.defaults.sampling, prompt, **options))

    def stats(self) -> EngineStats:
        """What runs and waits, tokens so far, and milliseconds per step, stage and link."""
        return self._running.stats()

    def close(self) -> None:
        """End the processes; their memory is free when this returns."""
        self._running.close()

    def __enter__(self) -> PartitionedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __str__(self) -> str:
        return str(self.plan)


def partition(model: str | PathLike[str], strategy: PartitionStrategy | None = None) -> PartitionedModel:
    """Load a model as the strategy says (None: as recommended), in one stage process per partition.

    `model` is a folder, a name that this machine knows, or org/name on the hub: what is missing is downloaded. Raises
    as `PartitionStrategy.plan` does, before anything is loaded, and LoadFailed.
    """
    strategy = strategy or PartitionStrategy()
    settings = settings_of(strategy)
    thread = LoopThread()
    try:
        opened, plan = thread.run(open_and_place(model, strategy, settings))
        thread.run(asyncio.to_thread(_bring, opened, settings))
        running = Running(thread, opened.folder.resolve(), settings.home_path, opened.text, plan)
    except BaseException:
        thread.close()
        raise
    return PartitionedModel(plan, opened, running)


def _bring(opened: ModelHandle, settings: Settings) -> None:
    """Fetch what a model of the hub lacks here. Raises BrokenModel for a folder of somebody's that lacks a part."""
    store, manifest = Store(settings.home_path), describe(opened.folder)
    here = units_here(opened.folder, manifest)
    missing = [unit for name, unit in manifest.units.items() if name not in here]
    if not missing:
        return
    if opened.folder.resolve() != store.folder(opened.spec.fingerprint).resolve():
        held = words(here)
        raise BrokenModel(f"{opened.folder} has only {held} of {opened.ref.name}; copy the rest, or name the model")
    fetch_units(opened.ref, missing, store)
