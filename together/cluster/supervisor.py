"""One stage process as its node sees it: started, followed, ended, and why it ended.

Only Linux can prove that a process was killed for lack of memory. There are two proofs. The kernel's log names each
process that it kills for that; often only root may read it. A cgroup counts such kills without names, so its count is
believed only where no other member of the cgroup went missing within the last second; a member that came and was killed
within that second cannot be told apart. A count for the whole machine proves nothing: it rises with every such kill.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from backends.base import NOTHING_SAID
from together.cluster.cgroups import CgroupTally, count_of
from together.cluster_types import Endpoint, StageState, StageStatus
from together.errors import TogetherError
from together.processes import end, lines, spawn
from together.ring.stage import Launch, StageEvent
from together.sentences import NOTHING, Sentence, say
from together.types import Fault
from together.weights.part import Converting, Progress, Waiting

log = logging.getLogger(__name__)

# OpenMP's threads spin for milliseconds after each piece of work, which stalls whoever needs the core: a token took 76
# ms instead of 8. Linux gives torch large pages only where it asks: weights in small ones take a sixth longer to read.
COMPUTING = {"GOMP_SPINCOUNT": "20000", "KMP_BLOCKTIME": "0", "THP_MEM_ALLOC_ENABLE": "1"}
FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")  # other signals are a process's own crash
LEAVE_WITHIN = 0.5  # seconds until a stage that stays is killed: it keeps nothing, and answers may wait for its end
SHOWN_EVERY = 0.2  # seconds: bytes come by the thousand pieces
LOOK_EVERY = 0.5  # seconds between two looks at the cgroup
LOG_WITHIN = 0.5  # seconds: the kernel kills first and logs then
KERNEL_LOG = "/dev/kmsg"
_FIRST_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO; the log's process ids are those of this namespace
_KILLED = re.compile(rb"(?:^|: )Killed process (\d+) \(")

# Gets calls for (bytes here, bytes to fetch), for what it waits for and whether it converts; returns a folder.
Prepare = Callable[[Progress, Waiting, Converting], Awaitable[Path]]


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


@dataclass(frozen=True, slots=True)
class Started:
    """A stage process that has no orders yet, and who watches it."""

    process: asyncio.subprocess.Process
    witness: Witness


async def start_process(backend: str) -> Started:
    """A new one; any backend may be ordered. Raises OSError where the system gives no process."""
    witness = Witness()
    try:
        return Started(await spawn("together.ring.stage", environment=COMPUTING), witness)
    except BaseException:
        witness.close()
        raise


class StageProcess:
    """The life of one stage process; `changed` is called whenever `status` changes."""

    def __init__(
        self,
        launch: Launch,
        addresses: tuple[str, ...],
        changed: Callable[[], None],
        start: Callable[[str], Awaitable[Started]] = start_process,
    ) -> None:
        """`start` gives a process for a backend."""
        self.launch, order = launch, launch.order
        self._addresses = addresses
        self._changed = changed
        self._start_process = start
        self._process: asyncio.subprocess.Process | None = None
        self._followers: asyncio.Task[None] | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._shown_at = 0.0  # event loop time
        self._last_words: deque[str] = deque(maxlen=20)
        self._starting = asyncio.Lock()  # a process that is just being made is waited for, then ended
        self._stopping = False
        self.computing = NOTHING_SAID  # known once READY; its threads are a token's, once it has a place in its ring
        self.working = False  # frames came lately
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
            started = await self._start_process(self.launch.order.stage.backend)
            self._process = started.process
            assert self._process.stdin is not None
            self._process.stdin.write(self.launch.line())
            self._followers = asyncio.create_task(self._follow(self._process, started.witness))
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
            folder = await prepare(self._show_fetched, self._show_waiting, self._show_converting)
            self.launch = replace(self.launch, folder=str(folder))
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

    def _show_converting(self, converting: bool) -> None:
        self._update(converting=converting)

    def _show_waiting(self, whom: str) -> None:
        if whom != self.status.waiting:
            self._update(waiting=whom)

    def _update(self, **values: object) -> None:
        before, now = self.status, replace(self.status, **values)  # type: ignore[arg-type]
        self.status = now
        if now.state is not before.state:
            said = f": {now.cause}" if now.cause else ""
            log.info("stage %d, layers %s of %s: %s%s", now.slot, now.layers, now.model, now.state, said)
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
            self.computing = event.computing
            self._update(
                state=StageState.READY,
                progress=1.0,
                endpoint=Endpoint(self._addresses, event.port, self.launch.name),
                capacity=event.capacity,
                block=event.block,
                rewind=event.rewind,
                shares=event.shares,
                per_sequence=event.per_sequence,
            )
        elif event.kind == "placed":
            if event.threads is not None:
                self.computing = replace(self.computing, threads=event.threads.few)
            self._update(threads=event.threads)
        elif event.kind == "failed":
            self._update(state=StageState.FAILED, cause=event.cause, fault=event.fault)
        elif event.kind == "working":
            self.working = event.working
        elif event.kind == "broken":  # the stage lives; its head decides
            self._update(cause=event.cause, broken_epoch=event.epoch)


# --- lack of memory ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Witness:
    """Watches one process. Make it before the process starts, `close` it after."""

    _log: KernelLog | None = field(default_factory=lambda: KernelLog.open())
    _machine: int | None = field(default_factory=lambda: count_of(Path("/proc/vmstat")))
    _looks: deque[CgroupTally] = field(default_factory=lambda: deque(maxlen=2))  # the newest may be of its last moment

    async def watch(self, pid: int) -> None:
        """Keep a fresh look at the process's cgroup; runs until cancelled, or returns where the log is enough."""
        while self._log is None and sys.platform == "linux":
            if (look := CgroupTally.of(pid)) is not None:
                self._looks.append(look)
            await asyncio.sleep(LOOK_EVERY)

    async def out_of_memory(self, pid: int) -> Sentence:
        """The proof that the process, which is gone, was killed for lack of memory; NOTHING without one."""
        if self._machine is not None and count_of(Path("/proc/vmstat")) == self._machine:
            return NOTHING  # no process of the whole machine was killed for it
        if self._log is not None:
            return say("kernel_log") if await self._log.names(pid) else NOTHING
        return say("cgroup_count") if any(look.proves(pid) for look in self._looks) else NOTHING

    def close(self) -> None:
        if self._log is not None:
            self._log.close()


