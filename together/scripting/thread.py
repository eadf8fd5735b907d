"""An event loop in a thread of its own, for callers that have none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future, wait
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from together.errors import NotServing

T = TypeVar("T")

LOOK_EVERY = 0.2  # seconds: on Windows a wait without an end does not see Ctrl-C


class LoopThread:
    """Awaits for any thread what it is given, until `close`."""

    def __init__(self) -> None:
        begun: Future[asyncio.AbstractEventLoop] = Future()
        self._works: set[asyncio.Task[Any]] = set()
        self._end = asyncio.Event()
        self._closed = False
        # A daemon: a script that ends without `close` is not held up.
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live(begun)), name="together", daemon=True)
        self._thread.start()
        self._loop = begun.result()

    def submit(self, work: Callable[[], Awaitable[T]]) -> Future[T]:
        """Start `work`; cancelling the future cancels it. Raises NotServing after `close`."""
        if self._closed:
            raise _closed()
        return asyncio.run_coroutine_threadsafe(self._tracked(work), self._loop)

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """The outcome of `work`, which is cancelled if the waiting is interrupted. Raises NotServing after `close`.

        And when `close` ends it.
        """
        future = self.submit(work)
        try:
            return _outcome(future, future)
        except CancelledError:
            if self._closed:
                raise _closed() from None
            raise

    def enter(self, manager: AbstractAsyncContextManager[T]) -> T:
        """Enter `manager`, which is left by `close`, or when its block is cancelled."""
        entered: Future[T] = Future()

        async def hold() -> None:
            try:
                async with manager as value:
                    entered.set_result(value)
                    await asyncio.Event().wait()
            except BaseException as error:
                if not entered.done():
                    entered.set_exception(error)
                raise

        return _outcome(entered, self.submit(hold))

    def close(self) -> None:
        """Cancel what runs, and return when all of it has cleaned up. Harmless the second time."""
        if not self._closed:
            self._closed = True
            self._loop.call_soon_threadsafe(self._end.set)
        while self._thread.is_alive():
            self._thread.join(LOOK_EVERY)

    async def _live(self, begun: Future[asyncio.AbstractEventLoop]) -> None:
        begun.set_result(asyncio.get_running_loop())
        await self._end.wait()
        for work in self._works:
            if not work.cancelling():  # once: a second time would break into its cleaning up
                work.cancel()
        if self._works:
            await asyncio.wait(self._works)

    async def _tracked(self, work: Callable[[], Awaitable[T]]) -> T:
        task = asyncio.current_task()
        assert task is not None
        self._works.add(task)
        try:
            return await work()
        finally:
            self._works.discard(task)


def _closed() -> NotServing:
    return NotServing("the model was closed; call partition again")


def _outcome(future: Future[T], work: Future[Any]) -> T:
    """What comes of `future`; an interruption cancels `work`."""
    try:
        while not wait([future], LOOK_EVERY).done:
            pass
        return future.result()
    except BaseException:
        work.cancel()
        raise
