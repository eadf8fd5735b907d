"""The proxy that requests to the hub go through, as environment variables or the system name it.

Only downloads use a proxy. All local work (the app's own HTTP, gRPC, the page) ignores these variables.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from together.errors import Unreachable

SCHEMES = ("http", "https", "socks5", "socks5h")  # what the hub's HTTP library speaks to a proxy


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy's URL without its user and password, and what names it: a variable, or the system's settings."""

    url: str
    source: str

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0].lower()

    def __str__(self) -> str:
        return f"{self.url} ({self.source})"


def proxy_of(url: str) -> Proxy | None:
    """The proxy between this machine and `url`; None where the connection is direct."""
    target = urlsplit(url)
    known = getproxies()
    key = next((key for key in (target.scheme, "all") if known.get(key)), None)
    if key is None or proxy_bypass(target.hostname or ""):
        return None
    return Proxy(_shown(known[key]), _source(key))


def require_usable_proxy(url: str) -> None:
    """Raises Unreachable for a proxy to `url` that cannot be used: its kind is unknown, or a package is missing."""
    proxy = proxy_of(url)
    if proxy is None:
        return
    if proxy.scheme not in SCHEMES:
        kinds = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise Unreachable(f"the proxy {proxy} is of no known kind ({kinds}); correct it or unset {proxy.source}")
    if proxy.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise Unreachable(
            f"the SOCKS proxy {proxy} needs the package socksio; install it in .venv (pip install socksio) or unset "
            f"{proxy.source}"
        )


def proxy_hint(url: str) -> str:
    """What to add to an error about `url`: empty, or which proxy is in between and how to do without it."""
    proxy = proxy_of(url)
    return f", through the proxy {proxy}: check that it runs, or unset {proxy.source}" if proxy else ""


def _shown(url: str) -> str:
    """At most 200 characters, no credentials; a URL without a scheme is an http proxy."""
    url = url if "://" in url else f"http://{url}"
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"[:200]


def _source(key: str) -> str:
    """The variable that holds the proxy, as it is written in this environment."""
    name = f"{key}_proxy"
    return next((known for known in (name, name.upper()) if os.environ.get(known)), "the system's proxy settings")
