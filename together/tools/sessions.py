"""A server of tools, seen from the head: through a process of its own, which alone knows the protocol.

What a server sends, it sends there: what is too much for that process ends it, and not the head. The process starts
when a conversation first asks for the server's tools, and ends when nobody has asked for a while.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from together.errors import TogetherError
from together.processes import command, end, surroundings
from together.requests import Tool
from together.tools.offers import usable
from together.tools.servers import ToolServer
from together.tools.session_process import LONGEST_LINE
from together.wording import cut

log = logging.getLogger(__name__)

CONNECT = 30.0  # seconds from the start of the process to the list of tools: programs may load for a while
LONGEST_CALL = 120.0  # seconds
MEMORY = 512 * 2**20  # bytes of the process
LOOK_EVERY = 0.25  # seconds
STALE = 15.0  # seconds after which a session may not be one any more

WHY = {
    "gone": "the server {server} does not answer ({reason}); start it, or leave it out in the settings of this chat",
    "key": "the server {server} asks for a key, or for another one; remove it and add it with its key",
    "program": "the program of the server {server} cannot be started ({reason}); remove it and add it as it is started",
    "private": "the server {server} is at an address of this machine or its network, which a key's holder may use only "
    "where the terminal of the machine with the app added it: python3 launch.py tools add --key",
    "rubbish": "what the server {server} says is no MCP ({reason}); look at its address",
    "refused": "the server {server} refuses this call: {reason}",
    "slow": "the server {server} has not answered within {seconds} s; look at it, then try again",
    "large": "the server {server} sent more than this program takes; ask for less",
    "ended": "the process that talks with the server {server} ended; try again",
}


class ToolFault(TogetherError):
    """A server of tools is gone, slow, or says what it should not."""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """`failed`: the tool itself says so."""

    text: str
    failed: bool = False


class ToolSession:
    """One server. The first order starts its process; after a fault the next order starts another one."""

    def __init__(self, server: ToolServer) -> None:
        self.server = server
        self.used = 0.0  # on the loop's clock
        self.open = 0  # orders that wait for their answers
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0

    async def tools(self) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
        """As `usable` has them. Raises ToolFault."""
        fresh = self._process is None
        try:
            listed = await self._ask({"list": True}, CONNECT)
        except ToolFault:
            if fresh:
                raise
            listed = await self._ask({"list": True}, CONNECT)  # of a server that was started anew
        return await asyncio.to_thread(usable, listed["tools"])

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Raises ToolFault. Cancelled, it tells the server."""
        if self._process is not None and asyncio.get_running_loop().time() - self.used > STALE:
            await self._ask({"list": True}, CONNECT)  # one that was started anew meanwhile is noticed here
        found = await self._ask({"call": tool, "arguments": dict(arguments)}, LONGEST_CALL)
        return ToolResult(str(found["text"]), bool(found["failed"]))

    async def close(self) -> None:
        """End the process, and with it a program that is the server. A later order starts another one."""
        process, self._process = self._process, None
        if process is not None:
            await end(process)
        if self._reading is not None:
            await self._reading  # it ends with the process

    async def _ask(self, order: dict[str, Any], within: float) -> dict[str, Any]:
        self.used, self.open = asyncio.get_running_loop().time(), self.open + 1
        try:
            async with asyncio.timeout(within):
                reply = await self._exchange(order)
        except TimeoutError:
            await self.close()  # it may be busy with what it was sent
            raise self._fault("slow", seconds=int(within)) from None
        finally:
            self.used, self.open = asyncio.get_running_loop().time(), self.open - 1
        if (kind := str(reply.get("fault", ""))) in WHY:
            if kind != "refused":
                await self.close()
            raise self._fault(kind, reason=cut(" ".join(str(reply.get("reason", "")).split())))
        return reply

    async def _exchange(self, order: dict[str, Any]) -> dict[str, Any]:
        async with self._starting:
            process = await self._started()
        self._number = number = self._number + 1
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = reply
        try:
            await _write(process, {"id": number, **order})
            while not reply.done():
                await asyncio.wait([reply], timeout=LOOK_EVERY)
                self._look(process)
            return reply.result()
        finally:
            if self._waiting.pop(number, None) is not None and not reply.done():
                with suppress(OSError, RuntimeError):
                    await _write(process, {"cancel": number})

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *command("together.tools.session_process"),
                stderr=asyncio.subprocess.DEVNULL,
                limit=LONGEST_LINE,
                **surroundings(),
            )
        except OSError as error:
            raise self._fault("gone", reason=str(error)) from error
        server = self.server
        await _write(process, {name: getattr(server, name) for name in ("url", "command", "folder", "key", "anywhere")})
        await _write(process, {"environment": dict(server.environment)})
        self._reading = asyncio.create_task(self._read(process))
        return process

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Hand replies out until the process ends; then nobody waits any longer."""
        assert process.stdout is not None
        kind = "ended"
        try:
            while line := await process.stdout.readline():
                reply = json.loads(line)
                waiting = self._waiting.get(reply["id"])
                if waiting is not None and not waiting.done():
                    waiting.set_result(reply)
        except ValueError:  # a line that is too long, or none of ours
            kind = "large"
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        await process.wait()
        if process is self._process:
            self._process = None
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result({"fault": kind})

    def _look(self, process: asyncio.subprocess.Process) -> None:
        """End a process that takes too much memory."""
        with suppress(psutil.Error, ProcessLookupError):
            if psutil.Process(process.pid).memory_info().rss > MEMORY:
                log.warning("the server of tools %s sent too much", self.server.name)
                for waiting in self._waiting.values():
                    if not waiting.done():
                        waiting.set_result({"fault": "large"})
                process.kill()

    def _fault(self, kind: str, **values: Any) -> ToolFault:
        return ToolFault(WHY[kind], server=self.server.name, **values)


async def _write(process: asyncio.subprocess.Process, order: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(order).encode() + b"\n")
    with suppress(ConnectionError):  # it ended: its reader says so
        await process.stdin.drain()
