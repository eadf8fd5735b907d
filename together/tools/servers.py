"""Servers of tools by owner, in a file that nobody else reads. The terminal changes it, too.

A server is an address, or a program that the head starts. Programs come from the terminal alone, and belong to this
machine's user: who holds a key never starts one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock
from pydantic_core import to_json

from together.errors import AppError, BadRequest
from together.jsonfile import BrokenFile, read_json, write_json
from together.requests import LOCAL, Tool
from together.wording import cut, quoted, reason_of

NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
MOST_SERVERS = 16  # of one owner
MOST_ALLOWED = 256  # tools of one server
MOST_ADDRESS = 2000
MOST_KEY = 10_000  # letters


@dataclass(frozen=True, slots=True)
class ToolServer:
    """`url`, or the `command` of a program that speaks over its standard streams.

    `anywhere`: the address may be one of this machine or of its network; else it has to be public. `allowed` are tools
    that may be called without a yes, with the mark of what they said of themselves then.
    """

    name: str
    owner: str
    url: str = ""
    command: tuple[str, ...] = ()
    folder: str = ""  # in which the program runs
    key: str = ""  # goes with each request as "Authorization: Bearer"
    environment: Mapping[str, str] = field(default_factory=dict)  # of the program, beside a few of this user's
    anywhere: bool = False
    allowed: Mapping[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """Where it is, without what an address may have of secrets."""
        if self.command:
            return " ".join(self.command)
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def allows(self, tool: Tool) -> bool:
        return self.allowed.get(tool.name) == mark_of(tool)


@dataclass(frozen=True, slots=True)
class _KeptServers:
    servers: tuple[ToolServer, ...] = ()


def mark_of(tool: Tool) -> str:
    """Another one where a server says something else of its tool: what was allowed is then asked again."""
    said = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return hashlib.sha256(to_json(said)).hexdigest()


def check_server(server: ToolServer) -> None:
    """Raises BadRequest for what can be no server."""
    if not NAME.fullmatch(server.name):
        raise BadRequest("a server's name has 1 to 32 letters of A to Z, digits, _ and -, as calendar", "name")
    if len(server.key) > MOST_KEY or not server.key.isprintable() or not server.key.isascii():
        raise BadRequest("a server's key is one line of plain letters", "key")
    if server.command and server.owner != LOCAL:
        raise BadRequest("a program belongs to this machine's user alone; for a key, give an address", "command")
    if server.command:
        return
    try:
        parts = urlsplit(server.url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        fits = False
    if not fits or len(server.url) > MOST_ADDRESS or not server.url.isascii() or " " in server.url:
        raise BadRequest("a server's address is as http://127.0.0.1:3001/mcp or https://example.org/mcp", "url")


class ServerFile:
    """The servers of one home folder. What another process changes holds from the next look on. All methods block."""

    def __init__(self, home: Path) -> None:
        self._file = home / "tool_servers.json"
        self._lock = FileLock(home / "tool_servers.lock")

    def of(self, owner: str) -> tuple[ToolServer, ...]:
        """By name. Raises AppError where the file cannot be read."""
        return tuple(sorted((each for each in self._read() if each.owner == owner), key=lambda each: each.name))

    def find(self, owner: str, name: str) -> ToolServer:
        """Raises BadRequest for a name that the owner's servers do not have."""
        return _named(self.of(owner), name)

    def add(self, server: ToolServer) -> None:
        """Raises BadRequest where it cannot be one, or its name is taken."""
        check_server(server)
        with self._changing() as servers:
            own = [each.name for each in servers if each.owner == server.owner]
            if server.name in own:
                text = "there is a server {name} already; remove it first, or give another name"
                raise BadRequest(text, "name", name=quoted(server.name))
            if len(own) >= MOST_SERVERS:
                raise BadRequest("there are {most} servers already; remove one first", "name", most=MOST_SERVERS)
            self._write((*servers, server))

    def remove(self, owner: str, name: str) -> ToolServer:
        """Raises BadRequest for a name that the owner's servers do not have."""
        with self._changing() as servers:
            gone = _named(tuple(each for each in servers if each.owner == owner), name)
            self._write(tuple(each for each in servers if each is not gone))
        return gone

    def allow(self, owner: str, name: str, tool: Tool) -> None:
        """Let the model call that tool without a yes, as long as it says of itself what it says now."""
        with self._changing() as servers:
            old = _named(tuple(each for each in servers if each.owner == owner), name)
            allowed = {**old.allowed, tool.name: mark_of(tool)}
            if len(allowed) <= MOST_ALLOWED:
                self._write(tuple(replace(each, allowed=allowed) if each is old else each for each in servers))

    def ask_again(self, owner: str, name: str) -> None:
        """Take back all that `allow` said of a server."""
        with self._changing() as servers:
            old = _named(tuple(each for each in servers if each.owner == owner), name)
            self._write(tuple(replace(each, allowed={}) if each is old else each for each in servers))

    def forget(self, owner: str) -> int:
        """Remove all of an owner's; how many these were."""
        with self._changing() as servers:
            left = tuple(each for each in servers if each.owner != owner)
            if len(left) < len(servers):
                self._write(left)
        return len(servers) - len(left)

    def _read(self) -> tuple[ToolServer, ...]:
        try:
            kept = read_json(self._file, _KeptServers)
        except BrokenFile as error:
            text = "{error}; mend the file or delete it, then add the servers again"
            raise AppError(text, error=error.sentence) from None
        return kept.servers if kept is not None else ()

    def _write(self, servers: tuple[ToolServer, ...]) -> None:
        write_json(self._file, _KeptServers(servers), private=True)

    @contextmanager
    def _changing(self) -> Iterator[tuple[ToolServer, ...]]:
        """All servers, while nobody else changes them."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._lock:
                yield self._read()
        except OSError as error:
            text = "servers of tools cannot be kept in {folder}: {error}; make it yours to write"
            raise AppError(text, folder=str(self._file.parent), error=reason_of(error)) from None


def _named(servers: tuple[ToolServer, ...], name: str) -> ToolServer:
    found = next((each for each in servers if each.name == name), None)
    if found is None:
        raise NoSuchServer("there is no server of tools {name} here", "name", name=quoted(cut(name)))
    return found


class NoSuchServer(BadRequest):
    """A server that its owner does not have."""
