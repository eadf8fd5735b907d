"""Whether a child of this process was killed for lack of memory, as far as Linux proves it; other systems do not.

There are two proofs. The kernel's log names each process that it kills for lack of memory; often only root may read
it. A cgroup counts such kills without names, so its count is believed only where no other member of the cgroup went
missing within the last second; a member that came and was killed within that second cannot be told apart. A count for
the whole machine proves nothing: it rises with every such kill.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from together.sentences import NOTHING, Sentence, say

LOOK_EVERY = 0.5  # seconds between two looks at the cgroup
LOG_WITHIN = 0.5  # seconds: the kernel kills first and logs then
KERNEL_LOG = "/dev/kmsg"
_FIRST_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO; the log's process ids are those of this namespace
_KILLED = re.compile(rb"(?:^|: )Killed process (\d+) \(")
_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


@dataclass(slots=True)
class Witness:
    """Watches one process. Make it before the process starts, `close` it after."""

    _log: KernelLog | None = field(default_factory=lambda: KernelLog.open())
    _machine: int | None = field(default_factory=lambda: _count(Path("/proc/vmstat")))
    _looks: deque[CgroupTally] = field(default_factory=lambda: deque(maxlen=2))  # the newest may be of its last moment

    async def watch(self, pid: int) -> None:
        """Keep a fresh look at the process's cgroup; runs until cancelled, or returns where the log is enough."""
        while self._log is None and sys.platform == "linux":
            if (look := CgroupTally.of(pid)) is not None:
                self._looks.append(look)
            await asyncio.sleep(LOOK_EVERY)

    async def out_of_memory(self, pid: int) -> Sentence:
        """The proof that the process, which is gone, was killed for lack of memory; NOTHING without one."""
        if self._machine is not None and _count(Path("/proc/vmstat")) == self._machine:
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
            folder = _memory_cgroup(pid)
            look = cls.at(folder) if folder else None
            return look if look and pid in look.members else None
        return None

    @classmethod
    def at(cls, folder: Path) -> CgroupTally | None:
        """Raises OSError where the cgroup is gone."""
        names = ("memory.events.local", "memory.events", "memory.oom_control")
        counts = (_count(folder / name) for name in names)
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


def _count(file: Path) -> int | None:
    try:
        found = _COUNT.search(file.read_text(encoding="ascii", errors="replace"))
    except OSError:
        return None
    return int(found[1]) if found else None


def _memory_cgroup(pid: int) -> Path | None:
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
