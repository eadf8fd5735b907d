"""What trials found before: their times differ, and a stage that is loaded anew has to compute as before."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import get_clock_info, perf_counter, thread_time

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from backends.measuring import fastest
from backends.on_torch.processor import processor
from together.cluster_types import KeptChoices
from together.jsonfile import recall_json, write_json

log = logging.getLogger(__name__)

_FORMAT = 8  # raise it when a kernel changes: all are tried anew
_LIBRARIES = ("torch", "onnxruntime", "llvmlite")
_FEW, _MANY = 1, 64  # rows: of a token, and of a prompt
_PROMPT = 2  # tokens of prompts for each token that is made
_FINE = 1e-6  # seconds
_PATIENCE = 30.0  # seconds for another's trial


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes on the thread that asks, whose processor time is what a product takes on a busy machine, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compared(*actions: Callable[[], object], seconds: float) -> tuple[float, ...]:
    """What each takes of one processor, where the system counts that finely: other programs do not count then."""
    fine = get_clock_info("thread_time").resolution < _FINE
    return fastest(*actions, seconds=seconds, clock=thread_time if fine else perf_counter)


def costs(
    products: Sequence[Callable[[Tensor], Tensor]], inputs: int, dtype: torch.dtype, *, seconds: float
) -> list[float]:
    """What a token costs with each product, by its fastest turns: one that is made, and the prompts that go with it."""
    few, many = (torch.randn(count, inputs).to(dtype) for count in (_FEW, _MANY))
    times = compared(*(partial(product, rows) for product in products for rows in (few, many)), seconds=seconds)
    return [one / _FEW + _PROMPT * more / _MANY for one, more in zip(times[::2], times[1::2], strict=True)]


def confirmed(trial: Callable[[], str], first: str) -> str:
    """The choice is kept for good, and a busy machine must not make it: another than the first wins twice."""
    found = trial()
    return found if found == first or trial() == found else first


def recalled(home: Path | None, key: str, names: Sequence[str], choose: Callable[[], str]) -> str:
    """One of `names`: what was chosen for `key` on this machine before, else what `choose` says, which is kept.

    Processes that ask at the same time get the same answer. Where there is no `home`, or it cannot be written, each
    chooses by itself.
    """
    if home is None:
        return choose()
    build = build_name()
    file = kept_file(home, build)
    with in_turn(file):
        known = _known(file, build)
        if known.get(key) in names:
            return known[key]
        found = choose()
        keep(file, KeptChoices(build, known | {key: found}))
        return found


def kept_file(home: Path, build: str, what: str = "") -> Path:
    """Where a build's findings are kept."""
    return home / "kernels" / f"{what}{hashlib.sha256(build.encode()).hexdigest()[:24]}.json"


def build_name() -> str:
    """All that times depend on, and the values of products."""
    parts = (_FORMAT, processor(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
    return " | ".join(map(str, (*parts, *(f"{name} {_version(name)}" for name in _LIBRARIES))))


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def _known(file: Path, build: str) -> dict[str, str]:
    stored = recall_json(file, KeptChoices)
    return stored.chosen if stored is not None and stored.build == build else {}


def keep(file: Path, found: object) -> None:
    """Write a dataclass down; where that cannot be done, the next process tries again."""
    try:
        write_json(file, found)
    except OSError as error:
        log.warning("cannot keep which kernels were chosen: %s", error)


@contextmanager
def in_turn(file: Path) -> Iterator[None]:
    """One process at a time, so that trials do not disturb one another."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file.with_suffix(".lock"), timeout=_PATIENCE)
        lock.acquire()
    except (OSError, Timeout) as error:
        log.warning("cannot wait for others that choose kernels: %s", error)
        yield
        return
    try:
        yield
    finally:
        lock.release()
