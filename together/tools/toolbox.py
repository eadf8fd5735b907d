"""The tools of all owners: which servers they have, and the sessions that are open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from together.errors import NotServing, TogetherError
from together.requests import Tool
from together.sentences import Sentence, template
from together.tools.offers import ChatTool, offers
from together.tools.servers import ServerFile, ToolServer
from together.tools.sessions import ToolResult, ToolSession

T = TypeVar("T")

MOST_SESSIONS = 12
IDLE = 300.0  # seconds until a session ends that nobody uses
PAUSE = 30.0  # seconds before a server that failed is asked again by an answer: no other one waits for it


@dataclass(frozen=True, slots=True)
class ToolOffer:
    """What a model is offered, and what is not there of what it should be."""

    tools: tuple[ChatTool, ...] = ()
    missing: tuple[Sentence, ...] = ()

    def find(self, name: str) -> ChatTool | None:
        return next((each for each in self.tools if each.tool.name == name), None)


class Toolbox:
    """Methods belong to one event loop. `home` is the folder of `ServerFile`."""

    def __init__(self, home: Path) -> None:
        self.file = ServerFile(home)
        self._sessions: dict[tuple[str, str], ToolSession] = {}  # by owner and name; the least recently used first
        self._failed: dict[tuple[str, str], tuple[ToolServer, float, Sentence]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    async def close(self) -> None:
        """End all sessions; none begins after it."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        await asyncio.gather(*(session.close() for session in self._sessions.values()), *self._tasks)
        self._sessions.clear()

    async def change(self, order: Callable[..., T], *given: Any) -> T:
        """A method of `ServerFile`, with its arguments."""
        return await asyncio.to_thread(order, self.file, *given)

    async def offer(self, owner: str, servers: Iterable[str], functions: tuple[Tool, ...]) -> ToolOffer:
        """Tools of the owner's servers with these names, and `functions`. A server that fails is missing."""
        listed: list[tuple[ToolServer, tuple[Tool, ...]]] = []
        missing: list[Sentence] = []
        wanted = tuple(dict.fromkeys(servers))
        if not wanted:
            return ToolOffer(offers((), functions))
        answers = await asyncio.gather(*(self._list(owner, name) for name in wanted))
        for name, found in zip(wanted, answers, strict=True):
            if isinstance(found, Sentence):
                missing.append(found)
                continue
            server, tools, odd = found
            listed.append((server, tools))
            if odd:
                text = "of the server {server} some tools are left out, since models cannot be held to them: {tools}"
                missing.append(template(text, server=name, tools=odd[:8]))
        return ToolOffer(offers(listed, functions), tuple(missing))

    async def _list(self, owner: str, name: str) -> tuple[ToolServer, tuple[Tool, ...], tuple[str, ...]] | Sentence:
        now = asyncio.get_running_loop().time()
        try:
            server = await self.change(ServerFile.find, owner, name)
            bare, since, said = self._failed.get((owner, name), (None, 0.0, None))
            if said is not None and bare == replace(server, allowed={}) and now - since < PAUSE:
                return said
            return server, *await self.tools(server)
        except TogetherError as error:
            return error.sentence

    async def tools(self, server: ToolServer) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
        """What a server has now, and the names of what cannot be offered of it. Raises ToolFault."""
        place = (server.owner, server.name)
        try:
            found = await self._session(server).tools()
        except TogetherError as error:
            now = asyncio.get_running_loop().time()
            self._failed[place] = replace(server, allowed={}), now, error.sentence
            raise
        self._failed.pop(place, None)
        return found

    async def try_server(self, server: ToolServer) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
        """As `tools`, of one that is not kept. Raises ToolFault."""
        session = ToolSession(server)
        try:
            return await session.tools()
        finally:
            await session.close()

    async def call(self, owner: str, name: str, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Raises ToolFault, or BadRequest where the server is not there any more."""
        server = await self.change(ServerFile.find, owner, name)
        return await self._session(server).call(tool, arguments)

    async def allow(self, owner: str, name: str, tool: str) -> None:
        """Call that tool without a yes from now on, as long as it stays what it is. Raises ToolFault or BadRequest."""
        server = await self.change(ServerFile.find, owner, name)
        found = next((each for each in (await self.tools(server))[0] if each.name == tool), None)
        if found is not None:
            await self.change(ServerFile.allow, owner, name, found)

    async def remove(self, owner: str, name: str) -> None:
        """Raises BadRequest for a name that the owner's servers do not have."""
        await self.change(ServerFile.remove, owner, name)
        await self._end(owner, name)

    async def forget(self, owner: str) -> int:
        """Remove all servers of an owner; how many these were."""
        for of, name in tuple(self._sessions):
            if of == owner:
                await self._end(of, name)
        return await self.change(ServerFile.forget, owner)

    async def _end(self, owner: str, name: str) -> None:
        self._failed.pop((owner, name), None)
        if (session := self._sessions.pop((owner, name), None)) is not None:
            await session.close()

    # --- sessions -----------------------------------------------------------------------------------------------------

    def _session(self, server: ToolServer) -> ToolSession:
        """The open one, unless the server is another one by now. Raises NotServing once this is closed."""
        if self._closed:
            raise NotServing("together ends")
        place, bare = (server.owner, server.name), replace(server, allowed={})
        session = self._sessions.pop(place, None)
        if session is not None and session.server != bare:
            self._later(session.close())
            session = None
        self._sessions[place] = session = session or ToolSession(bare)
        idle = [place for place, each in self._sessions.items() if not each.open and each is not session]
        for least in idle[: max(0, len(self._sessions) - MOST_SESSIONS)]:
            self._later(self._sessions.pop(least).close())
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(IDLE, self._end_idle)
        return session

    def _end_idle(self) -> None:
        loop = asyncio.get_running_loop()
        for place, session in tuple(self._sessions.items()):
            if not session.open and loop.time() - session.used >= IDLE:
                self._later(self._sessions.pop(place).close())
        self._sweep = loop.call_later(IDLE, self._end_idle) if self._sessions else None

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
