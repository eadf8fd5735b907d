"""Who may come in: from this machine everybody, from elsewhere who shows a key or a cookie. Wrong ones are counted.

A proxy on this machine comes from loopback as its user does. Whom it brings is told by what it adds to a request, and
by the Host: nobody who sits here calls the app by a name that it has for others.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hmac import compare_digest
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import Scope

from together.api.keys import KeyFile, cookie_of
from together.api.responses import NoKey, TooManyWrongKeys
from together.api.visitors import AT_HOME, Visitor, is_local
from together.cluster_types import LOOPBACK, is_address
from together.requests import Owner

logger = logging.getLogger(__name__)

WITHIN = 60.0  # seconds
MOST_WRONG = 10  # wrong keys of one address within that time, and
MOST_WRONG_OF_ALL = 100
MOST_ADDRESSES = 1000  # that are remembered
LOOK_EVERY = 1.0  # seconds: so soon a revoked key's requests end
_PROXIES = ("forwarded", "via", "x-real-ip")  # what a proxy adds: its client sits elsewhere
_OF_PROXIES = ("x-forwarded-", "cf-")  # how more of it begins


@dataclass(slots=True)
class WrongKeys:
    """How many wrong keys came from where, lately. Right ones are never held up by it."""

    clock: Callable[[], float] = time.monotonic
    _by: dict[str, tuple[float, int]] = field(default_factory=dict)  # since when, and how many; the oldest first

    def note(self, address: str) -> float:
        """Seconds until another wrong one is more than a "no"; 0 while there were few."""
        return max(self._count(network_of(address), MOST_WRONG), self._count("", MOST_WRONG_OF_ALL))

    def _count(self, who: str, most: int) -> float:
        now = self.clock()
        since, count = self._by.pop(who, (now, 0))
        if now - since >= WITHIN:
            since, count = now, 0
        self._by[who] = since, (count := count + 1)
        while len(self._by) > MOST_ADDRESSES:
            del self._by[next(iter(self._by))]
        if count == most:
            logger.warning("many wrong keys came from %s", who or "several addresses")  # once, then it is only counted
        return since + WITHIN - now if count >= most else 0.0

    def __len__(self) -> int:
        return len(self._by)


def network_of(address: str) -> str:
    """One machine has all of a /64 of IPv6."""
    if not is_address(address) or ":" not in address:
        return address
    return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))


class Access:
    """The keys of an app, and what it asks whom for. All methods belong to one event loop."""

    def __init__(
        self, keys: KeyFile, own: str = "", *, names: tuple[str, ...] = (), asks: bool, proxied: bool = False
    ) -> None:
        """`own` is the key of this user's own programs; `asks`: other machines reach this app.

        `names`: by which browsers may call it beside its own; who does sits elsewhere. `proxied`: whoever comes from
        this machine may be a proxy, and sits elsewhere.
        """
        self.keys = keys
        self.asks = asks
        self._names = frozenset(name.lower() for name in names)
        self._own_names = frozenset(LOOPBACK) | (own_names() if asks else frozenset())
        self.wrong = WrongKeys()
        self.requests = OpenRequests(keys)
        self._own = own
        self._proxied = proxied

    def visitor(self, scope: Scope) -> Visitor:
        """Raises NoKey, or TooManyWrongKeys."""
        headers = Headers(scope=scope)
        here = self.is_here(scope)
        shown = _key_in(headers)
        cookie = cookie_parser(headers.get("cookie", "")).get(cookie_name(scope), "")
        for text, found in ((shown, self.keys.by_key), (cookie, self.keys.by_cookie)):
            if text and self.is_own(text):
                return AT_HOME
            if text and (key := found(text)) is not None:
                return Visitor(Owner(key.id), here)
        if here:
            return AT_HOME
        if shown or cookie:
            self.refuse(scope)
        raise NoKey("this app asks for a key; on its machine, python3 launch.py keys make NAME makes one")

    def knows(self, owner: str) -> bool:
        """Whether that is this machine's user, or the holder of a key that is not revoked."""
        return owner in ("", AT_HOME.owner) or any(key.id == owner for key in self.keys.now())

    def cookie(self, text: str) -> str | None:
        """What a browser that shows this key is given; None for a wrong one."""
        return cookie_of(text) if self.keys.by_key(text) is not None or self.is_own(text) else None

    def refuse(self, scope: Scope) -> None:
        """Count a wrong key. Raises NoKey or TooManyWrongKeys."""
        client = scope.get("client")
        if wait := self.wrong.note(client[0] if client else ""):
            raise TooManyWrongKeys(wait)
        raise NoKey("the key is wrong, or was revoked; on the app's machine, python3 launch.py keys list shows all")

    def is_own(self, text: str) -> bool:
        """Whether this key, or cookie, is that of this user's own programs."""
        given = text.encode("utf-8", "replace")
        return bool(self._own) and any(compare_digest(given, own.encode()) for own in (self._own, cookie_of(self._own)))

    def is_ours(self, host: str) -> bool:
        """Whether a browser may call this app so."""
        name = name_in(host)
        # Rebinding needs a name, never an address.
        return name in self._own_names or name in self._names or (self.asks and is_address(name))

    def is_here(self, scope: Scope) -> bool:
        """Whether who asks sits at this machine, as far as can be told."""
        headers = Headers(scope=scope)
        name = name_in(headers.get("host", ""))
        own = name in self._own_names or name == (scope.get("server") or ("",))[0]
        named = own and name not in self._names
        return not self._proxied and is_local(scope) and named and not any(map(_is_of_proxy, headers.keys()))


def _is_of_proxy(header: str) -> bool:
    return header in _PROXIES or header.startswith(_OF_PROXIES)


def name_in(host: str) -> str:
    """The name or address of a Host, without its port; empty for what is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def own_names() -> frozenset[str]:
    """What this machine is called on its network."""
    name = socket.gethostname().lower()
    return frozenset({name, name.partition(".")[0], f"{name.partition('.')[0]}.local"})


def cookie_name(scope: Scope) -> str:
    """Browsers give a cookie to every port of a machine: apps beside one another must not take each other's."""
    return f"together-{(scope.get('server') or ('', 0))[1]}"


def _key_in(headers: Headers) -> str:
    kind, _, text = headers.get("authorization", "").partition(" ")
    return text.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "").strip()


# --- requests that end with their key ---------------------------------------------------------------------------------


class Revoked(Exception):
    """The key of a request that is being answered is none any more."""


class OpenRequests:
    """What is being answered to holders of keys, looked at as long as there is any."""

    def __init__(self, keys: KeyFile) -> None:
        self._keys = keys
        self._open: dict[asyncio.Task[object], str] = {}  # and the digest of its key: a renewed one has another
        self._ended: set[asyncio.Task[object]] = set()
        self._watch: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def held(self, visitor: Visitor) -> AsyncIterator[None]:
        """Work of the current task for that visitor. Raises Revoked out of whatever it does."""
        task = asyncio.current_task()
        if visitor.owner in ("", AT_HOME.owner) or task is None:
            yield
            return
        self._open[task] = next((key.digest for key in self._keys.now() if key.id == visitor.owner), "")
        self._watch = self._watch or asyncio.create_task(self._look())
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._ended or task.uncancel():  # somebody else cancelled it, too
                raise
            raise Revoked from None
        finally:
            self._ended.discard(task)
            del self._open[task]
            if not self._open and self._watch is not None:
                self._watch.cancel()
                self._watch = None

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            known = {key.digest for key in self._keys.now()}
            for task, digest in self._open.items():
                if digest not in known and task not in self._ended:
                    self._ended.add(task)
                    task.cancel()
