"""A model's chat templates, compiled and rendered in one kept child process that is watched. Knows no conversation.

Threads alone, no event loop: a script asks from any thread, a head waits for the future. Requests go to the child one
by one, in order. A request that takes too much time or memory ends with the child, alone; the next one gets another.
"""

from __future__ import annotations

import logging
import subprocess
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import psutil

from together.errors import NotServing, QueueFull, TogetherError
from together.processes import command, surroundings
from together.text.template_process import MEMORY, MOST_TEXT, digest, packed, unpacked

log = logging.getLogger(__name__)
T = TypeVar("T")

LONGEST_WAIT = 6.0  # seconds in line; a request that waited longer is refused instead of rendered
LOOK_EVERY = 0.01  # seconds: in that time a template fills about 100 MB
LONGEST_REPLY = 4 * MOST_TEXT + 2**16  # bytes


@dataclass(frozen=True, slots=True)
class Limit:
    """Seconds for one request: of the processor, which a busy machine does not change, and on the clock."""

    processor: float
    clock: float


RENDER = Limit(2.0, 5.0)  # less than LONGEST_WAIT: those behind one such request are still served
COMPILE = Limit(6.0, 15.0)  # 400 kB of macros take 4 s of the processor
START = Limit(30.0, 30.0)

TOOK = {
    "time": "takes too much time",
    "memory": f"takes more than {MEMORY >> 20} MiB of memory",
    "depth": "is nested too deeply, or calls itself without end",
    "length": f"makes a text of more than {MOST_TEXT} letters",
    "died": "ends the process that runs it",
}


class TemplateFault(Exception):
    """What is wrong with a template: `kind` is one of TOOK (a limit), "syntax", or "refused" (its own complaint)."""

    def __init__(self, kind: str, reason: str = "") -> None:
        super().__init__(reason or TOOK.get(kind, kind))
        self.kind = kind
        self.reason = reason


