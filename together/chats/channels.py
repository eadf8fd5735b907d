"""What watchers of conversations wait for, the locks of conversations, and the thread of the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar

from together.chats.live import Channel
from together.chats.records import Conversation
from together.chats.store import ChatStore
from together.ring.rpc import Broadcast
from together.sentences import Sentence

P = ParamSpec("P")
T = TypeVar("T")


class ChatChannels:
    """The conversations of one head. Methods belong to its event loop; the store works on a thread, in order."""

    def __init__(self, open_store: Callable[[], ChatStore]) -> None:
        """The store is opened when it is first needed."""
        self._open_store = open_store
        self._store: ChatStore | None = None  # the thread's alone
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="chats")
        self._channels: dict[tuple[str, str], Channel] = {}  # by owner and conversation
        self._lists: dict[str, Broadcast] = {}  # by owner
        self._tasks: set[asyncio.Task[Any]] = set()  # what runs to its end, whoever waits for it

    async def _end(self) -> None:
        """Wait for all tasks, then close the store."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._store is not None:
            await self.work(ChatStore.close)
            self._store = None
        self._thread.shutdown()

    async def work(self, order: Callable[Concatenate[ChatStore, P], T], *given: P.args, **named: P.kwargs) -> T:
        """Let the store's thread do `order`, after all that it was told before. Raises what it raises."""

        def run() -> T:
            if self._store is None:
                self._store = self._open_store()
            return order(self._store, *given, **named)

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    async def warning(self) -> Sentence:
        """What is wrong with the file; empty where nothing is."""
        return await self.work(lambda store: store.warning)

    async def now(self, owner: str, chat: str) -> Conversation:
        """With what its answers have so far. Raises NoSuchChat."""
        return await self._now(owner, chat, self._channels.get((owner, chat)) or Channel())

    async def _now(self, owner: str, chat: str, channel: Channel) -> Conversation:
        kept = await self.work(ChatStore.get, owner, chat)
        return replace(kept, turns=tuple(channel.live[t.id].turn if t.id in channel.live else t for t in kept.turns))

    async def _whole(self, order: Coroutine[Any, Any, T]) -> T:
        """Carry out `order` to its end, also where the request that gave it ends before: no half of it is kept."""
        return await asyncio.shield(self._task(order))

    def _task(self, order: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(order)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @asynccontextmanager
    async def _alone(self, owner: str, chat: str) -> AsyncIterator[Channel]:
        """Nobody else adds turns to that conversation or deletes it meanwhile."""
        with self._used(owner, chat) as channel:
            async with channel.lock:
                yield channel

    def changed(self, owner: str, chat: str = "") -> None:
        """The store has something new of a conversation, or of the list alone."""
        self._list(owner).notify()
        if chat and (channel := self._channels.get((owner, chat))) is not None:
            channel.version += 1
            channel.changed.notify()

    def _channel(self, owner: str, chat: str) -> Channel:
        return self._channels.setdefault((owner, chat), Channel())

    @contextmanager
    def _used(self, owner: str, chat: str) -> Iterator[Channel]:
        channel = self._channel(owner, chat)
        channel.users += 1
        try:
            yield channel
        finally:
            channel.users -= 1
            self._tidy(owner, chat)

    def _tidy(self, owner: str, chat: str) -> None:
        channel = self._channels.get((owner, chat))
        if channel is not None and not channel.live and not channel.users:
            del self._channels[(owner, chat)]

    def _list(self, owner: str) -> Broadcast:
        return self._lists.setdefault(owner, Broadcast())
