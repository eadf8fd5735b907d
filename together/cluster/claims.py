"""What every node of this machine, of all apps and users, was granted: a file for each in one folder that all can read.

There is no lock that a process could hold for ever: a node says what it is about to take, and looks then. Of two that
do so at the same moment at least one sees the other. What others wrote is bounded, and counts only as long as the
process it speaks of lives and belongs to the user who wrote it.
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import psutil
from pydantic_core import to_json

from together.cluster.cgroups import tightest_room
from together.cluster_types import Device, unique_names
from together.errors import NotEnoughMemory
from together.jsonfile import decode_json
from together.planning.memory import PROCESS_BYTES
from together.settings import Settings, parse_bytes

MEMORY = "this machine's memory"  # the pool of the CPU, and of a GPU that has no memory of its own
UNIFIED = ("mps", "gpu")  # Apple's GPU, in torch's and MLX's words: it shares the CPU's memory
LEAST_RESERVE = 2**30  # bytes left to the system and the user's other programs
LEAST = 2**28 + 2 * PROCESS_BYTES["torch"]  # to give even where less is free than the reserve: the bundled model's
SLACK = 2**28  # bytes of the reserve that a grant may take: what was offered a moment ago still loads
LONGEST_NAME = 200
TRIES = 5
MOST_FILES = 2**12  # in the folder
MOST_NODES = 64  # that count, this user's first
MOST_CLAIMS = 64  # of a node: for each a process is looked at
LARGEST = 2**16  # bytes of a file
SAME_START = 10.0  # seconds between two readings of one process's start, which systems round and correct
STALE = 3600.0  # seconds until a file of ours that means nothing any more is removed


@dataclass(frozen=True, slots=True)
class Claim:
    """What one stage was granted, in bytes, and its process, 0 before it has one."""

    pool: str
    size: int
    pid: int = 0


@dataclass(frozen=True, slots=True)
class NodeClaims:
    """What a node says. `most`: bytes that it may be granted, by pool. `seen`: other nodes that it reckons with."""

    token: str
    pid: int
    started: float  # as `start_of` its process
    name: str
    most: dict[str, int]
    claims: tuple[Claim, ...] = ()
    offers: bool = False  # whether heads may have heard what it offers
    seen: tuple[str, ...] = ()

    def granted(self, pool: str) -> int:
        return sum(claim.size for claim in self.claims if claim.pool == pool)


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """The main memory at one moment, in bytes, of the whole machine."""

    total: int
    available: int
    granted: int  # to stages
    used: int  # by these stages already, of what they were granted
    limited: bool = False  # to what its cgroup may use: the system and other programs live elsewhere

    @property
    def reserve(self) -> int:
        """What is left to others: a tenth, of a machine at least 1 GiB, of which a small one still gives a little."""
        usual = self.available - max(0 if self.limited else LEAST_RESERVE, self.total // 10)
        return self.available - max(usual, min(LEAST, self.available // 2))

    @property
    def pool(self) -> int:
        """For all stages together, those that run among them. It does not change while one loads."""
        return self.available - self.reserve + self.used

    @property
    def left(self) -> int:
        """Of the pool, what was granted to nobody."""
        return max(self.pool - self.granted, 0)


@dataclass(frozen=True, slots=True)
class MainMemory:
    """What this process may see of it, in bytes; `limited` by its cgroup to less than the machine has left."""

    total: int
    available: int
    limited: bool = False


def main_memory() -> MainMemory:
    memory, room = psutil.virtual_memory(), tightest_room()
    if room is None or room.free >= memory.available:
        return MainMemory(memory.total, memory.available)
    return MainMemory(min(room.limit, memory.total), room.free, limited=True)


def machine_memory(claims: Iterable[Claim]) -> MachineMemory:
    """Now, with what stages were granted."""
    memory, own = main_memory(), [claim for claim in claims if claim.pool == MEMORY]
    granted = sum(claim.size for claim in own)
    used = sum(min(claim.size, private_bytes(claim.pid)) for claim in own)
    return MachineMemory(memory.total, memory.available, granted, used, memory.limited)


def private_bytes(pid: int) -> int:
    """What a process took from the free memory: without files that it has mapped. 0 where that cannot be read."""
    try:
        info = psutil.Process(pid).memory_info() if pid > 0 else None
    except (psutil.Error, ValueError, OverflowError):
        return 0
    return 0 if info is None else getattr(info, "private", info.rss - getattr(info, "shared", 0))


def pool_of(device: Device) -> str:
    """Devices of one pool share its memory."""
    return pool_of_name(device.name)


def pool_of_name(device: str) -> str:
    return MEMORY if device in ("cpu", *UNIFIED) else device


def default_folder() -> Path:
    """Where every user of this machine may write; the system's temporary folder is each user's own on some systems."""
    return Path(os.environ.get("PROGRAMDATA", "C:\\ProgramData") if os.name == "nt" else "/tmp") / "together-memory"


class ClaimsFolder:
    """All nodes' claims."""

    def __init__(self, settings: Settings) -> None:
        self.path = Path(settings.claims) if settings.claims else default_folder()

    @property
    def version(self) -> int:
        """Another one after every change."""
        with suppress(OSError):
            return self.path.stat().st_mtime_ns
        return 0

    def write(self, own: NodeClaims) -> None:
        """Replace the node's file. Raises OSError."""
        self._make()
        file = self._file(own)
        part = file.with_name(f"{file.stem}-{secrets.token_hex(8)}.new")  # others can read the token, and write here
        try:
            with part.open("xb") as new:  # never through a link that somebody put there
                if hasattr(os, "fchmod"):
                    os.fchmod(new.fileno(), 0o644)
                new.write(to_json(own))
            _replace(part, file)
        except OSError:
            with suppress(OSError):
                part.unlink()
            raise

    def has(self, own: NodeClaims) -> bool:
        return self._file(own).is_file()

    def remove(self, own: NodeClaims) -> None:
        with suppress(OSError):
            self._file(own).unlink()

    def nodes(self, most: Mapping[str, int]) -> tuple[NodeClaims, ...]:
        """Of the living, in a stable order; `most` bytes of a pool are more than anybody can have been granted."""
        sound = (node for node in self._read_all() if _is_sound(node, most))
        return tuple(sorted(islice(sound, MOST_NODES), key=lambda node: node.token))

    def _file(self, own: NodeClaims) -> Path:
        return self.path / f"{own.pid}-{own.token}.json"

    def _make(self) -> None:
        """Raises OSError, also where somebody put something else there."""
        try:
            self.path.mkdir(parents=True)
            self.path.chmod(0o1777)  # others' nodes write here, too, and none removes another one's file
        except FileExistsError:
            if not stat.S_ISDIR(self.path.lstat().st_mode):
                raise NotADirectoryError(f"{self.path} is not a folder") from None

    def _read_all(self) -> Iterator[NodeClaims]:
        """This user's first, so that no other user's files crowd them out."""
        found: list[tuple[bool, str]] = []
        with suppress(OSError), os.scandir(self.path) as entries:
            for entry in islice(entries, MOST_FILES):
                with suppress(OSError):
                    found.append((entry.stat(follow_symlinks=False).st_uid != _user(), entry.path))
        for foreign, path in sorted(found):
            node = _read(path) if path.endswith(".json") else None  # what is only being written counts once it is
            if node is not None:
                yield node
            elif not foreign:
                _remove_stale(path)


