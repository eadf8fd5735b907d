"""No test of the default suite depends on how fast or how busy the machine is.

Reads the tests' source only. Work is counted (`tests/support/work.py`) or shown by `bench`. A test may say that it does
not hang, by one generous deadline (`tests/support/patience.py`), and that something takes at least as long as it must.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
LEAST = 30.0  # seconds; a shorter deadline relies on a fast machine
CLOCKS = {"perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "process_time", "time", "clock"}
WAITS = {"wait_for", "timeout", "until", "until_now", "poll", "wait", "communicate", "join", "settimeout"}
TIMEOUTS = {"TimeoutError", "TimeoutExpired", "ReadTimeout"}  # a test that expects one may wait for a short time
DURATION = re.compile(r"(.*_)?(ms|seconds|took|elapsed|stall|ttft_s)|ms_per_.*")
RATE = re.compile(r".*(per_s|per_second|tok_s)(_each)?")

# Their figures are computed from numbers that the test gives: nothing is timed.
COMPUTED = ("planning/", "desktop/test_plan.py", "webui/test_draft.py", "engine/test_cost.py")
# Lines that look like comparisons of times and are none: a file, and a part of the line.
ALLOWED: tuple[tuple[str, str], ...] = (
    ("api/test_bench_serve.py", "report("),  # the figures of a report that the test makes up
    ("backends/numpy_backend.py", "fastest("),  # how long a backend measures itself
    ("backends/test_on_mlx.py", "took / spec.stage_bytes"),  # bytes
    ("cluster/test_profiling.py", "asyncio.wait([waiting]"),  # what must not happen is waited for in vain
    ("engine/test_reuse.py", "timings.tokens_per_s *"),  # figures of one measurement, that agree on any machine
    ("text/test_chat_template.py", "stop.wait("),  # a pause
    ("reliability/test_hostile_models.py", "self.ended.wait("),  # a pause
    ("reliability/test_templates.py", "stop.wait("),  # a pause
    ("ring/test_links.py", "await find_door("),  # nobody is there
    ("ring/test_links.py", "Outlet.open(there, KEY, timeout=0.5)"),
    ("ring/test_stage_life.py", "asyncio.wait({flood}"),
    ("head/test_lack_of_memory.py", "limit.seconds <= survey.SHORTAGE_LIFE"),  # what is left of it, by the head itself
    ("test_launch_decisions.py", "machine.index_answers("),
    ("webui/test_offers.py", "stop.wait("),  # a pause
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong at a line."""

    line: int
    what: str


