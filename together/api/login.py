"""How a browser comes in: a link with a key, or a page that asks for one; both become a cookie. Loads nothing.

A link of another site logs nobody in by itself: what is written then would belong to whoever has that key, too.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Scope

from together.api.access import Access, cookie_name
from together.api.responses import NoKey, TooManyWrongKeys
from together.api.visitors import visitor_of
from together.commands import as_typed
from together.trust.secret import SecretFile

LOGIN = "/login"
LOGOUT = "/logout"
AUTHORITY = "/ca.crt"
KEPT = 90 * 24 * 3600  # seconds that a browser keeps its cookie; a revoked key's is worth nothing at once
MOST_BODY = 4096  # bytes

# The usual policy hides where a form comes from, and a request that does not say so is refused.
_OWN_POLICY = {"Referrer-Policy": "same-origin", "Cache-Control": "no-store"}
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{more}<title>together</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font-family: system-ui, sans-serif; line-height: 1.5; }}
body {{ margin: 0 auto; padding: 8vh 1rem 1rem; max-width: 24rem; }}
input, button {{ font: inherit; display: block; box-sizing: border-box; width: 100%; }}
input, button {{ min-height: 2.75rem; margin: .5rem 0; padding: .5rem; }}
code {{ overflow-wrap: anywhere; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
_FORM = """<h1>together</h1>
<p role="alert">{said}</p>
<form method="post" action="/login">
<label for="key">Key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>Open the page</button>
</form>
<p>The link that the app's terminal showed has it. A new key, on the app's machine: <code>{command}</code></p>
<p>Your browser warns of this page? <a href="/ca.crt">Install its authority</a>, once.</p>"""
_CHOICE = """<h1>together</h1>
<p>This link opens the page with a key. What is written there belongs to the key, and whoever has it can read it.</p>
<form method="post" action="/login">
<input name="key" type="hidden" value="{key}">
<button>Open the page with this key</button>
</form>{stay}"""
_STAY = """
<p><a href="/">Open it as you are</a>: on this machine no key is needed.</p>"""
_LEAVE = """<h1>together</h1>
<p>{said}</p>
<form method="post" action="/logout">
<button>Leave</button>
</form>"""
_AGAIN = """<p>Opening together …</p>"""
ASKS = "This app asks for a key."
WRONG = "This key is wrong, or it was revoked."
OFTEN = "Too many wrong keys were tried. A right one opens the page at once."


def login_page(said: str = ASKS, status: int = 401) -> Response:
    command = as_typed("python3 launch.py keys make phone")
    return HTMLResponse(_PAGE.format(more="", body=_FORM.format(said=said, command=command)), status, _OWN_POLICY)


def refusal_page(scope: Scope, error: NoKey | TooManyWrongKeys) -> Response | None:
    """What a browser that opens a page without a right key sees; None for a program, which gets the error."""
    headers = Headers(scope=scope)
    if scope.get("method") not in ("GET", "HEAD") or "text/html" not in headers.get("accept", ""):
        return None
    if is_foreign(headers):
        # A link on another page brought it here, and so without its cookie. From our own page the cookie comes along.
        more = f'<meta http-equiv="refresh" content="0; url={LOGIN}">\n'
        return HTMLResponse(_PAGE.format(more=more, body=_AGAIN), 401, _OWN_POLICY)
    if isinstance(error, TooManyWrongKeys):
        return login_page(OFTEN, 429)
    shown = cookie_name(scope) in headers.get("cookie", "")
    return login_page(WRONG if shown else ASKS)


def choice_page(text: str, *, here: bool) -> Response:
    """What a link with a right key shows where its visitor may not have meant to come with it."""
    body = _CHOICE.format(key=escape(text.strip()), stay=_STAY if here else "")
    return HTMLResponse(_PAGE.format(more="", body=body), headers=_OWN_POLICY)


def is_foreign(headers: Headers) -> bool:
    """Whether a page of another site made this request."""
    return headers.get("sec-fetch-site") in ("cross-site", "same-site")


def key_in_link(scope: Scope) -> str | None:
    """Of a request for `/?key=…`, which is never asked for more than once."""
    if scope["path"] != "/" or scope.get("method") != "GET":
        return None
    found = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True).get("key")
    return found[-1] if found else None


def enter(access: Access, scope: Scope, text: str, *, by_link: bool = False) -> Response:
    """The page and the cookie for a right key, the page that asks for one for any other.

    `by_link`: first a button where the link is of another site, or where its visitor is here and needs no key.
    """
    cookie = access.cookie(text.strip())
    if cookie is None:
        try:
            access.refuse(scope)
        except TooManyWrongKeys:
            return login_page(OFTEN, 429)
        except NoKey:
            return login_page(WRONG)
    headers = Headers(scope=scope)
    here = access.is_here(scope)
    if by_link and (is_foreign(headers) or (here and not access.is_own(text.strip()))):
        return choice_page(text, here=here)
    reply = RedirectResponse("/", 303, _OWN_POLICY)
    reply.set_cookie(
        cookie_name(scope), cookie or "", KEPT, path="/", secure=_is_encrypted(scope), httponly=True, samesite="strict"
    )
    return reply


def _is_encrypted(scope: Scope) -> bool:
    """Also where a proxy says so: it can only make the cookie's rules stricter."""
    return scope["scheme"] == "https" or Headers(scope=scope).get("x-forwarded-proto") == "https"


def login_routes(access: Access, config: Path) -> APIRouter:
    """`/login` and `/ca.crt`, which ask nobody for a key, and `/logout`. The join code lies in `config`."""
    router = APIRouter()

    @router.get(AUTHORITY)
    async def authority(request: Request) -> Response:
        """The certificate of the authority that vouches for this page, for a phone to install; of HTTPS alone."""
        secret = SecretFile(config).known() if request.url.scheme == "https" or visitor_of(request.scope).here else None
        if secret is None:
            raise HTTPException(404, "this page is not encrypted by the cluster's authority")
        from together.trust.page import page_authority  # takes a moment to import

        return Response(page_authority(secret), media_type="application/x-x509-ca-cert")  # as PEM, for programs, too

    @router.get(LOGIN)
    async def page(request: Request) -> Response:
        """For a browser that has a right cookie already, the page itself."""
        return RedirectResponse("/", 303, _OWN_POLICY) if visitor_of(request.scope).known else login_page(status=200)

    @router.post(LOGIN)
    async def log_in(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MOST_BODY:
                return login_page(WRONG)
        return enter(access, request.scope, parse_qs(body.decode("latin-1")).get("key", [""])[-1])

    @router.get(LOGOUT)
    async def leaving(request: Request) -> Response:
        """A button, so that no link ends what a browser has open."""
        shown = cookie_name(request.scope) in request.cookies
        body = _LEAVE.format(said="This browser forgets its key." if shown else "This browser has no key.")
        return HTMLResponse(_PAGE.format(more="", body=body), headers=_OWN_POLICY)

    @router.post(LOGOUT)
    async def log_out(request: Request) -> Response:
        reply = RedirectResponse("/", 303, _OWN_POLICY)
        reply.delete_cookie(cookie_name(request.scope), path="/", httponly=True, samesite="strict")
        return reply

    return router
