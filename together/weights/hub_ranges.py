"""Byte ranges of hub files over HTTP: resumed after a lost connection, through the user's proxy."""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
from huggingface_hub import constants, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, exported without __all__

from together.errors import BadSetting, BrokenModel, TogetherError, Unreachable
from together.sentences import NOTHING, Sentence, template
from together.weights.part import Waiting
from together.wording import MOST, cut, quoted

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
        raise Unreachable(
            "the proxy {proxy} is of no known kind ({kinds}); correct it or unset {source}",
            proxy=str(proxy),
            kinds=tuple(f"{scheme}://" for scheme in SCHEMES),
            source=proxy.source,
        )
    if proxy.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise Unreachable(
            "the SOCKS proxy {proxy} needs the package socksio; install it in .venv (pip install socksio) or unset "
            "{source}",
            proxy=str(proxy),
            source=proxy.source,
        )


def proxy_hint(url: str) -> Sentence:
    """What to add to an error about `url`: nothing, or which proxy is in between and how to do without it."""
    proxy = proxy_of(url)
    if proxy is None:
        return NOTHING
    message = ", through the proxy {proxy}: check that it runs, or unset {source}"
    return template(message, proxy=str(proxy), source=proxy.source)


def _shown(url: str) -> str:
    """At most 200 characters, no credentials; a URL without a scheme is an http proxy."""
    url = url if "://" in url else f"http://{url}"
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"[:200]


def _source(key: str) -> str:
    """The variable that holds the proxy, as it is written in this environment."""
    name = f"{key}_proxy"
    return next((known for known in (name, name.upper()) if os.environ.get(known)), "the system's proxy settings")


PATIENCE = 120.0  # seconds without a byte before a fetch is given up; what is here stays
_WAITS = (0.2, 8.0)  # seconds before the first retry, and at most
_LOOK_EVERY = 0.1  # seconds between looks at whether to stop
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # status codes that another try may not get

Ask = Callable[[], bool]


class Stopped(Exception):
    """The caller asked to stop; never leaves the hub modules."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository at one commit. `sha256` is known for large files only."""

    repo: str
    revision: str
    name: str
    size: int
    sha256: str = ""

    def __str__(self) -> str:
        return f"{self.name} of {self.repo}"


def endpoint() -> str:
    """Where the hub is, without a slash at the end; HF_ENDPOINT as it is now."""
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def read_range(
    file: RemoteFile,
    start: int,
    stop: int,
    should_stop: Ask = lambda: False,
    patience: float = PATIENCE,
    waiting: Waiting = lambda whom: None,
) -> Iterator[bytes]:
    """Bytes `[start, stop)` of a file, in chunks as they come; a lost connection goes on where it was lost.

    Raises Stopped, Unreachable after `patience` seconds without a byte, BadSetting or BrokenModel.
    """
    wait, deadline = _WAITS[0], time.monotonic() + patience
    while start < stop:
        with explained(file.repo):
            try:
                for data in _stream(file, start, stop):
                    start += len(data)
                    if wait > _WAITS[0]:
                        waiting("")
                    wait, deadline = _WAITS[0], time.monotonic() + patience
                    yield data
                    if should_stop():
                        raise Stopped
                continue  # the server may end a body early and call it whole
            except (httpx2.TransportError, _Passing) as error:
                if time.monotonic() + wait > deadline:
                    raise _lost(file, error) from error
        waiting(f"the hub at {endpoint()}: nothing came for {time.monotonic() - deadline + patience:.0f} s")
        pause(wait, should_stop)
        wait = min(2 * wait, _WAITS[1])


