"""Many loops as one call, one after the other: Python has no part in it, and no thread waits for one that is not there.

A thread that finds nothing left of a job goes on to the next one. Where what follows needs the results of what was
before, it waits until all jobs so far are done: for those that still compute, not for those that have not begun, as
another program may have their processors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from backends.on_torch.compiled import CompiledLoop, ir_function, is_x86, run_function

Numbers = np.ndarray[Any, np.dtype[np.int64]]
OUTPUTS, STEP = 1, 2  # where a job's numbers are, as `compiled.Code` reads them
_SPINS = 4096  # looks at a job before that: some 50 µs
# A part begins with how many calls it has (one at least), and what gives the processor to another thread. A job's
# number -1 says how many threads are at it: whoever takes the last outputs is counted before they are taken.
_RUN = """
{declared}
define void @run(ptr %program) {{
begin:
  %count = load i64, ptr %program
  %second = getelementptr i64, ptr %program, i64 1
  %yield = load ptr, ptr %second
  br label %next
next:
  %index = phi i64 [0, %begin], [%after, %done]
  %since = phi i64 [0, %begin], [%from, %done]
  %twice = mul i64 %index, 2
  %first = add i64 %twice, 2
  %here = getelementptr i64, ptr %program, i64 %first
  %function = load ptr, ptr %here
  %none = icmp eq ptr %function, null
  br i1 %none, label %wait, label %work
work:
  %other = getelementptr i64, ptr %here, i64 1
  %job = load ptr, ptr %other
  %at_it = getelementptr i64, ptr %job, i64 -1
  %one_more = atomicrmw add ptr %at_it, i64 1 seq_cst
  fence seq_cst
  call void %function(ptr %job)
  %one_less = atomicrmw sub ptr %at_it, i64 1 seq_cst
  br label %done
wait:
  %looked = phi i64 [%since, %next], [%following, %ready]
  %all = icmp eq i64 %looked, %index
  br i1 %all, label %waited, label %look
look:
  %spins = phi i64 [0, %wait], [%more_spins, %again]
  %double = mul i64 %looked, 2
  %third = add i64 %double, 3
  %place = getelementptr i64, ptr %program, i64 %third
  %before = load ptr, ptr %place
  %outputs_at = getelementptr i64, ptr %before, i64 1
  %outputs = load i64, ptr %outputs_at
  %taken = load atomic i64, ptr %before seq_cst, align 8
  %threads_at = getelementptr i64, ptr %before, i64 -1
  %threads = load atomic i64, ptr %threads_at seq_cst, align 8
  %nothing_left = icmp sge i64 %taken, %outputs
  %nobody = icmp eq i64 %threads, 0
  %is_done = and i1 %nothing_left, %nobody
  br i1 %is_done, label %ready, label %spin
ready:
  %following = add i64 %looked, 1
  br label %wait
spin:
  {pause}
  %more_spins = add i64 %spins, 1
  %long = icmp sgt i64 %more_spins, {spins}
  %can = icmp ne ptr %yield, null
  %yields = and i1 %long, %can
  br i1 %yields, label %give, label %again
give:
  %ignored = call i32 %yield()
  br label %again
again:
  br label %look
done:
  %from = phi i64 [%since, %work], [%index_after, %waited]
  %after = add i64 %index, 1
  %more = icmp slt i64 %after, %count
  br i1 %more, label %next, label %end
waited:
  %index_after = add i64 %index, 1
  br label %done
end:
  ret void
}}
"""
_PAUSE = "void @llvm.x86.sse2.pause()"


@dataclass(slots=True)
class ProgramDraft:
    """A program as it is written: calls of loops, each with its job, and where threads wait for what is before.

    It has parts, between which Python may do what no loop does.
    """

    _calls: list[_Call] = field(default_factory=lambda: [_Call()])  # a part's first one stands for the part
    _numbers: list[int] = field(default_factory=list)  # of all jobs
    _parts: list[int] = field(default_factory=lambda: [0])  # where they begin among the calls

    def add(self, loop: CompiledLoop, outputs: int, step: int, *values: int) -> tuple[int, int]:
        """Do a job, as `CompiledLoop` does it. Returns the numbers of the call and of the job's first number."""
        place = len(self._numbers) + 1
        self._calls.append(_Call(loop, place))
        self._numbers.extend((0, 0, outputs, step, *values))
        return len(self._calls) - 1, place

    def meet(self) -> None:
        """What follows begins when all that was added is done."""
        if self._calls[-1].loop is not None:
            self._calls.append(_Call())

    def part(self) -> None:
        """What follows is another part."""
        self._parts.append(len(self._calls))
        self._calls.append(_Call())

    def finish(self) -> Program:
        return Program(self._calls, self._numbers, self._parts)


@dataclass(frozen=True, slots=True)
class _Call:
    loop: CompiledLoop | None = None
    job: int = 0  # its first number


class Program:
    """Runs again and again, on all of torch's threads. Its numbers may be changed between two runs."""

    def __init__(self, calls: Sequence[_Call], numbers: Sequence[int], parts: Sequence[int]) -> None:
        self._loops = {call.loop.address: call.loop for call in calls if call.loop is not None}  # they own their code
        self._first = 2 * len(calls)
        self._live = np.zeros(self._first + len(numbers), np.int64)
        start = self._live.ctypes.data
        table = np.zeros((len(calls), 2), np.int64)
        for place, call in enumerate(calls):
            if call.loop is not None:
                table[place] = call.loop.address, start + 8 * (self._first + call.job)
        for first, following in pairwise((*parts, len(calls))):
            table[first] = following - first - 1, _yielding()
        self._parts = [start + 16 * part for part in parts]
        self._kept = np.concatenate((table.ravel(), np.array(numbers, np.int64)))

    @property
    def parts(self) -> int:
        return len(self._parts)

    def change(self, jobs: Numbers, at: int, value: int) -> None:
        """Of jobs, by their first numbers: the number so much further."""
        self._kept[self._first + jobs + at] = value

    def call(self, calls: Numbers, loop: CompiledLoop) -> None:
        """Let these calls be of another loop."""
        self._loops[loop.address] = loop
        self._kept[2 * calls] = loop.address

    def run(self, threads: int, part: int = 0) -> None:
        """One part after the other; the first one begins anew."""
        if part == 0:
            np.copyto(self._live, self._kept)  # nobody has taken anything of any job
        run_function(_program().address, self._parts[part], threads)


@cache
def _program() -> CompiledLoop:
    declared, pause = (f"declare {_PAUSE}", f"call {_PAUSE}") if is_x86() else ("", "")
    return ir_function(_RUN.format(declared=declared, pause=pause, spins=_SPINS))


@cache
def _yielding() -> int:
    """Where the system's function is that lets another thread have the processor; 0 where it is not known."""
    try:
        function: Callable[[], int] = ctypes.CDLL(None).sched_yield
    except (AttributeError, OSError, TypeError):
        windows = getattr(ctypes, "windll", None)
        if windows is None:
            return 0
        function = windows.kernel32.SwitchToThread
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]