class Renderer:
    """The child, its line of requests, and what happens when it ends. Any thread may ask; the first one starts it."""

    def __init__(self) -> None:
        self._line = ThreadPoolExecutor(1, thread_name_prefix="templates")
        self._child: _Child | None = None  # set by the line's thread alone
        self._closes = 0

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Do `work`, which may call `compile` and `render`, when those before it are done.

        Raises QueueFull, by the future, where that takes too long.
        """
        return self._line.submit(self._in_turn, work, time.monotonic(), self._closes)

    def compile(self, source: str) -> bool:
        """Whether the template takes tools. Raises TemplateFault, NotServing. Only inside `submit`."""
        return bool(self._ask(partial(_Child.compile, source=source)))

    def render(self, source: str, variables: Mapping[str, object]) -> str:
        """Raises TemplateFault; ValueError, TypeError or RecursionError for variables that are not JSON; NotServing.

        Only inside `submit`.
        """
        request = packed({"render": digest(source), "variables": variables, "within": RENDER.clock})
        return self._ask(partial(_Child.render, source=source, request=request))

    def close(self) -> None:
        """End the child; requests in line end with NotServing. A later request starts another child."""
        self._closes += 1
        if (child := self._child) is not None:
            child.end()

    def retire(self) -> None:
        """As `close`, once the requests that are in line now are done."""
        self._line.submit(self.close)

    def _in_turn(self, work: Callable[[], T], asked: float, closes: int) -> T:
        if time.monotonic() - asked > LONGEST_WAIT:
            raise QueueFull("other conversations keep the model's chat template busy; try again in a moment")
        if closes != self._closes:
            raise _unloaded()
        return work()

    def _ask(self, question: Callable[[_Child], T]) -> T:
        """A child that somebody else ended is replaced, once: the template is to blame where it happens again."""
        closes = self._closes
        for attempt in (1, 2):
            child = self._living()
            try:
                return question(child)
            except TemplateFault as fault:
                if fault.kind not in TOOK:
                    raise
                child.end()
                if self._closes != closes:
                    raise _unloaded() from None
                if fault.kind != "died" or attempt == 2:
                    log.info("a chat template %s; its process was replaced", fault)
                    raise
        raise AssertionError("unreachable")

    def _living(self) -> _Child:
        closes = self._closes
        if self._child is None or not self._child.alive:
            self._child = _Child()
        if self._closes != closes:  # closed while it started
            self._child.end()
            raise _unloaded()
        return self._child


def _unloaded() -> TogetherError:
    return NotServing("the model was unloaded meanwhile; load it again")


class _Child:
    """One process, from its start to its end. Raises NotServing where the system gives none."""

    def __init__(self) -> None:
        try:
            # One arena: each further one would count as 64 MB of the address space that the child limits itself to.
            around = surroundings({"MALLOC_ARENA_MAX": "1"})
            self._process = subprocess.Popen(
                command("together.text.template_process"), stderr=subprocess.DEVNULL, **around
            )
            self._seen = psutil.Process(self._process.pid)
        except (OSError, psutil.Error) as error:
            raise _not_started(str(error)) from error
        self._end = weakref.finalize(self, _end, self._process)
        self._talking = ThreadPoolExecutor(1, thread_name_prefix="template process")
        self._compiled: dict[str, bool] = {}  # source: whether it takes tools
        self._most_memory = 2 * MEMORY  # until it is known what it takes by itself
        try:
            self._exchange(b"", START)
            self._most_memory = self._seen.memory_info().rss + MEMORY
        except (TemplateFault, psutil.Error) as error:
            self.end()
            raise _not_started(str(error)) from error

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def compile(self, source: str) -> bool:
        if source not in self._compiled:
            request = packed({"compile": source, "within": COMPILE.clock})
            self._compiled[source] = bool(self._exchange(request, COMPILE)["wants_tools"])
        return self._compiled[source]

    def render(self, source: str, request: bytes) -> str:
        self.compile(source)
        return str(self._exchange(request, RENDER)["text"])

    def end(self) -> None:
        """At once; what it was doing is lost. Harmless the second time."""
        self._end()
        self._talking.shutdown(wait=False)

    def _exchange(self, request: bytes, limit: Limit) -> dict[str, Any]:
        """The reply. Raises TemplateFault; a child that went beyond a limit is to be ended by the caller."""
        try:
            reply = self._watched(self._talking.submit(_talk, self._process, request), limit)
        except (OSError, ValueError, RecursionError, RuntimeError, psutil.Error) as error:
            raise TemplateFault("died") from error
        if "fault" in reply:
            raise TemplateFault(str(reply["fault"]), str(reply.get("reason", "")))
        return reply

    def _watched(self, talk: Future[dict[str, Any]], limit: Limit) -> dict[str, Any]:
        until = time.monotonic() + limit.clock
        spent = self._spent() + limit.processor
        while not talk.done():
            try:
                return talk.result(LOOK_EVERY)
            except TimeoutError:
                if self._seen.memory_info().rss > self._most_memory:
                    raise TemplateFault("memory") from None
                if time.monotonic() > until or self._spent() > spent:
                    raise TemplateFault("time") from None
        return talk.result()

    def _spent(self) -> float:
        """Seconds of the processor so far."""
        times = self._seen.cpu_times()
        return float(times.user + times.system)


def _not_started(cause: str) -> TogetherError:
    return NotServing(f"the process that renders chat templates cannot be started ({cause}); try again in a moment")


def _talk(process: subprocess.Popen[bytes], request: bytes) -> dict[str, Any]:
    """Write and read: both wait for the child, and both end when it is killed. Raises OSError, ValueError."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(request)
    process.stdin.flush()
    line = process.stdout.readline(LONGEST_REPLY)
    if not line.endswith(b"\n"):
        raise ValueError("no whole reply")
    return unpacked(line)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # what was never sent is lost with its reader
            if pipe is not None:
                pipe.close()