@dataclass(slots=True)
class Timed:
    """What a function keeps of clocks: `names` hold times that passed, `ends` hold deadlines."""

    names: set[str] = field(default_factory=set)
    ends: set[str] = field(default_factory=set)

    def passed(self, part: ast.AST) -> bool:
        """Whether a clock, or what was read from one, is in it."""
        inside = list(ast.walk(part))
        return any(_reads_clock(node) or (isinstance(node, ast.Name) and node.id in self.names) for node in inside)

    def learn(self, function: Function) -> None:
        """Names that times are assigned or appended to; twice, as loops go round."""
        for node in [*ast.walk(function)] * 2:
            for target, value in _assigned(node):
                if self.passed(value):
                    known = self.ends if _is_sum(value) else self.names
                    known |= {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append":
                owner = node.func.value
                if isinstance(owner, ast.Name) and any(map(self.passed, node.args)):
                    self.names.add(owner.id)


def faults(source: str, computed: bool = False) -> list[Fault]:
    """What a file's default tests compare or wait for too shortly; `computed`: its figures are not measured."""
    found: list[Fault] = []
    for function in _functions(ast.parse(source)):
        timed = Timed()
        timed.learn(function)
        found += _short_by_default(function)
        for part in ast.walk(function):
            if isinstance(part, ast.Assert):
                found += _compared(part, timed, computed)
            elif isinstance(part, ast.Call) and part not in _expected_to_time_out(function):
                found += _short(part)
    return sorted(set(found), key=lambda fault: fault.line)


def _functions(tree: ast.Module) -> Iterator[Function]:
    """All that the default suite runs, from the outside in."""
    for node in ast.walk(tree):
        if isinstance(node, Function) and not any("mark.full" in ast.unparse(mark) for mark in node.decorator_list):
            yield node


def _reads_clock(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    called = node.func
    return (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")) in CLOCKS


def _assigned(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Each target with its value."""
    if isinstance(node, ast.AugAssign):
        yield node.target, node.value
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                yield from zip(target.elts, node.value.elts, strict=False)
            else:
                yield target, node.value


def _is_sum(value: ast.expr) -> bool:
    return isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add)


# --- comparisons ------------------------------------------------------------------------------------------------------


def _compared(part: ast.Assert, timed: Timed, computed: bool) -> Iterator[Fault]:
    for node in ast.walk(part.test):
        if not isinstance(node, ast.Compare):
            continue
        sides = [node.left, *node.comparators]
        for left, operator, right in zip(sides, node.ops, sides[1:], strict=False):
            less, more = (right, left) if isinstance(operator, ast.Gt | ast.GtE) else (left, right)
            if isinstance(operator, ast.Lt | ast.LtE | ast.Gt | ast.GtE):
                yield from _bounded(less, more, timed, computed, node.lineno)
            elif not computed and "approx" in ast.unparse(right) and _is_figure(left, DURATION, RATE):
                yield Fault(node.lineno, f"{ast.unparse(left)} is measured, and about right only on a quiet machine")


def _bounded(less: ast.expr, more: ast.expr, timed: Timed, computed: bool, line: int) -> Iterator[Fault]:
    """`less` < `more`: no measured duration may have an upper limit, no measured rate a lower one."""
    if _is_deadline(more, timed):
        return
    if timed.passed(less) or (not computed and _is_figure(less, DURATION)):
        yield Fault(line, f"{ast.unparse(less)} is a time and has a limit: count work, or leave it to `bench`")
    elif not computed and _is_figure(more, RATE) and ast.unparse(less) != "0":
        yield Fault(line, f"{ast.unparse(more)} is a rate and has a limit: count work, or leave it to `bench`")


def _is_deadline(more: ast.expr, timed: Timed) -> bool:
    names = {node.id for node in ast.walk(more) if isinstance(node, ast.Name)}
    return bool(names & timed.ends) or any(name.startswith("PATIENCE") for name in names) or "inf" in ast.unparse(more)


def _is_figure(part: ast.expr, *kinds: re.Pattern[str]) -> bool:
    """Whether a measured figure is in it, by its name."""
    names = [_name(node) for node in ast.walk(part)]
    return any(kind.fullmatch(name) for kind in kinds for name in names)


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    return node.id if isinstance(node, ast.Name) else ""


# --- deadlines --------------------------------------------------------------------------------------------------------


def _short(call: ast.Call) -> Iterator[Fault]:
    """A wait for something that must happen, with a number of seconds that is not enough."""
    for value in call.args if _name(call.func) in WAITS else ():
        yield from _too_short(value)
    for item in call.keywords:
        if item.arg in ("timeout", "seconds"):
            yield from _too_short(item.value)


def _short_by_default(function: Function) -> Iterator[Fault]:
    arguments = function.args.posonlyargs + function.args.args
    for argument, value in zip(arguments[::-1], function.args.defaults[::-1], strict=False):
        if argument.arg in ("timeout", "seconds"):
            yield from _too_short(value)


def _too_short(value: ast.expr) -> Iterator[Fault]:
    if isinstance(value, ast.Constant) and isinstance(value.value, int | float) and 0 < value.value < LEAST:
        yield Fault(value.lineno, f"{value.value} s is a short deadline for a busy machine: give it PATIENCE")


def _expected_to_time_out(function: Function) -> set[ast.AST]:
    """Calls below `with pytest.raises(TimeoutError)` and its like."""
    found: set[ast.AST] = set()
    for node in ast.walk(function):
        items = node.items if isinstance(node, ast.With | ast.AsyncWith) else []
        if any(name in ast.unparse(item) for item in items for name in TIMEOUTS):
            found |= set(ast.walk(node))
    return found


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(HERE.rglob("*.py")), ids=lambda file: file.relative_to(HERE).as_posix())
def test_no_test_depends_on_how_fast_the_machine_is(file: Path) -> None:
    place, source = file.relative_to(HERE).as_posix(), file.read_text(encoding="utf-8")
    lines = source.splitlines()
    allowed = [part for name, part in ALLOWED if name == place]
    found = faults(source, place.startswith(COMPUTED))
    wrong = [fault for fault in found if not any(part in lines[fault.line - 1] for part in allowed)]
    assert wrong == [], "\n".join(f"{place}:{fault.line}: {fault.what}" for fault in wrong)


@pytest.mark.parametrize(
    "body",
    [
        "began = time.perf_counter(); act(); assert time.perf_counter() - began < 0.03",
        "began, here = loop.time(), 1\n assert 3 > loop.time() - began",
        "times = []\n for _ in range(3):\n  times.append(clock() - began)\n assert max(times) < 3 * min(times)",
        "took = time.process_time() - began; assert took < 3 * other + 0.05",
        "assert found['added_ms'] <= 10 * SLACK",
        "assert 0 < found.ms_per_layer < 1000",
        "assert found.bytes_per_s > 1e6",
        "assert found.ms_per_layer == pytest.approx(5, rel=0.5)",
        "until(lambda: gone, 5, 'it is gone')",
        "process.communicate(timeout=20)",
        "with pytest.raises(Unreachable):\n  await call(timeout=5)",
    ],
)
def test_what_relies_on_a_fast_machine_is_found(body: str) -> None:
    assert len(faults(f"async def test():\n {body}")) == 1


@pytest.mark.parametrize(
    "body",
    [
        "began = clock(); act(); assert clock() - began >= 0.2",
        "deadline = time.monotonic() + seconds; assert time.monotonic() < deadline",
        "began = time.monotonic(); act(); assert time.monotonic() - began < PATIENCE",
        "assert min(found.ms_per_layer, found.bytes_per_s) > 0",
        "until(lambda: gone, PATIENCE, 'it is gone')",
        "with pytest.raises(TimeoutError):\n  await asyncio.wait_for(never, 0.2)",
        "assert calls_of(act) < 1000",
    ],
)
def test_what_any_machine_does_is_left_alone(body: str) -> None:
    assert faults(f"async def test():\n {body}") == []


def test_long_forms_may_compare_times() -> None:
    assert faults("@pytest.mark.full\ndef test():\n assert found.ms_per_layer < 3") == []
