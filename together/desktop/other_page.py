"""Asks the page of an app on another machine where its head listens: what `--peer` takes beside an address."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from together.cluster_types import Endpoint
from together.errors import AppError
from together.jsonfile import decode_json
from together.trust.secret import SecretFile

ASK_WITHIN = 5.0  # seconds for another machine's page, all of it
LARGEST_STATUS = 2**20  # bytes that it may say


@dataclass(frozen=True, slots=True)
class PageStatus:
    """What we read of another app's `/status`: where its head listens."""

    endpoint: Endpoint | None = None


def head_of(page: str, file: SecretFile) -> Endpoint:
    """Where the app of that page listens for nodes; the link with a key is its address, too.

    Raises AppError where no app of ours answers there, or where it asks for another key.
    """
    import httpx

    try:
        url = urlsplit(page)
        key = parse_qs(url.query).get("key", [""])[-1]
        head = decode_json(
            asyncio.run(_status_at(f"{url.scheme}://{url.netloc}", key, file.known())), PageStatus
        ).endpoint
    except httpx.HTTPStatusError as error:
        if error.response.status_code != 401:
            raise _no_app(page) from None
        raise AppError(
            "the app at {page} asks for a key; give the link that has one, or the line that its terminal shows",
            page=page.partition("?")[0],
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, TimeoutError):
        head = None
    if head is None or not 0 < head.port < 65536:
        raise _no_app(page)
    return Endpoint((url.hostname or "",), head.port)


def _no_app(page: str) -> AppError:
    return AppError(
        "no app of together answers at {page}; start it there with: python3 launch.py up --host 0.0.0.0",
        page=page.partition("?")[0],
    )


async def _status_at(page: str, key: str, secret: bytes | None) -> bytes:
    """Raises TimeoutError also for an answer that never ends, ValueError for one that is too long for any app's."""
    import httpx

    from together.trust.page import page_authority

    answer, shown = b"", {"Authorization": f"Bearer {key}"} if key else {}
    known = ssl.create_default_context(cadata=page_authority(secret) if secret else None)
    async with (
        asyncio.timeout(ASK_WITHIN),
        httpx.AsyncClient(trust_env=False, timeout=ASK_WITHIN, headers=shown, verify=known) as client,
        client.stream("GET", f"{page}/status") as parts,
    ):
        parts.raise_for_status()
        async for part in parts.aiter_bytes():
            answer += part
            if len(answer) > LARGEST_STATUS:
                raise ValueError("no status is that long")
    return answer
