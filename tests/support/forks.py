"""Starts our processes by forking one that has imported what they need, as a real start spends most of its time on it.

For tests alone, and on Linux alone. `install` makes `subprocess.Popen` ask a warm process for each `python -m …` of
ours: what comes is a child of the caller with the same command line, variables, streams and session, so exit codes,
signals and kills are those of a real start. A node or a head gets a warm process of its own, which ends with it.
Whatever is unusual about an order (another folder, other variables for Python, a terminal) is started in the real way.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import io
import json
import os
import runpy
import signal
import socket
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHECKOUT = str(Path(__file__).resolve().parents[2])
OURS = ("together", "backends")  # packages
PRELOADED = (
    "together.cluster.node",
    "together.ring.stage",
    "together.cluster.measure",
    "together.desktop.cli",
    "together.text.template_process",
    "together.text.answers",
    "together.engine.engine",
    "backends.checksum",
    "fastapi",
    "uvicorn",
)
SHARED = ("PYTHON", "LC_", "LANG", "LD_", "OMP_", "OPENBLAS_", "MKL_", "MALLOC_")  # variables read as a process starts
UNBUFFERED = "PYTHONUNBUFFERED"
ANEW = "TESTS_START_ANEW"  # the variable that has everything started in the real way
TITLE = 4096  # bytes of a command line
LONGEST = 2**17  # bytes of an order
_BECOME_PARENT = 36  # PR_SET_CHILD_SUBREAPER: orphans of descendants become children
_SET_MM, _MM_MAP = 35, 14  # PR_SET_MM, PR_SET_MM_MAP: where the command line lies, among others
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Order:
    """A process to start: `python -m MODULE ARGUMENTS`; its streams come beside it."""

    module: str
    arguments: list[str]
    environment: dict[str, str]
    session: bool  # of its own
    processors: list[int]

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", self.module, *self.arguments]

    @property
    def starts_others(self) -> bool:
        return self.module == "together"


# --- who asks ---------------------------------------------------------------------------------------------------------

_warm: socket.socket | None = None
_known: dict[str, str] = {}  # what the warm process has of SHARED
_lock = threading.Lock()
_off = 0  # how many want real starts
_really = subprocess.Popen._execute_child  # type: ignore[attr-defined]


def install() -> None:
    """Begin to fork in this process, where it can be, and unless ANEW is set."""
    if sys.platform == "linux" and _warm is None and not os.environ.get(ANEW):
        ours, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.support.forks", str(others.fileno()), "-" * TITLE]
        process = subprocess.Popen(
            command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[others.fileno()]
        )
        others.close()
        atexit.register(_leave, process)
        _use(ours)


def _leave(process: subprocess.Popen[bytes]) -> None:
    assert _warm is not None
    _warm.close()
    process.wait()


def _use(warm: socket.socket) -> None:
    global _warm, _known
    _warm, _known = warm, _of_python(os.environ)
    subprocess.Popen._execute_child = _start  # type: ignore[attr-defined]


@contextmanager
def real_starts() -> Iterator[None]:
    """For tests of what a start takes, or of what it is given."""
    global _off
    _off += 1
    try:
        yield
    finally:
        _off -= 1


def _start(
    popen: Any,
    args: Any,
    executable: Any,
    preexec_fn: Any,
    close_fds: bool,
    pass_fds: Any,
    cwd: Any,
    env: Any,
    *more: Any,
) -> None:
    """In the place of `Popen._execute_child`, with its arguments."""
    _, _, shell, *pipes, _, gid, gids, uid, umask, session, group = more
    p2cread, _, _, c2pwrite, _, errwrite = pipes
    special = executable, preexec_fn, pass_fds, shell, gid, gids, uid
    plain = close_fds and not any(special) and umask == group == -1
    order = order_of(args, cwd, env, session=session) if plain and not _off else None
    streams = [own if pipe == -1 else pipe for own, pipe in enumerate((p2cread, c2pwrite, errwrite))]
    pid = _ask(order, streams) if order is not None and not any(map(os.isatty, streams)) else None
    if pid is None:
        _really(popen, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *more)
        return
    popen.pid, popen._child_created = pid, True
    popen._close_pipe_fds(*pipes)


def order_of(args: Any, cwd: Any, env: Mapping[Any, Any] | None, *, session: bool) -> Order | None:
    """None for what is no `python -m` of ours in this checkout, or needs a Python of its own."""
    if isinstance(args, (str, bytes, os.PathLike)) or os.fspath(cwd or os.getcwd()) != CHECKOUT:
        return None
    words = [os.fsdecode(word) for word in args]
    if words[:2] != [sys.executable, "-m"] or len(words) < 3 or words[2].split(".")[0] not in OURS:
        return None
    variables = {os.fsdecode(key): os.fsdecode(value) for key, value in (os.environ if env is None else env).items()}
    if _of_python(variables) != _known or sum(map(len, words)) + len(words) > TITLE:
        return None
    return Order(words[2], words[3:], variables, session, sorted(os.sched_getaffinity(0)))


def _of_python(variables: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in variables.items() if key.startswith(SHARED) and key != UNBUFFERED}


def _ask(order: Order, streams: Sequence[int]) -> int | None:
    """The process that the warm one made, a child of this one; None where there is none any more."""
    assert _warm is not None
    data = json.dumps(asdict(order)).encode()
    if len(data) > LONGEST:
        return None
    with _lock, suppress(OSError, ValueError):
        _libc.prctl(_BECOME_PARENT, 1)
        try:
            socket.send_fds(_warm, [data], streams)
            pid = int(_warm.recv(64))
        finally:
            _libc.prctl(_BECOME_PARENT, 0)
        if _is_child(pid):
            return pid
        os.kill(pid, signal.SIGKILL)
    return None


def _is_child(pid: int) -> bool:
    """A system that only looks like Linux may leave orphans to somebody else."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