def _stream(file: RemoteFile, start: int, stop: int) -> Iterator[bytes]:
    """One request's bytes, never more than were asked for."""
    url = hf_hub_url(file.repo, file.name, revision=file.revision, endpoint=endpoint())
    headers = build_hf_headers() | {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as answer:
        if answer.status_code in _PASSING:
            raise _Passing(f"it answered {answer.status_code}")
        hf_raise_for_status(answer)
        _check_range(file, answer, start)
        left = stop - start
        for data in answer.iter_raw():  # as it comes: bytes that wait for a chunk to fill are lost with a connection
            yield data[:left]
            left -= len(data[:left])
        if left:
            raise _Passing(f"it ended {left} bytes early")


class _Passing(Exception):
    """A refusal or an early end that another try may not get."""


def _check_range(file: RemoteFile, answer: httpx2.Response, start: int) -> None:
    if answer.status_code != 206:
        message = "{hub} does not serve byte ranges, which fetching layers needs; check HF_ENDPOINT"
        raise BadSetting(message, hub=endpoint())
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != start or found[2] not in ("*", str(file.size)):
        said = quoted(answer.headers.get("Content-Range", ""))
        message = "{file} is not what was published: the hub answers {said}; try again later"
        raise BrokenModel(message, file=str(file), said=said)


def _lost(file: RemoteFile, error: Exception) -> Unreachable:
    return Unreachable(
        "the hub at {hub} stopped answering while {file} was fetched ({reason}){hint}; what is here is kept, run the "
        "same command again to go on",
        hub=endpoint(),
        file=str(file),
        reason=cut(str(error), MOST) or type(error).__name__,
        hint=proxy_hint(endpoint()),
    )


def pause(seconds: float, should_stop: Ask) -> None:
    """Wait. Raises Stopped as soon as `should_stop` says so."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if should_stop():
            raise Stopped
        time.sleep(min(left, _LOOK_EVERY))


@contextmanager
def explained(repo: str) -> Iterator[None]:
    """The library's errors as ours, one sentence each. Lost connections are for `read_range` to try again."""
    require_usable_proxy(endpoint())  # the library fails on such a proxy before it asks anything
    try:
        yield
    except TogetherError:
        raise
    except GatedRepoError as error:
        message = "{repo} is gated: accept its licence at {hub}/{repo}, then set HF_TOKEN to a token of that account"
        raise BadSetting(message, repo=repo, hub=endpoint()) from error
    except RepositoryNotFoundError as error:
        message = "the hub has no model {repo}, or it is private; check the name, or set HF_TOKEN for a private one"
        raise BadSetting(message, repo=repo) from error
    except RevisionNotFoundError as error:
        message = "{repo} has no such revision on the hub; choose another or leave it out"
        raise BadSetting(message, repo=repo) from error
    except OfflineModeIsEnabled as error:
        raise Unreachable(
            "{repo} is not on this machine, and HF_HUB_OFFLINE forbids the hub; unset it, or choose a model from "
            "python3 launch.py list",
            repo=repo,
        ) from error
    except LocalEntryNotFoundError as error:  # what the library makes of a connection lost in between
        raise unreachable(repo, error.__cause__ or error) from error
    except EntryNotFoundError as error:
        raise BrokenModel("{repo} lost a file on the hub while it was read; try again", repo=repo) from error
    except HfHubHTTPError as error:
        raise _refused(repo, error) from error


def unreachable(repo: str, error: BaseException) -> Unreachable:
    """The error for a hub that does not answer at all."""
    return Unreachable(
        "{repo} is not on this machine, and the hub at {hub} does not answer ({reason}){hint}, or choose a model from "
        "python3 launch.py list",
        repo=repo,
        hub=endpoint(),
        reason=cut(str(error).partition("\n")[0], MOST) or type(error).__name__,
        hint=proxy_hint(endpoint()) or template("; check the network"),
    )


def _refused(repo: str, error: HfHubHTTPError) -> TogetherError:
    code, hub = error.response.status_code, endpoint()
    if code in (401, 403):
        return BadSetting(
            "the hub refuses {repo} ({code}); set HF_TOKEN to a token that may read it, and accept its licence at "
            "{hub}/{repo}",
            repo=repo,
            code=code,
            hub=hub,
        )
    message = "the hub at {hub} answers {code} to what was asked of {repo}; try again later"
    return Unreachable(message, hub=hub, code=code, repo=repo)
