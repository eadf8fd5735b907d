"""`partition`: a model in stage processes on this machine, and what a script asks of it. Knows no planner."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from os import PathLike
from types import TracebackType
from typing import Unpack

from together.engine.stats import EngineStats
from together.errors import BrokenModel
from together.head.model import Opened
from together.models.manifest import describe
from together.models.reading import units_here
from together.models.units import words
from together.requests import Piece
from together.scripting.options import Options, Prompt, make_request
from together.scripting.placing import PartitionPlan
from together.scripting.running import Running
from together.scripting.strategy import PartitionStrategy, open_and_place, settings_of
from together.scripting.thread import LoopThread
from together.settings import Settings
from together.weights.hub import fetch_units
from together.weights.store import Store


class PartitionedModel:
    """A loaded model. Any thread may ask, several at once; as a context manager it ends its processes at the end."""

    def __init__(self, plan: PartitionPlan, opened: Opened, running: Running) -> None:
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

    def pieces(self, prompt: Prompt, **options: Unpack[Options]) -> Iterator[Piece]:
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
        running = Running(thread, opened.folder.resolve(), opened.spec, opened.text, plan)
    except BaseException:
        thread.close()
        raise
    return PartitionedModel(plan, opened, running)


def _bring(opened: Opened, settings: Settings) -> None:
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
