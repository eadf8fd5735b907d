"""One stage process as its node sees it: started, followed, ended."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from together.cluster.witness import Witness
from together.cluster_types import Endpoint, StageState, StageStatus
from together.errors import TogetherError
from together.processes import end, lines, spawn
from together.ring.stage import Launch, StageEvent
from together.sentences import Sentence, say
from together.types import Fault

log = logging.getLogger(__name__)

# OpenMP's threads (GNU's, LLVM's) spin for milliseconds after each piece of work, and another stage or program that
# needs the core stalls the next piece: a small model on a busy machine of 2 cores took 76 ms a token instead of 8.
# A third of a millisecond is enough to bridge the gaps between a step's matrix products.
SHORT_WAITS = {"GOMP_SPINCOUNT": "20000", "KMP_BLOCKTIME": "0"}
FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")  # other signals are a process's own crash
LEAVE_WITHIN = 0.5  # seconds until a stage that stays is killed: it keeps nothing, and answers may wait for its end
SHOWN_EVERY = 0.2  # seconds: bytes come by the thousand pieces

# Gets calls for (bytes here, bytes to fetch) and for what it waits for; returns a folder.
Prepare = Callable[[Callable[[int, int], None], Callable[[str], None]], Awaitable[Path]]


async def ending(process: asyncio.subprocess.Process, witness: Witness, said: str) -> tuple[Sentence, Fault]:
    """How a process that is gone ended; `said` is its last line, if any."""
    code = process.returncode
    assert code is not None, "it is gone"
    if code >= 0 or os.name != "posix":
        return say("ended_code", exit=code, said=said[:300] or say("said_nothing")), Fault.OTHER
    name = signal_name(-code)
    if -code == signal.SIGKILL and (proof := await witness.out_of_memory(process.pid)):
        return say("ended_by_memory", signal=name, proof=proof), Fault.OUT_OF_MEMORY
    if name in FROM_OUTSIDE:
        return say("killed", signal=name), Fault.KILLED
    return say("ended_by_signal", signal=name), Fault.OTHER


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class StageProcess:
    """The life of one stage process; `changed` is called whenever `status` changes."""

    def __init__(self, launch: Launch, addresses: tuple[str, ...], changed: Callable[[], None]) -> None:
        order = launch.order
        self._launch = launch
        self._addresses = addresses
        self._changed = changed
        self._process: asyncio.subprocess.Process | None = None
        self._followers: asyncio.Task[None] | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._shown_at = 0.0  # event loop time
        self._last_words: deque[str] = deque(maxlen=20)
        self._starting = asyncio.Lock()  # a process that is just being made is waited for, then ended
        self._stopping = False
        self.status = StageStatus(
            ring=order.ring,
            slot=order.slot,
            head=order.head,
            model=order.model.name,
            total_layers=order.model.layers,
            layers=order.stage.layers,
            device=f"{order.stage.backend}/{order.stage.device}",
            state=StageState.LOADING,
            memory_bytes=order.stage.memory_bytes,
        )

    def begin(self, prepare: Prepare) -> None:
        """In the background: let `prepare` get the model's folder, then start. A failure shows in the status."""
        self._preparing = asyncio.create_task(self._prepare_and_start(prepare))

    async def start(self) -> None:
        """Start the process, unless `stop` was called. Raises OSError where the system gives no process."""
        async with self._starting:
            if self._stopping:
                return
            witness = Witness()
            try:
                self._process = await spawn("together.ring.stage", environment=SHORT_WAITS)
            except BaseException:
                witness.close()
                raise
            assert self._process.stdin is not None
            self._process.stdin.write(self._launch.line())
            self._followers = asyncio.create_task(self._follow(self._process, witness))
        self._update(pid=self._process.pid)

    async def stop(self) -> None:
        """End the process or its preparation; returns when it is gone and its memory is free."""
        self._stopping = True
        if self._preparing is not None:
            if not self._starting.locked():
                self._preparing.cancel()
            await asyncio.wait([self._preparing])
        async with self._starting:
            if self._process is not None:
                await end(self._process, LEAVE_WITHIN)
        if self._followers is not None:
            await self._followers

    def move(self, addresses: tuple[str, ...]) -> None:
        """Its machine has other addresses now; a stage listens wherever its node does."""
        self._addresses = addresses
        if self.status.endpoint is not None:
            self._update(endpoint=replace(self.status.endpoint, addresses=addresses))

    async def _prepare_and_start(self, prepare: Prepare) -> None:
        try:
            folder = await prepare(self._show_fetched, self._show_waiting)
            self._launch = replace(self._launch, folder=str(folder))
            self._show_waiting("")
            await self.start()
        except TogetherError as error:
            self._update(state=StageState.FAILED, cause=str(error))
        except OSError as error:
            self._update(state=StageState.FAILED, cause=str(say("not_started", error=str(error))))
        except Exception as error:  # the outermost edge: nobody awaits this task's result
            log.exception("a stage was not prepared")
            self._update(state=StageState.FAILED, cause=f"{type(error).__name__}: {error}")

    def _show_fetched(self, done: int, total: int) -> None:
        now = asyncio.get_running_loop().time()
        if done < total and now - self._shown_at < SHOWN_EVERY:
            return
        self._shown_at = now
        self._update(fetched_bytes=done, fetch_bytes=total)

    def _show_waiting(self, whom: str) -> None:
        if whom != self.status.waiting:
            self._update(waiting=whom)

    def _update(self, **values: object) -> None:
        self.status = replace(self.status, **values)  # type: ignore[arg-type]
        self._changed()

    async def _follow(self, process: asyncio.subprocess.Process, witness: Witness) -> None:
        watching = asyncio.create_task(witness.watch(process.pid))
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read_events(process))
                tasks.create_task(self._read_log(process))
            await process.wait()
            watching.cancel()
            if not self._stopping and self.status.state is not StageState.FAILED:
                said = next((line for line in reversed(self._last_words) if line.strip()), "")
                cause, fault = await ending(process, witness, said)
                self._update(state=StageState.FAILED, cause=str(cause), fault=fault)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            witness.close()

    async def _read_events(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in lines(process.stdout):
            if event := StageEvent.parse(line):
                self._obey(event)

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in lines(process.stderr):
            text = line.decode(errors="replace")
            self._last_words.append(text)
            log.info("stage %s: %s", self.status.slot, text)

    def _obey(self, event: StageEvent) -> None:
        if event.kind == "progress":
            self._update(progress=event.progress)
        elif event.kind == "ready":
            self._update(
                state=StageState.READY,
                progress=1.0,
                endpoint=Endpoint(self._addresses, event.port),
                capacity=event.capacity,
                block=event.block,
                rewind=event.rewind,
            )
        elif event.kind == "failed":
            self._update(state=StageState.FAILED, cause=event.cause, fault=event.fault)
        elif event.kind == "broken":  # the stage lives; its head decides
            self._update(cause=event.cause, broken_epoch=event.epoch)
