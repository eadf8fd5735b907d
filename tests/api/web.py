"""A head's routes over HTTP, without the rest of the app. Knows no test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from tests.support.patience import PATIENCE
from together.api.app import build_app
from together.api.server import bind, serving, url_of
from together.head.head import Head


@asynccontextmanager
async def client_of(head: Head) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the head's routes, served meanwhile in this process."""
    listener = bind("127.0.0.1", 0)
    client = httpx.AsyncClient(base_url=url_of(listener), timeout=PATIENCE, trust_env=False)
    async with serving(build_app(head, lambda: None), listener), client:
        yield client