# --- the warm process -------------------------------------------------------------------------------------------------


def _next(orders: socket.socket) -> Order:
    """Fork a process for each order, and return in it, with what it is to be. The warm one ends with who asks it."""
    while True:
        data, streams, *_ = socket.recv_fds(orders, LONGEST, 3)
        if not data:
            os._exit(0)
        order = Order(**json.loads(data))
        read, write = os.pipe()
        between = os.fork()
        if between == 0:
            pid = os.fork()
            if pid == 0:
                _become(order, streams)
                return order
            os.write(write, str(pid).encode())
            os._exit(0)
        os.close(write)
        os.waitpid(between, 0)  # it left an orphan, which belongs to who asks now
        with open(read, "rb") as said:
            pid = int(said.read())  # up to its end: the new process is what it is to be
        orders.send(str(pid).encode())
        for descriptor in streams:
            os.close(descriptor)


def _become(order: Order, streams: Sequence[int]) -> None:
    """This process as a real start would have made it."""
    if order.session:
        os.setsid()
    for own, given in enumerate(streams):
        os.dup2(given, own)
    os.sched_setaffinity(0, order.processors)
    os.environ.clear()
    os.environ.update(order.environment)
    for package in ("together", "together.models"):  # they set variables
        importlib.reload(importlib.import_module(package))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["-m", *order.arguments]
    sys.orig_argv = order.command
    unbuffered = bool(order.environment.get(UNBUFFERED))
    for number, name, errors in ((0, "stdin", "strict"), (1, "stdout", "strict"), (2, "stderr", "backslashreplace")):
        raw = io.FileIO(number, "w" if number else "r", closefd=False)
        buffer: Any = raw if number and unbuffered else (io.BufferedWriter if number else io.BufferedReader)(raw)
        stream = io.TextIOWrapper(buffer, "utf-8", errors, line_buffering=number == 2, write_through=unbuffered)
        for known_as in (name, f"__{name}__"):
            setattr(sys, known_as, stream)
    _call_it(order.command)
    os.closerange(3, max(streams) + 64)  # the warm process waits for it


def _call_it(command: Sequence[str]) -> None:
    """Write what others see as this process's command line over its first one, which is longer."""
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    code, end, stack, data, data_end, brk, begin, last, env, env_end = (
        int(stat[place - 3])
        for place in (26, 27, 28, *range(45, 52))  # see proc(5)
    )
    text = b"".join(os.fsencode(word) + b"\0" for word in command)
    if len(text) > last - begin:  # a system that does not say where it is
        return
    ctypes.memset(begin, 0, last - begin)
    ctypes.memmove(begin, text, len(text))
    _libc.sbrk.restype = ctypes.c_void_p
    places = (code, end, data, data_end, brk, _libc.sbrk(0), stack, begin, begin + len(text), env, env_end)
    layout = struct.pack("11QQIi", *places, 0, 0, -1)  # struct prctl_mm_map
    _libc.prctl(_SET_MM, ctypes.c_ulong(_MM_MAP), layout, ctypes.c_ulong(len(layout)), ctypes.c_ulong(0))


def _split() -> socket.socket | None:
    """A warm process for this one, as its child: there this returns where orders come from, and here None."""
    ours, orders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nothing, stream)
        os.close(nothing)
        _call_it([sys.executable, "-m", "tests.support.forks"])
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return orders
    orders.close()
    _use(ours)
    return None


def _run(orders: socket.socket) -> Order:
    """What this process is to be; returns in forked ones alone."""
    while True:
        order = _next(orders)
        orders.detach()  # it was closed with all others
        own = _split() if order.starts_others else None
        if own is None:
            return order
        orders = own


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the asker's end is the sign to leave
    orders = socket.socket(fileno=int(sys.argv[1]))
    for module in PRELOADED:
        importlib.import_module(module)
    assert len(os.listdir("/proc/self/task")) == 1, "threads would not live through a fork"
    gc.collect()
    gc.freeze()
    order = _run(orders)
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")  # what runs was imported before
    runpy.run_module(order.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