@dataclass(slots=True)
class KernelLog:
    """The kernel's messages from now on."""

    _file: int
    _killed: set[int] = field(default_factory=set)

    @classmethod
    def open(cls) -> KernelLog | None:
        """None where it may not be read, or where process ids here are others than in it, as in a container."""
        try:
            if sys.platform != "linux" or os.readlink("/proc/self/ns/pid") != _FIRST_PID_NAMESPACE:
                return None
            file = os.open(KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return None
        os.lseek(file, 0, os.SEEK_END)
        return cls(file)

    async def names(self, pid: int) -> bool:
        """Whether the kernel says that it killed this process, which is gone, for lack of memory."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + LOG_WITHIN
        self._read()
        while pid not in self._killed and clock() < deadline:
            await asyncio.sleep(0.05)
            self._read()
        return pid in self._killed

    def close(self) -> None:
        os.close(self._file)

    def _read(self) -> None:
        while True:
            try:
                head, _, message = os.read(self._file, 8192).partition(b";")
            except BlockingIOError:
                return
            except BrokenPipeError:  # older messages made room for newer ones, and those count
                continue
            from_kernel = int(head.split(b",")[0]) < 8  # else a program wrote it
            if from_kernel and (found := _KILLED.search(message)):
                self._killed.add(int(found[1]))
