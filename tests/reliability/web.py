"""A head's HTTP routes on a port of their own, and bodies for them. Knows no test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from together.api.app import build_app
from together.api.server import bind, serving, url_of
from together.head.head import Head


@asynccontextmanager
async def web(head: Head) -> AsyncIterator[str]:
    """The head's routes, and nothing else of the app; gives their address."""
    listener = bind("127.0.0.1", 0)
    async with serving(build_app(head, lambda: None), listener):
        yield url_of(listener)


def chat_body(text: str, tokens: int, stream: bool = True) -> dict[str, object]:
    """A greedy chat of one message, as HTTP takes it."""
    messages = [{"role": "user", "content": text}]
    return {"messages": messages, "max_tokens": tokens, "temperature": 0, "stream": stream}
