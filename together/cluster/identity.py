"""What a node is called, what memory it may give, and where it is reached: stable ids, ports, addresses."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from together.cluster_types import Endpoint, is_address
from together.errors import AppError, BadSetting
from together.jsonfile import recall_json, write_json
from together.settings import Settings
from together.trust.credentials import is_plain

log = logging.getLogger(__name__)

SLOTS = 64  # nodes of one user on one machine
EVERYWHERE = ("0.0.0.0", "::")  # hosts that mean every address of this machine, also later ones
LOOK_EVERY = 1.0  # seconds between looks at this machine's addresses
PORTS = 16  # a node's block: its own port first, then its stages'
BLOCKS = 64  # that a node tries


@dataclass(frozen=True, slots=True)
class Identity:
    """A node's names and where it listens; the node gets another one when that changes."""

    id: str
    name: str
    machine: str
    endpoint: Endpoint

    @property
    def ports(self) -> tuple[int, int]:
        """First and last port of its block."""
        return self.endpoint.port, self.endpoint.port + PORTS - 1


def port_blocks(first: int) -> range:
    """The first ports of the blocks that a node tries."""
    return range(first, min(first + BLOCKS * PORTS, 2**16 - PORTS), PORTS)


def machine_id(home: Path) -> str:
    """The same for every node of this machine, which take turns in measuring it."""
    known = Path("/etc/machine-id")
    if known.is_file():
        seed = known.read_text() + socket.gethostname()
    else:
        seed = _stored(home / "machine-id.json")
    return hashlib.sha256(seed.encode()).hexdigest()[:16]


def nodes_run(home: Path) -> bool:
    """Whether a node of this home runs."""
    for file in (home / "nodes").glob("*.lock"):
        try:
            with FileLock(file).acquire(timeout=0):
                pass
        except Timeout:
            return True
    return False


def claim_node_id(home: Path) -> tuple[str, FileLock]:
    """A node id that stays the same over restarts: the first free slot's. Hold the lock while the node lives."""
    folder = home / "nodes"
    folder.mkdir(parents=True, exist_ok=True)
    for slot in range(SLOTS):
        lock = FileLock(folder / f"{slot}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        return _stored(folder / f"{slot}.json"), lock
    raise AppError("{slots} nodes run here already; stop one first", slots=SLOTS)


@dataclass(frozen=True, slots=True)
class _StoredId:
    id: str


def _stored(path: Path) -> str:
    """The id in `path`, made on first use."""
    known = recall_json(path, _StoredId)
    if known is None:
        known = _StoredId(secrets.token_hex(8))
        write_json(path, known)
    return known.id


def node_name(settings: Settings) -> str:
    return settings.name or socket.gethostname() or "node"


def own_addresses(host: str) -> tuple[str, ...]:
    """The addresses under which others reach a server bound to `host`. Raises BadSetting for a name that has none."""
    if host not in EVERYWHERE:
        return (_address_of(host),)
    found = [
        item.address for items in psutil.net_if_addrs().values() for item in items if item.family == socket.AF_INET
    ]
    usable = [address for address in found if not ipaddress.ip_address(address).is_loopback]
    return tuple(dict.fromkeys(usable)) or ("127.0.0.1",)


def _address_of(host: str) -> str:
    try:
        address = host if is_address(host) else socket.gethostbyname(host)
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind((address, 0))  # fails for another machine's
    except OSError:
        message = "this machine has no address for {host!r}; give --host 127.0.0.1, 0.0.0.0 or one of its own"
        raise BadSetting(message, host=host) from None
    return address


class Whereabouts:
    """Where a server of this process is reached. `moved` is called when the addresses change.

    A server bound to one address stays there: only one that listens everywhere follows the machine.
    """

    def __init__(self, host: str, moved: Callable[[], None] = lambda: None, name: str = "") -> None:
        """`name` is that in its certificate. Raises BadSetting for a host that has no address.

        The port is known once it is bound.
        """
        self.endpoint = Endpoint(own_addresses(host), 0, "" if is_plain(host) else name)
        self.moved = moved
        self._host = host

    def bound(self, port: int) -> None:
        self.endpoint = replace(self.endpoint, port=port)

    async def follow(self) -> None:
        """Poll until cancelled: no system tells of a change in a way that the others share."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            await self.look()

    async def look(self) -> None:
        if self._host not in EVERYWHERE:
            return
        try:
            addresses = await asyncio.to_thread(own_addresses, self._host)
        except OSError as error:  # an interface went away while it was read
            log.info("this machine's addresses cannot be read now: %s", error)
            return
        if addresses != self.endpoint.addresses:
            log.info("this machine's addresses are %s now", ", ".join(addresses))
            self.endpoint = replace(self.endpoint, addresses=addresses)
            self.moved()
