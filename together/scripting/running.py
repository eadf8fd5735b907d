"""A split model at work: its stage processes and the engine, in a thread, for callers in any other. Knows no split.

Whatever ends a script, the processes end: by `close`, at the interpreter's exit, or because their input closes when
this process dies.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue

from together.cluster.loopback import BareRing, Place, bare_ring
from together.engine.engine import Engine
from together.engine.stats import EngineStats
from together.errors import NotServing, RingBroken
from together.models.spec import ModelSpec
from together.requests import GenerateRequest, Piece
from together.scripting.placing import PartitionPlan
from together.scripting.thread import LOOK_EVERY, LoopThread, until_done
from together.text.answers import generate_text
from together.text.tokenizer import TextModel
from together.types import DTYPE_BYTES, StageState

Answers = SimpleQueue[Piece | BaseException | None]


class Running:
    """Loads at once, in `thread`, which belongs to it from then on. Raises LoadFailed."""

    def __init__(self, thread: LoopThread, folder: Path, spec: ModelSpec, text: TextModel, plan: PartitionPlan) -> None:
        self._thread = thread
        self._spec = spec
        self._text = text
        self._plan = plan
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._served: Future[None] = thread.submit(self._serve(folder))
        atexit.register(self.close)
        try:
            while not self._ready.wait(LOOK_EVERY):
                if self._served.done():
                    self._served.result()
        except BaseException:
            self.close()
            raise

    def pieces(self, request: GenerateRequest) -> Iterator[Piece]:
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
        self._text.close()
        self._thread.close()

    # --- in the loop's thread -----------------------------------------------------------------------------------------

    async def _serve(self, folder: Path) -> None:
        plan = self._plan
        places = tuple(Place(item.backend, item.device, item.layers) for item in plan.partitions)
        async with bare_ring(folder, places, plan.dtype, plan.context, plan.users) as ring:
            token_bytes = self._spec.hidden_size * DTYPE_BYTES[plan.dtype]
            self._engine = Engine(
                ring.client, self._text.eos, vocabulary=self._spec.vocab_size, token_bytes=token_bytes
            )
            watcher = asyncio.create_task(_watch(ring))
            stopper = asyncio.create_task(self._close_on_stop())
            self._ready.set()
            try:
                await self._engine.run()
            finally:
                watcher.cancel()
                stopper.cancel()

    async def _stats(self) -> EngineStats:
        return self._engine.stats()

    async def _close_on_stop(self) -> None:
        await self._stop.wait()
        self._engine.close()

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


def _next(answers: Answers, pump: Future[None]) -> Piece | BaseException | None:
    while True:
        try:
            return answers.get(timeout=LOOK_EVERY)
        except Empty:
            if pump.done() and answers.empty():
                raise NotServing("the model was closed; call partition again") from None


async def _watch(ring: BareRing) -> None:
    """A stage that died, or lost its neighbour, breaks the ring: only the processes' own reports say which and why."""
    while True:
        for index, stage in enumerate(ring.stages):
            if stage.status.state is StageState.FAILED:
                ring.client.fail(RingBroken(f"partition {index} on {stage.status.device}: {stage.status.cause}"))
        await asyncio.sleep(LOOK_EVERY)
