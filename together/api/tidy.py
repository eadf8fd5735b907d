"""Gives back what large bodies took, however their requests end. Knows no route."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from together.memory import give_back

LARGE = 2**18  # bytes of a body; read as lists and tables it takes ten times as much


class Tidy:
    """ASGI middleware around everything."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            if size > LARGE:
                await asyncio.to_thread(give_back)
