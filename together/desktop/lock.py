"""One app per user: a lock held while the app lives, and a file that says where it listens. Knows no HTTP."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from together import __version__


@dataclass(frozen=True, slots=True)
class Announced:
    """What the port file says. It may be stale: a crash leaves it behind."""

    pid: int
    url: str
    version: str


class AppLock:
    """The lock and the port file in one home folder; the system frees the lock however its process ends."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._port_file = _port_file(home)
        self._lock = FileLock(home / "app.lock")

    def acquire(self) -> bool:
        """Whether the lock is ours now; a port file that an earlier owner left behind is gone then."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        self._port_file.unlink(missing_ok=True)
        return True

    def announce(self, url: str) -> None:
        """Say where we listen. Written aside and moved: nobody ever reads half of it."""
        aside = self._port_file.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(asdict(Announced(os.getpid(), url, __version__))), "utf-8")
        aside.replace(self._port_file)

    def release(self) -> None:
        self._port_file.unlink(missing_ok=True)
        self._lock.release()


def is_held(home: Path) -> bool:
    """Whether an app lives that has this home. Then the port file, if there is one, is that app's own."""
    lock = FileLock(home / "app.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    lock.release()
    return False


def read_announced(home: Path) -> Announced | None:
    """The port file, None where there is none that can be read."""
    try:
        data = json.loads(_port_file(home).read_text("utf-8"))
        return Announced(int(data["pid"]), str(data["url"]), str(data["version"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _port_file(home: Path) -> Path:
    return home / "app.json"
