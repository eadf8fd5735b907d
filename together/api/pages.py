"""The app's pages: static files of `webui/chat`, read once, under a policy that lets no script in but theirs.

One file is all views; which one is shown is told by the address (`app.js`). The Split panel is not among them.
"""

from __future__ import annotations

import hashlib
import json
from html import escape
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from together.models.generation import ANSWER_LIMIT
from together.sentences import EXAMPLES

FOLDER = Path(__file__).resolve().parents[2] / "webui" / "chat"
KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Markup comes in at one place of the page alone (`rendered` in dom.js); a browser that knows the last rule sees to it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types rendered"
)
_KEPT = "private, max-age=31536000, immutable"
_MOVED = {"/chat": "/", "/chat/settings": "/settings"}  # where views were


class BrowserRoute(APIRoute):
    """A page at an address that the API has, too: whoever does not ask for a page goes on to the API."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        wants_page = scope["type"] == "http" and "text/html" in Headers(scope=scope).get("accept", "")
        return super().matches(scope) if wants_page else (Match.NONE, {})


def page_routes() -> APIRouter:
    """`/`, `/chat/ID`, `/machines`, `/models`, `/settings`, and their files, whose address changes with them."""
    files = {file.name: file.read_bytes() for file in sorted(FOLDER.iterdir())}
    version = hashlib.sha256(b"".join(name.encode() + data for name, data in files.items())).hexdigest()[:16]
    page = _page(files.pop("index.html").decode(), f"/chat/files/{version}/")
    tag = f'"{hashlib.sha256(page).hexdigest()[:16]}"'
    router = APIRouter()

    async def view(request: Request) -> Response:
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "ETag": tag, "Vary": "Accept"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(page, media_type="text/html", headers=headers)

    async def moved(request: Request) -> Response:
        return RedirectResponse(_MOVED[request.url.path], 301)

    for place in _MOVED:
        router.add_api_route(place, moved)
    for place in ("/", "/chat/{chat}", "/machines", "/settings"):
        router.add_api_route(place, view, methods=["GET", "HEAD"])
    router.add_api_route("/models", view, route_class_override=BrowserRoute)

    @router.get("/chat/files/{asked}/{name}")
    async def file(asked: str, name: str) -> Response:
        if asked != version or name not in files:
            raise HTTPException(404, "there is no such file; load the page again")
        return Response(files[name], media_type=KINDS[Path(name).suffix], headers={"Cache-Control": _KEPT})

    return router


def _page(template: str, base: str) -> bytes:
    values = {"base": base, "examples": escape(json.dumps(EXAMPLES)), "limit": str(ANSWER_LIMIT)}
    return template.format(**values).encode()
