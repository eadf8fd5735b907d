"""The cache's limit: what is let go by itself so that a model fits, and what a person is asked to let go.

By itself goes only what this machine can make again: units of a form whose published weights are here, and that no
stage on this machine has loaded.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock, Timeout

from together.cluster_types import LetGo
from together.commands import launch
from together.errors import TogetherError
from together.models.form import form_options, form_title
from together.models.manifest import read_manifest
from together.models.units import Unit
from together.sentences import template
from together.settings import Settings, parse_bytes
from together.weights.converting import convert_units
from together.weights.find import plain_units
from together.weights.part import DiskFull, Progress, require_space, size_of, writing
from together.weights.store import KnownModel, Store, UnitBusy, known_model

log = logging.getLogger(__name__)

LOCKS = ".locks"
SHOWN_FOR = 600.0  # seconds that people are told what was let go
_SHOWN = 8  # of it at most
_NAMED = 5  # models in a sentence


def cache_limit(settings: Settings) -> int | None:
    """Bytes; None where the setting leaves it to the disk. Raises BadSetting."""
    return parse_bytes(settings.cache) if settings.cache else None


def _quiet(done: int, total: int) -> None:
    """Progress that nobody watches."""


def log_let_go(gone: LetGo) -> None:
    log.warning("%s", gone.sentence)


@dataclass(slots=True)
class LatelyGone:
    """What a cache let go in the last minutes, for whoever looks; any thread may `note`."""

    clock: Callable[[], float] = time.monotonic  # the machine's own time of day may be set
    _noted: deque[tuple[float, LetGo]] = field(default_factory=lambda: deque(maxlen=_SHOWN))

    def note(self, gone: LetGo) -> None:
        log.info("%s", gone.sentence)  # the page and terminals say it
        self._noted.append((self.clock(), gone))

    def shown(self) -> tuple[LetGo, ...]:
        now = self.clock()
        return tuple(gone for at, gone in tuple(self._noted) if now - at < SHOWN_FOR)


@dataclass(frozen=True, slots=True)
class CacheRoom:
    """The cache of a home. What is not async blocks: call it from a thread.

    `limit` None is half of what would be free without it. `note` gets what is let go, in the thread that makes room.
    """

    home: Path
    limit: int | None = None
    note: Callable[[LetGo], None] = log_let_go

    @property
    def folder(self) -> Path:
        return self.home / "shards"

    @property
    def size(self) -> int:
        """Bytes of all units, parts and small files in it."""
        return sum(map(_size, self._folders()))

    @property
    def most(self) -> int:
        """Bytes that it may take."""
        if self.limit is not None:
            return self.limit
        place = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        return (shutil.disk_usage(place).free + self.size) // 2

    def make(self, key: str, need: int, what: str) -> None:
        """Let `need` bytes more of the model `key` fit, by letting go of forms where that is enough.

        Raises DiskFull, naming what could be deleted, where it is not.
        """
        if self.size + need > self.most:
            with self._alone():
                self._make(key, need, what)

    def _make(self, key: str, need: int, what: str) -> None:
        size, most = self.size, self.most
        others = sorted(self._others(key), key=self._used)
        able = self._able(others)
        if size + need - sum(model.bytes for model in able) <= most:
            for model in able:
                size -= self._let_go(model) if size + need > most else 0  # who came first may have made the room
        if size + need > most:
            require_space(self.folder, need, what)  # a full disk has another remedy
            raise self._full(need, size, most, what, [model for model in others if model.folder.is_dir()])

    def spare(self) -> list[KnownModel]:
        """What it would let go by itself, the least used first."""
        return self._able(sorted(self._others(""), key=self._used))

    def _able(self, others: Sequence[KnownModel]) -> list[KnownModel]:
        return [model for model in others if model.form and self._can_be_made_again(model)]

    def _let_go(self, model: KnownModel) -> int:
        """The bytes that are free now; 0 where somebody writes the model."""
        with suppress(UnitBusy):
            Store(self.home).remove(model.key)
            self.note(LetGo(model.name, form_title(model.form), model.bytes, time.time()))
            return model.bytes
        return 0

    async def fit(self, key: str, units: Sequence[Unit], *, beside: int = 0) -> None:
        """Let what these units lack fit, in the cache and on the disk, and `beside` bytes of another model.

        Raises DiskFull.
        """
        need, what = await asyncio.to_thread(Store(self.home).lacking, key, tuple(units))
        await asyncio.to_thread(self.make, key, need + beside, what)
        await asyncio.to_thread(require_space, self.folder, need + beside, what)

    async def convert(self, source: Path, key: str, units: Sequence[Unit], progress: Progress = _quiet) -> None:
        """Make those units of a form that are not here from the published ones in `source`, as `convert_units` does.

        Raises DiskFull, BrokenModel or LoadFailed.
        """
        if units:
            await self.fit(key, units)
            await convert_units(self.home, source, key, units, progress)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Programs of one home that need room at once do not all let go of something for it."""
        locks = self.folder / LOCKS
        with writing(self.folder, "the cache"):
            locks.mkdir(parents=True, exist_ok=True)
            lock = FileLock(locks / "room.lock", thread_local=False)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def hold(self, key: str) -> FileLock:
        """Until it is released, nobody lets go of this model."""
        locks = self.folder / LOCKS
        lock = FileLock(locks / f"{key}-in-use-{secrets.token_hex(8)}.lock", thread_local=False)
        try:
            locks.mkdir(parents=True, exist_ok=True)
            (locks / f"{key}-used").touch()
            lock.acquire()
        except OSError as error:  # the model may lie elsewhere; whoever needs the cache says what is wrong with it
            log.info("%s cannot be written: %s", locks, error)
        return lock

    def _folders(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_dir()] if self.folder.is_dir() else []

    def _others(self, key: str) -> Iterator[KnownModel]:
        """Models of the cache that nobody has loaded."""
        for folder in self._folders():
            if not folder.name.startswith(".") and folder.name != key and not self.in_use(folder.name):
                model = known_model(folder, self.home)
                if not model.fault:
                    yield model

    def in_use(self, key: str) -> bool:
        """Whether a program of this machine has it loaded."""
        for file in (self.folder / LOCKS).glob(f"{key}-in-use-*.lock"):
            lock = FileLock(file, thread_local=False)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return True
            lock.release()  # of a process that is gone
            with suppress(OSError):
                file.unlink(missing_ok=True)
        return False

    def _used(self, model: KnownModel) -> float:
        """When it was loaded last, or came."""
        mark = self.folder / LOCKS / f"{model.key}-used"
        return (mark if mark.is_file() else model.folder).stat().st_mtime

    def _can_be_made_again(self, model: KnownModel) -> bool:
        try:
            ref = read_manifest(model.folder).ref()
        except TogetherError:
            return False
        return plain_units(replace(ref, path=os.devnull), self.home).units.issuperset(model.units)

    def _full(self, need: int, size: int, most: int, what: str, others: list[KnownModel]) -> DiskFull:
        commands = tuple(launch(f"rm {model.name}{form_options(model.form)}") for model in others[:_NAMED])
        delete = template("delete what you do not need: {commands}", commands=commands)
        nothing = template("nothing else in it can go")
        return DiskFull(
            "{what} needs {size:size} more in the cache {folder}, which has {sizes:sizes 0} and may have "
            "{sizes:sizes 1}; {delete}; or give it more room: --cache {more}GB",
            what=what,
            size=need,
            folder=str(self.folder),
            sizes=(size, most),
            delete=delete if commands else nothing,
            more=math.ceil((size + need) / 10**9),
        )


def _size(folder: Path) -> int:
    """Nothing where another program just let it go."""
    with suppress(FileNotFoundError):
        return sum(map(size_of, folder.iterdir()))
    return 0
