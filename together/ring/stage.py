"""The stage process: one shard at one place in a ring, behind one port.

Frames flow inlet → compute thread → outlet. Only the compute thread loads, steps and closes the shard; the event loop
moves bytes. Every frame is answered: one that cannot be computed travels on as a failure.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn, TextIO, TypeVar

from pydantic_core import to_json

from backends.base import NOTHING_SAID, Computing, LoadRequest, Shard, StepOutput, open_backend
from together.cluster_types import StageLink, StageOrder
from together.errors import EpochRefused, FrameRefused, NotAllowed, RingBroken, TogetherError, Unreachable
from together.jsonfile import decode_json
from together.models.form import form_title
from together.planning.memory import process_bytes
from together.processes import claim_stdout, leave_with_parent
from together.ring import rpc, wire
from together.ring.links import Arrival, Inlet, Inlets, Outlet
from together.ring.warm import orders
from together.sentences import Sentence, template
from together.trust.credentials import Credentials, Leaf, is_plain
from together.types import Batch, Failure, Fault, Frame, ModelRef, StageTiming, StreamKey, Threads

log = logging.getLogger(__name__)
T = TypeVar("T")

CHOOSE_WITHIN = 3.0  # seconds that a new epoch waits for the choice of threads; its first step waits longer
RESTS_AFTER = 3.0  # seconds without a frame until a stage says that it does not work
MOST_MISSED = 16  # epochs that a ring tried and this stage heard nothing of, as another one was out of reach
OUTBOUND = 2  # computed frames that wait for the link: the next step starts while the last is sent


def _said(model: ModelRef) -> Sentence:
    """A model with its form, for a person."""
    return template(
        "{name} ({form}, {start})", name=model.name, form=form_title(model.form), start=model.fingerprint[:8]
    )


@dataclass(frozen=True, slots=True)
class Launch:
    """How a node starts a stage: one line of JSON on the stage's standard input.

    `folder` holds the model, `home` is the app's own folder; the stage listens on one of `ports`, first to last, and
    speaks with its node's certificate, where that has one.
    """

    order: StageOrder
    folder: str
    home: str
    node_name: str
    host: str
    ports: tuple[int, int]
    leaf: Leaf | None = None

    @property
    def name(self) -> str:
        """What the certificate at the stage's port says; empty where that is plain."""
        return self.leaf.id if self.leaf and not is_plain(self.host) else ""

    def line(self) -> bytes:
        return to_json(self) + b"\n"


@dataclass(frozen=True, slots=True)
class StageEvent:
    """A stage's report to its node, a line of JSON. Which fields count depends on `kind`."""

    kind: str  # "progress", "ready", "placed", "working", "broken" (a link; it lives), "failed" (it cannot start)
    progress: float = 0.0
    cause: str = ""
    port: int = 0
    capacity: int = 0
    block: int = 1
    rewind: int | None = None
    shares: bool = False
    per_sequence: int = 0
    epoch: int = -1
    fault: Fault = Fault.OTHER
    computing: Computing = NOTHING_SAID
    threads: Threads | None = None
    working: bool = False

    @classmethod
    def parse(cls, line: bytes) -> StageEvent | None:
        """None for a line that is not an event: some library printed it."""
        try:
            return decode_json(line, cls)
        except ValueError:
            return None


