"""A head's routes over HTTP, without the rest of the app. Knows no test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

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


ELSEWHERE = {"X-Forwarded-For": "203.0.113.9"}  # who comes through a proxy is not of this machine


@asynccontextmanager
async def client_from_elsewhere(head: Head, own: str = "") -> AsyncIterator[httpx.AsyncClient]:
    """As `client_of`, of another machine, as far as the app can tell; it listens as `--host 0.0.0.0` does."""
    head.settings = replace(head.settings, host="0.0.0.0")
    listener = bind("127.0.0.1", 0)
    client = httpx.AsyncClient(base_url=url_of(listener), timeout=PATIENCE, trust_env=False, headers=ELSEWHERE)
    async with serving(build_app(head, lambda: None, own), listener), client:
        yield client