def _user() -> int:
    """As files have it; 0 where they have none."""
    return os.getuid() if hasattr(os, "getuid") else 0


def _replace(part: Path, file: Path) -> None:
    for _ in range(TRIES):
        with suppress(PermissionError):  # Windows', while another node reads the file
            os.replace(part, file)
            return
        time.sleep(0.002)
    os.replace(part, file)


def start_of(process: psutil.Process) -> float:
    """When it was, in seconds of a clock that nobody sets: Linux counts from its boot, others note the time of then."""
    return process.create_time() - (psutil.boot_time() if sys.platform == "linux" else 0.0)


def _read(path: str) -> NodeClaims | None:
    """None for all that no living node wrote: links, pipes, nonsense, words about another user's process."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    try:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST:
            return None
        node = decode_json(os.read(file, LARGEST), NodeClaims)
    except (OSError, ValueError):
        return None
    finally:
        os.close(file)
    return node if _lives(node, about.st_uid) else None


def _lives(node: NodeClaims, user: int) -> bool:
    try:
        process = psutil.Process(node.pid)
        if abs(start_of(process) - node.started) > SAME_START or process.status() == psutil.STATUS_ZOMBIE:
            return False
        return os.name != "posix" or process.uids().real == user
    except (psutil.Error, ValueError, OverflowError):
        return False


def _is_sound(node: NodeClaims, most: Mapping[str, int]) -> bool:
    if len(node.claims) > MOST_CLAIMS:
        return False
    sizes = [*node.most.values(), *(claim.size for claim in node.claims)]
    return min(sizes, default=0) >= 0 and all(node.granted(pool) <= size for pool, size in most.items())


def _remove_stale(path: str) -> None:
    with suppress(OSError):
        if time.time() - os.lstat(path).st_mtime > STALE:
            os.unlink(path)


# --- for those who are no node ----------------------------------------------------------------------------------------


def all_nodes(settings: Settings) -> tuple[NodeClaims, ...]:
    return ClaimsFolder(settings).nodes({MEMORY: psutil.virtual_memory().total})


@dataclass(frozen=True, slots=True)
class NodeHere:
    """A node of this machine, or a script: what its layers were granted of main memory, in bytes."""

    name: str
    granted: int


@dataclass(frozen=True, slots=True)
class SharedOut:
    """Main memory in bytes; `total` is the sum of the four after it."""

    total: int
    others: int  # used by the system and other programs
    kept: int  # kept free for them
    granted: int  # to the layers of all nodes, whether they use it already or not
    left: int  # for more layers
    nodes: tuple[NodeHere, ...]  # no two of one name


def shared_out(settings: Settings) -> SharedOut:
    """Who has what of this machine now."""
    nodes = all_nodes(settings)
    memory = machine_memory(claim for node in nodes for claim in node.claims)
    others = memory.total - memory.available - memory.used
    names = unique_names({node.token: node.name for node in nodes})
    here = sorted((NodeHere(names[node.token], node.granted(MEMORY)) for node in nodes), key=lambda node: node.name)
    kept = memory.total - others - memory.granted - memory.left
    return SharedOut(memory.total, others, kept, memory.granted, memory.left, tuple(here))


def left_over(settings: Settings) -> int:
    """Bytes of main memory that nobody was granted: what one more program of ours may take now."""
    left = shared_out(settings).left
    return min(left, parse_bytes(settings.memory)) if settings.memory else left


@contextmanager
def claiming(settings: Settings, name: str, claims: Sequence[Claim]) -> Iterator[Callable[[Sequence[int]], None]]:
    """Count among the nodes of this machine within the block; give what it yields the stages' processes, in order.

    Raises NotEnoughMemory where nodes and scripts were granted too much for these claims.
    """
    process, folder = psutil.Process(), ClaimsFolder(settings)
    own = NodeClaims(secrets.token_hex(8), process.pid, start_of(process), name[:LONGEST_NAME], {}, tuple(claims))

    def say_pids(pids: Sequence[int]) -> None:
        with suppress(OSError):  # then nobody learns of it, and that is all
            mine = tuple(replace(claim, pid=pid) for claim, pid in zip(claims, pids, strict=True))
            folder.write(replace(own, claims=mine))

    try:
        say_pids([0] * len(claims))
        others = (claim for node in all_nodes(settings) if node.token != own.token for claim in node.claims)
        left, need = machine_memory(others).left, own.granted(MEMORY)
        if need > left + SLACK:
            raise NotEnoughMemory(
                "{name} needs {sizes:sizes 0} in this machine's memory, {sizes:sizes 1} are left; lower context or "
                "users, or unload a model here",
                name=name,
                sizes=(need, left),
            )
        yield say_pids
    finally:
        folder.remove(own)