class StepRunner:
    """Turns one incoming frame into the outgoing one; runs on the compute thread."""

    def __init__(
        self, shard: Shard, model_layers: int, node_name: str, fault_of: Callable[[BaseException], Fault]
    ) -> None:
        self._shard = shard
        self._last = shard.layers.stop == model_layers
        self._node_name = node_name
        self._fault_of = fault_of
        self._index = 0
        self._epoch = -1
        self._step = 0

    def __call__(self, arrival: Arrival, now: float) -> bytes:
        """`now` is the event loop's time at which the step left the queue."""
        began = time.perf_counter()
        frame = Frame(0, Batch())
        self._index = arrival.key.sender + 1
        try:
            frame = wire.FRAME.decode(arrival.data or b"")
            answer = frame if frame.failure else self._run(frame, arrival.key.epoch)
        except FrameRefused as error:
            answer = self._failure(frame, f"refused the frame: {error}")
        except Exception as error:  # the shard failed: the stage lives, and the head gets the cause
            log.exception("step %s failed", frame.step)
            fault = self._fault_of(error)
            answer = self._failure(frame, explain(error, fault), fault)
        compute_ms, wait_ms = (time.perf_counter() - began) * 1e3, (now - arrival.at) * 1e3
        timing = StageTiming(compute_ms, wait_ms, self._shard.sequences)
        return wire.FRAME.encode(replace(answer, timings=(*frame.timings, timing)))

    def _run(self, frame: Frame, epoch: int) -> Frame:
        self._begin(frame.step, epoch)
        self._shard.limit(share_of(frame, self._index))
        output = self._step_shard(frame)
        refused = {result.sequence for result in output.results if result.refusal}
        batch = frame.batch
        if refused:
            batch = replace(batch, rows=tuple(row for row in batch.rows if row.sequence not in refused))
        results = (*frame.results, *output.results)
        if not self._last:
            return Frame(frame.step, batch.onwards, output.activation, results, shares=frame.shares)
        return Frame(frame.step, Batch(), None, results)

    def _begin(self, step: int, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._step = epoch, 0
        if step <= self._step:
            raise FrameRefused("step {step} came after step {last}", step=step, last=self._step)

    def _step_shard(self, frame: Frame) -> StepOutput:
        before, self._step = self._step, frame.step
        try:
            return self._shard.step(frame.batch, frame.activation)
        except FrameRefused:
            self._step = before  # whatever number a refused frame has, the next one may be lower
            raise

    def _failure(self, frame: Frame, cause: str, fault: Fault = Fault.OTHER) -> Frame:
        return Frame(frame.step, Batch(), failure=Failure(self._node_name, self._index, cause, fault))


def share_of(frame: Frame, stage: int) -> int:
    """Percent of its processors that a stage may use for this frame."""
    return max(1, min(frame.shares[stage], 100)) if stage < len(frame.shares) else 100


def _ready(port: int, shard: Shard) -> StageEvent:
    return StageEvent(
        "ready",
        port=port,
        capacity=shard.capacity,
        block=shard.block,
        rewind=shard.rewind,
        shares=shard.shares,
        per_sequence=shard.per_sequence,
        computing=shard.computing,
    )


def fault_of(backend: str, error: BaseException) -> Fault:
    """The fault behind an exception of a stage on `backend`."""
    if isinstance(error, MemoryError):
        return Fault.OUT_OF_MEMORY
    with suppress(TogetherError):  # of a backend that cannot be imported
        return Fault.OUT_OF_MEMORY if open_backend(backend).is_out_of_memory(error) else Fault.OTHER
    return Fault.OTHER


def explain(error: BaseException, fault: Fault) -> str:
    """An exception as a failure's cause."""
    if fault is Fault.OUT_OF_MEMORY:
        return f"ran out of memory ({str(error).splitlines()[0] if str(error) else 'no details'})"
    return str(error) if isinstance(error, TogetherError) else f"{type(error).__name__}: {error}"


class Stage:
    """The process's event loop side."""

    def __init__(self, launch: Launch, emit: Callable[[StageEvent], None]) -> None:
        self._launch = launch
        self._order = launch.order
        self._credentials = Credentials.given(launch.leaf)
        self._emit = emit
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._shard: Shard | None = None
        self._choosing: asyncio.Task[None] | None = None
        self._inlet = Inlet(self._order.ring)
        self._outlet: Outlet | None = None
        self._linked = asyncio.Event()
        self._working = False  # as its node knows
        self._resting: asyncio.TimerHandle | None = None
        self._outbound: asyncio.Queue[tuple[StreamKey, bytes]] = asyncio.Queue(OUTBOUND)

    async def run(self) -> None:
        """Load, report, and serve until the node ends the process."""
        inlets = Inlets()
        inlets.add(self._inlet)
        calls = rpc.unary_by({rpc.CONNECT: self._connect}) | rpc.unary({rpc.ECHO: rpc.echo})
        server = rpc.make_server({rpc.PUSH: inlets.handler(), **calls})
        first, last = self._launch.ports
        port = rpc.bind(server, self._launch.host, range(first, last + 1), self._credentials)
        shard = self._shard = await self._on_thread(self._load)
        kind = partial(fault_of, self._order.stage.backend)
        runner = StepRunner(shard, self._order.model.layers, self._launch.node_name, kind)
        await server.start()
        self._emit(_ready(port, shard))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._compute(runner))
            tasks.create_task(self._send())

    async def _on_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _load(self) -> Shard:
        plan = self._order.stage
        request = LoadRequest(
            folder=Path(self._launch.folder),
            layers=plan.layers,
            device=plan.device,
            dtype=self._order.dtype,
            memory_bytes=max(plan.memory_bytes - process_bytes(plan.backend), 0),
            home=Path(self._launch.home),
            progress=lambda fraction: self._emit(StageEvent("progress", progress=fraction)),
            exact=self._order.exact,
            stretched=plan.stretched,
        )
        return open_backend(plan.backend).load(request)

    async def _connect(self, link: StageLink, peer: rpc.Peer) -> None:
        """Join an epoch: accept its stream, and open the one to the next stage or to the head.

        Raises RingBroken, and NotAllowed for everybody but the head that loaded this stage.
        """
        if not peer.speaks_for(self._order.head):
            raise NotAllowed("this stage was loaded by another head, and takes its place for that one alone")
        peer.require_known(link.next)
        if link.ring != self._order.ring:
            own = self._order.ring
            raise FrameRefused("this stage belongs to ring {own}, not {ring}", own=own, ring=link.ring)
        if link.model.key != self._order.model.key:  # two checkpoints or two forms in one ring would answer nonsense
            held, wanted = _said(self._order.model), _said(link.model)
            raise FrameRefused(
                "this stage has {held}, and the ring is of {wanted}; load it again", held=held, wanted=wanted
            )
        last = max(self._inlet.key.epoch, self._order.epoch)
        if link.epoch > last + MOST_MISSED:  # whoever burns all epochs would keep the ring from its next one for ever
            raise EpochRefused("epoch {epoch} is too far from {last}, the last one here", epoch=link.epoch, last=last)
        self._inlet.expect(link.epoch, link.index - 1, link.previous)
        await self._share(link.sharing)
        old, self._outlet = self._outlet, None
        self._linked.clear()
        if old is not None:
            await old.close()
        try:
            self._outlet = await Outlet.open(link.next, StreamKey(link.ring, link.epoch, link.index), self._credentials)
        except Unreachable as error:  # would read as if this stage were out of reach
            raise RingBroken("it cannot reach the next stage: {error}", error=error.sentence) from error
        self._linked.set()

    async def _share(self, stages: int) -> None:
        """Before any step of the new epoch, and after the one that may run now. Raises what a step raises."""
        self._choosing = asyncio.create_task(self._choose(stages))
        done, _ = await asyncio.wait([self._choosing], timeout=CHOOSE_WITHIN)
        for task in done:
            task.result()

    async def _choose(self, stages: int) -> None:
        assert self._shard is not None, "it listens once it has loaded"
        self._emit(StageEvent("placed", threads=await self._on_thread(self._shard.share, stages)))

    async def _compute(self, runner: StepRunner) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            arrival = await self._inlet.next()
            if arrival.data is None:  # the sender may not notice if it had sent everything
                cause = "the stream from the previous stage ended"
                self._emit(StageEvent("broken", cause=cause, epoch=arrival.key.epoch))
                continue
            self._tell_work()
            answer = await self._on_thread(runner, arrival, clock())
            self._resting = asyncio.get_running_loop().call_later(RESTS_AFTER, self._tell_rest)
            await self._outbound.put((arrival.key, answer))

    def _tell_work(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
        if not self._working:
            self._working = True
            self._emit(StageEvent("working", working=True))

    def _tell_rest(self) -> None:
        self._working = False
        self._emit(StageEvent("working"))

    async def _send(self) -> None:
        while True:
            key, data = await self._outbound.get()
            await self._linked.wait()
            if key != self._inlet.key or self._outlet is None:
                continue  # the answer belongs to an older epoch
            try:
                await self._outlet.send(data)
            except RingBroken as error:
                if key != self._inlet.key:
                    continue  # a new epoch closed the link
                self._linked.clear()
                self._emit(StageEvent("broken", cause=str(error), epoch=key.epoch))


def main() -> NoReturn:
    """Entry point of the process that a node starts: `python -m together.ring.stage`."""
    events = claim_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the node, which ends its stages
    named = logging.getLevelNamesMapping().get(os.environ.get("TOGETHER_LOG_LEVEL", "").upper(), logging.WARNING)
    logging.basicConfig(level=min(logging.WARNING, named), stream=sys.stderr)  # its node notes it, and shows nothing
    launch = decode_json(orders(), Launch)
    leave_with_parent()
    try:
        asyncio.run(Stage(launch, lambda event: _write(events, event)).run())
    except Exception as error:  # outermost edge: the node shows the cause, the log has the traceback
        log.debug("stage failed", exc_info=True)
        first = _first(error)
        fault = fault_of(launch.order.stage.backend, first)
        _write(events, StageEvent("failed", cause=explain(first, fault), fault=fault))
        os._exit(1)
    os._exit(0)


def _write(stream: TextIO, event: StageEvent) -> None:
    stream.write(to_json(event).decode() + "\n")
    stream.flush()


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    main()
