"""Who this machine and this node are: stable ids and addresses. Knows no sockets but those of the address list."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import secrets
import socket
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from together.errors import AppError, BadSetting
from together.settings import Settings

SLOTS = 64  # nodes of one user on one machine


def machine_id(home: Path) -> str:
    """The same for every node on this machine, so that they share its memory and measure one at a time."""
    known = Path("/etc/machine-id")
    if known.is_file():
        seed = known.read_text() + socket.gethostname()
    else:
        seed = _stored(home / "machine-id.json")
    return hashlib.sha256(seed.encode()).hexdigest()[:16]


def claim_node_id(home: Path) -> tuple[str, FileLock]:
    """A node id that stays the same over restarts: the first free slot's. The lock is held while the node lives."""
    folder = home / "nodes"
    folder.mkdir(parents=True, exist_ok=True)
    for slot in range(SLOTS):
        lock = FileLock(folder / f"{slot}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        return _stored(folder / f"{slot}.json"), lock
    raise AppError(f"{SLOTS} nodes run here already; stop one first")


def _stored(path: Path) -> str:
    """The id in `path`, made on first use."""
    try:
        return str(json.loads(path.read_text())["id"])
    except (OSError, ValueError, KeyError, TypeError):
        made = secrets.token_hex(8)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps({"id": made}))
        part.replace(path)
        return made


def node_name(settings: Settings) -> str:
    return settings.name or socket.gethostname() or "node"


def own_addresses(host: str) -> tuple[str, ...]:
    """The addresses under which others reach a server bound to `host`. Raises BadSetting for a name that has none."""
    if host not in ("0.0.0.0", "::"):
        return (_address_of(host),)
    found = [
        item.address for items in psutil.net_if_addrs().values() for item in items if item.family == socket.AF_INET
    ]
    usable = [address for address in found if not ipaddress.ip_address(address).is_loopback]
    return tuple(dict.fromkeys(usable)) or ("127.0.0.1",)


def _address_of(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return socket.gethostbyname(host)
    except OSError:
        raise BadSetting(
            f"this machine has no address for {host!r}; give --host 127.0.0.1, 0.0.0.0 or one of its own"
        ) from None
