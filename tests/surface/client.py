"""A client of the page's events; as a program, one on another machine. Knows no test and imports no page."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx

API = "/gradio_api"
JSON = {"Content-Type": "application/json"}


async def join(client: httpx.AsyncClient, order: dict[str, Any]) -> httpx.Response:
    tab = {"session_hash": secrets.token_hex(6)}
    return await client.post(f"{API}/queue/join", content=json.dumps(tab | order), headers=JSON)


async def said(client: httpx.AsyncClient, order: dict[str, Any]) -> str:
    tab = secrets.token_hex(6)
    joined = await join(client, {"session_hash": tab} | order)
    if joined.status_code != 200:
        return joined.text
    return "".join([message async for message in messages(client, tab)])


async def messages(client: httpx.AsyncClient, tab: str) -> AsyncIterator[str]:
    """What the events of a tab say, until the last of them has ended."""
    async with client.stream("GET", f"{API}/queue/data", params={"session_hash": tab}) as stream:
        async for line in stream.aiter_lines():
            yield line
            if line.startswith("data: ") and json.loads(line[6:])["msg"] == "close_stream":
                return


async def main() -> None:
    """Events from the standard input, one after another; their answers to the standard output."""
    shown = {"x-api-key": sys.argv[2]}
    async with httpx.AsyncClient(base_url=sys.argv[1], timeout=60, trust_env=False, headers=shown) as client:
        print(json.dumps({name: await said(client, order) for name, order in json.load(sys.stdin).items()}))


if __name__ == "__main__":
    asyncio.run(main())
