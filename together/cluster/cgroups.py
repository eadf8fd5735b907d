"""Linux's memory cgroups, of either version: which one a process's memory is counted in, its limit, its kills."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_NO_LIMIT = 2**60  # version 1 writes a number for it
_STALLED = re.compile(r"^some avg10=([\d.]+)", re.MULTILINE)
_FILES = re.compile(r"^(?:in)?active_file (\d+)$", re.MULTILINE)
_TOTALS = re.compile(r"^total_(?:in)?active_file (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class CgroupTally:
    """A memory cgroup at one moment: how many of its processes were killed for lack of memory, and its members."""

    folder: Path
    kills: int
    members: frozenset[int]

    @classmethod
    def of(cls, pid: int) -> CgroupTally | None:
        """The cgroup of a living process; None where there is none that counts, or it cannot be seen."""
        with suppress(OSError, ValueError):
            folder = memory_cgroup(pid)
            look = cls.at(folder) if folder else None
            return look if look and pid in look.members else None
        return None

    @classmethod
    def at(cls, folder: Path) -> CgroupTally | None:
        """Raises OSError where the cgroup is gone."""
        names = ("memory.events.local", "memory.events", "memory.oom_control")
        counts = (count_of(folder / name) for name in names)
        kills = next((count for count in counts if count is not None), None)
        members = frozenset(map(int, (folder / "cgroup.procs").read_text().split()))
        return None if kills is None else cls(folder, kills, members)

    def proves(self, pid: int) -> bool:
        """Whether at least as many were killed since this look as are missing, `pid` among them.

        A member 0 is a process that cannot be seen from here: whether it is missing is not known.
        """
        try:
            now = CgroupTally.at(self.folder)
        except OSError:
            return False
        if now is None or 0 in self.members | now.members:
            return False
        missing = self.members - now.members
        return pid in missing and now.kills - self.kills >= len(missing)


def count_of(file: Path) -> int | None:
    try:
        found = _COUNT.search(file.read_text(encoding="ascii", errors="replace"))
    except OSError:
        return None
    return int(found[1]) if found else None


def memory_cgroup(pid: int | str) -> Path | None:
    """Where the cgroup that a process's memory is counted in can be seen. Raises OSError for one that is gone."""
    groups = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), path))  # version 2 names no controllers
    kind = "memory" if "memory" in groups else ""
    return _seen(groups[kind], kind) if kind in groups else None


def _seen(group: str, controller: str) -> Path | None:
    """A cgroup's folder: mounts may show a part of the tree, at any place."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        root, place = (_plain(part) for part in left.split()[3:5])
        system, _, options = right.split(" ", 2)
        found = controller in options.split(",") if controller else system == "cgroup2"
        if system.startswith("cgroup") and found and Path(group).is_relative_to(root):
            return Path(place) / Path(group).relative_to(root)
    return None


def _plain(text: str) -> str:
    """mountinfo writes blanks and the like as `\\040`."""
    return re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), text)


# --- limits -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CgroupRoom:
    """What a cgroup's limit is, and what its processes may still take, in bytes."""

    limit: int
    free: int


def tightest_room() -> CgroupRoom | None:
    """Of the cgroups that this process is in, that with the least left; None where no limit counts it."""
    rooms = [room for folder in _own_cgroups() if (room := _room(folder)) is not None]
    return min(rooms, key=lambda room: room.free, default=None)


def stalled_share(machine: Path = Path("/proc/pressure/memory")) -> float:
    """The part of the last ten seconds in which some process waited for memory: of our cgroup, or of the machine.

    0 where the system does not say.
    """
    files = (*(folder / "memory.pressure" for folder in _own_cgroups()[:1]), machine)
    for file in files:
        with suppress(OSError):
            if found := _STALLED.search(file.read_text()):
                return float(found[1]) / 100
    return 0.0


def _own_cgroups() -> tuple[Path, ...]:
    """This process's, then those around it, as far as they can be seen."""
    try:
        return _around(Path("/proc/self/cgroup").read_text())
    except (OSError, ValueError):
        return ()


@lru_cache(1)
def _around(known: str) -> tuple[Path, ...]:
    """`known` is what the system says of this process's cgroups: with another one they are looked for again."""
    return tuple(_upwards(memory_cgroup("self")))


def _upwards(folder: Path | None) -> Iterator[Path]:
    while folder is not None and (folder / "cgroup.procs").exists():
        yield folder
        folder = folder.parent


def _room(folder: Path) -> CgroupRoom | None:
    """Version 2 slows processes down at `memory.high` and kills at `memory.max`. Cached files can be let go."""
    limits = [_number(folder / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
    uses = [_number(folder / name) for name in ("memory.current", "memory.usage_in_bytes")]
    used = next((use for use in uses if use is not None), None)
    known = [limit for limit in limits if limit is not None and limit < _NO_LIMIT]
    if not known or used is None:
        return None
    return CgroupRoom(min(known), max(min(known) - used + _cached(folder), 0))


def _cached(folder: Path) -> int:
    try:
        text = (folder / "memory.stat").read_text()
    except OSError:
        return 0
    return sum(map(int, _TOTALS.findall(text) or _FILES.findall(text)))  # version 1 has those of its children beside


def _number(file: Path) -> int | None:
    """None where it is not there, or says `max`."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
