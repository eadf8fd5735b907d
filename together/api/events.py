"""Server-sent events as bytes."""

from __future__ import annotations

import json

DONE = b"data: [DONE]\n\n"


def event(body: object, name: str = "") -> bytes:
    """One server-sent event; ASCII JSON, so a character can never be split."""
    before = f"event: {name}\n".encode() if name else b""
    return before + b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"
