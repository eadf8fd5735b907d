"""The page's place in the app. It is imported and built at its first visit: that takes seconds and much memory."""

from __future__ import annotations

import asyncio
import importlib
from contextlib import AsyncExitStack

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from together.head.head import Head


class LatePage:
    """An ASGI app that becomes the page of `head` with its first request. Close it when the server has ended."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._opening = asyncio.Lock()
        self._page: FastAPI | None = None
        self._lifespan = AsyncExitStack()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._opening:
            page = self._page = self._page or await self._open()
        await page(scope, receive, send)

    async def close(self) -> None:
        await self._lifespan.aclose()

    async def _open(self) -> FastAPI:
        module = await asyncio.to_thread(importlib.import_module, "webui.page")
        page: FastAPI = module.mount(FastAPI(openapi_url=None), self._head)
        await self._lifespan.enter_async_context(page.router.lifespan_context(page))  # a mounted app's is nobody else's
        return page
