"""An event loop in a thread of its own, for callers that have none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from together.errors import NotServing

T = TypeVar("T")


LOOK_EVERY = 0.2  # seconds: on Windows a wait without an end does not see Ctrl-C


def until_done(future: Future[Any]) -> None:
    while not wait([future], LOOK_EVERY).done:
        pass


class LoopThread:
    """Runs coroutines for any thread until `close`. As a context manager it closes at the end."""

    def __init__(self) -> None:
        begun: Future[asyncio.AbstractEventLoop] = Future()
        self._works: set[asyncio.Task[Any]] = set()
        self._end = asyncio.Event()
        self._closed = False
        # A daemon: a script that ends without `close` is not held up.
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live(begun)), name="together", daemon=True)
        self._thread.start()
        self._loop = begun.result()

    def __enter__(self) -> LoopThread:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start `work`; cancelling the future cancels it. Raises NotServing after `close`."""
        if self._closed:
            work.close()
            raise NotServing("the model was closed; call partition again")
        return asyncio.run_coroutine_threadsafe(self._tracked(work), self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The outcome of `work`, which is cancelled if the waiting is interrupted."""
        future = self.submit(work)
        try:
            until_done(future)
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def call(self, function: Callable[[], object]) -> None:
        """Call `function` in the loop, soon."""
        self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        """Cancel what runs, and return when all of it has cleaned up. Harmless the second time."""
        if not self._closed:
            self._closed = True
            self.call(self._end.set)
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

    async def _tracked(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        assert task is not None
        self._works.add(task)
        try:
            return await work
        finally:
            self._works.discard(task)
