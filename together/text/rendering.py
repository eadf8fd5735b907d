"""A watched child process that compiles and renders a model's chat templates, one request at a time.

Uses threads alone: scripts ask from any thread, a head awaits the future. A request that takes too much time or memory
ends the child and fails alone; the next request starts another child.
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
from typing import Any, TypeVar

import psutil

from together.errors import NotServing, QueueFull, TogetherError
from together.processes import command, surroundings
from together.text.template_process import MEMORY, MOST_TEXT, digest, packed, unpacked

log = logging.getLogger(__name__)
T = TypeVar("T")

LONGEST_WAIT = 12.0  # seconds in line; a request that waited longer is refused
LOOK_EVERY = 0.01  # seconds: a template fills about 100 MB in that time
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
    """A template cannot be compiled or rendered."""


class TemplateRefusal(TemplateFault):
    """The template's own complaint about its variables, or its syntax error."""


class TemplateLimit(TemplateFault):
    """The template went beyond a limit: `kind` is a key of TOOK."""

    def __init__(self, kind: str) -> None:
        super().__init__(TOOK[kind])
        self.kind = kind


class Renderer:
    """The child process and its line of requests, from any thread. The first request starts the child."""

    def __init__(self) -> None:
        self._line = ThreadPoolExecutor(1, thread_name_prefix="templates")
        self._child: _Child | None = None  # set on the line's thread alone
        self._closes = 0

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run `work`, which may call `compile` and `render`, after the work before it.

        The future raises QueueFull after LONGEST_WAIT in line, NotServing if `close` was called meanwhile.
        """
        return self._line.submit(self._in_turn, work, time.monotonic(), self._closes)

    def compile(self, source: str) -> bool:
        """Whether the template takes tools. Raises TemplateFault, NotServing. Call it inside `submit`."""
        return self._ask(lambda child: child.compile(source))

    def render(self, source: str, variables: Mapping[str, object]) -> str:
        """Raises TemplateFault, NotServing; ValueError, TypeError or RecursionError for variables that are not JSON.

        Call it inside `submit`.
        """
        request = packed({"render": digest(source), "variables": variables, "within": RENDER.clock})
        return self._ask(lambda child: child.render(source, request))

    def close(self) -> None:
        """End the child; waiting requests fail with NotServing. A later request starts another child."""
        self._closes += 1
        if (child := self._child) is not None:
            child.end()

    def retire(self) -> None:
        """Like `close`, once the requests that wait now are done."""
        self._line.submit(self.close)

    def _in_turn(self, work: Callable[[], T], asked: float, closes: int) -> T:
        if time.monotonic() - asked > LONGEST_WAIT:
            raise QueueFull("other conversations keep the model's chat template busy; try again in a moment")
        if closes != self._closes:
            raise _unloaded()
        return work()

    def _ask(self, question: Callable[[_Child], T]) -> T:
        """A child that dies is replaced once: if it dies again, the template is to blame."""
        closes = self._closes
        for attempt in (1, 2):
            child = self._living()
            try:
                return question(child)
            except TemplateLimit as limit:
                child.end()
                if self._closes != closes:
                    raise _unloaded() from None
                if limit.kind != "died" or attempt == 2:
                    log.info("a chat template %s; its process was replaced", limit)
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
    """One child process, from its start to its end."""

    def __init__(self) -> None:
        """Raises NotServing if the system starts no process."""
        try:
            # One arena: each further one takes 64 MB of the address space that the child limits itself to.
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
        self._most_memory = 2 * MEMORY  # until its size without templates is known
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
        """Kill the process; a second call does nothing."""
        self._end()
        self._talking.shutdown(wait=False)

    def _exchange(self, request: bytes, limit: Limit) -> dict[str, Any]:
        """Send a request, return the reply. Raises TemplateFault; after a TemplateLimit the caller ends the child."""
        try:
            reply = self._watched(self._talking.submit(_talk, self._process, request), limit)
        except (OSError, ValueError, RecursionError, RuntimeError, psutil.Error) as error:
            raise TemplateLimit("died") from error
        if (kind := str(reply.get("limit"))) in TOOK:
            raise TemplateLimit(kind)
        if "refusal" in reply:
            raise TemplateRefusal(str(reply["refusal"]))
        return reply

    def _watched(self, talk: Future[dict[str, Any]], limit: Limit) -> dict[str, Any]:
        until = time.monotonic() + limit.clock
        spent = self._spent() + limit.processor
        while True:
            try:
                return talk.result(LOOK_EVERY)
            except TimeoutError:
                if self._seen.memory_info().rss > self._most_memory:
                    raise TemplateLimit("memory") from None
                if time.monotonic() > until or self._spent() > spent:
                    raise TemplateLimit("time") from None

    def _spent(self) -> float:
        """Processor seconds so far."""
        times = self._seen.cpu_times()
        return float(times.user + times.system)


def _not_started(cause: str) -> TogetherError:
    text = "the process that renders chat templates cannot be started ({reason}); try again in a moment"
    return NotServing(text, reason=cause)


def _talk(process: subprocess.Popen[bytes], request: bytes) -> dict[str, Any]:
    """Write, then read; both wait for the child and end when it is killed. Raises OSError, ValueError."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(request)
    process.stdin.flush()
    line = process.stdout.readline(LONGEST_REPLY)
    if not line.endswith(b"\n"):
        raise ValueError("an incomplete reply")
    return unpacked(line)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # what was never sent is lost with its reader
            if pipe is not None:
                pipe.close()
