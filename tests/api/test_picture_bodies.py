"""Bodies with pictures may be larger than others; what is beside the pictures may not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from starlette.requests import Request

from together.api.guard import MAX_BODY, MAX_PICTURES, PICTURES, read_body
from together.api.responses import BodyTooLarge

CHUNK = 2**16
PICTURE = b'{"url": "data:image/png;base64,%s"}'
CHATS = PICTURES["/chat/completions"]


async def received(body: bytes) -> tuple[bytes | None, int]:
    """The body as it is read, if it is, and how many bytes were taken."""
    taken = 0

    async def chunks() -> AsyncIterator[dict[str, object]]:
        nonlocal taken
        for at in range(0, len(body), CHUNK):
            taken += len(body[at : at + CHUNK])
            yield {"type": "http.request", "body": body[at : at + CHUNK], "more_body": True}
        yield {"type": "http.request", "body": b"", "more_body": False}

    each = chunks()
    request = Request({"type": "http", "headers": []}, lambda: anext(each))
    try:
        return await read_body(request, CHATS), taken
    except BodyTooLarge:
        return None, taken


@pytest.mark.parametrize(
    ("body", "read"),
    [
        (bytes(MAX_BODY), True),
        (PICTURE % (b"A" * 3 * MAX_BODY), True),
        (b" " * (MAX_BODY // 2) + PICTURE % (b"A" * 2 * MAX_BODY) * 2 + b" " * (MAX_BODY // 3), True),
        (bytes(MAX_BODY + 1), False),
        (PICTURE % b"A" + bytes(MAX_BODY), False),
        (b" " * MAX_BODY + PICTURE % (b"A" * MAX_BODY), False),
        (PICTURE % (b"A" * MAX_PICTURES), False),
    ],
    ids=["text", "picture", "both", "more text", "text behind", "text before", "more picture"],
)
async def test_what_is_beside_pictures_is_bounded_as_ever(body: bytes, read: bool) -> None:
    found, _ = await received(body)
    assert (found == body) == read


async def test_a_text_is_refused_as_soon_as_it_is_too_long() -> None:
    _, taken = await received(bytes(8 * MAX_BODY))
    assert taken <= MAX_BODY + CHUNK


async def test_a_request_with_too_many_pictures_says_its_limit() -> None:
    body = PICTURE % (b"A" * MAX_PICTURES)
    with pytest.raises(BodyTooLarge, match="at most 32 MB, and files grow by a third in it; send fewer"):
        await read_body(Request({"type": "http", "headers": []}, lambda: whole(body)), CHATS)


async def test_only_chats_have_pictures() -> None:
    body = PICTURE % (b"A" * 2 * MAX_BODY)
    request = Request({"type": "http", "headers": []}, lambda: whole(body))
    with pytest.raises(BodyTooLarge):
        await read_body(request)


async def whole(body: bytes) -> dict[str, object]:
    return {"type": "http.request", "body": body, "more_body": False}
