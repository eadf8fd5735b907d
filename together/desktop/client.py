"""The running app from outside: its lock and address, and its HTTP API."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from filelock import FileLock, Timeout

from together import __version__
from together.errors import AppError, TogetherError, Unreachable
from together.jsonfile import recall_json, write_json


@dataclass(frozen=True, slots=True)
class Announced:
    """What the port file says. It may be stale: a crash leaves it behind."""

    pid: int
    url: str
    version: str


class AppLock:
    """The lock and the port file in one home folder; the system frees the lock however its process ends."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._port_file = _port_file(home)
        self._lock = FileLock(home / "app.lock")

    def acquire(self) -> bool:
        """Whether the lock is ours now; a port file that an earlier owner left behind is gone then."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        self._port_file.unlink(missing_ok=True)
        return True

    def announce(self, url: str) -> None:
        """Write down where we listen."""
        write_json(self._port_file, Announced(os.getpid(), url, __version__))

    def release(self) -> None:
        self._port_file.unlink(missing_ok=True)
        self._lock.release()


def is_held(home: Path) -> bool:
    """Whether an app lives that has this home. Then the port file, if there is one, is that app's own."""
    lock = FileLock(home / "app.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    lock.release()
    return False


def read_announced(home: Path) -> Announced | None:
    """The port file, None where there is none that can be read."""
    return recall_json(_port_file(home), Announced)


def _port_file(home: Path) -> Path:
    return home / "app.json"


TIMEOUT = httpx.Timeout(5.0, read=30.0)
STOP_WITHIN = 10.0  # seconds
ANSWERS_WITHIN = 5.0  # seconds; an app that is asked to stop and says nothing for so long hangs


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """A piece of an answer; the model's reasoning comes before its text."""

    text: str = ""
    reasoning: str = ""


class RunningApp:
    """An app that answers at `url`. Methods raise TogetherError with the app's own sentence."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT, trust_env=False)  # this machine needs no proxy

    def version(self, within: float = 30.0) -> dict[str, Any]:
        return self._json("GET", "/version", read_timeout=within)

    def status(self) -> dict[str, Any]:
        return self._json("GET", "/status")

    def health(self) -> dict[str, Any]:
        """`/health` as it is; `state` is READY when a request would be served."""
        try:
            answer: dict[str, Any] = self._http.get("/health").json()
        except (httpx.HTTPError, ValueError) as error:
            raise Unreachable(f"the app at {self.url} does not answer: {error}") from None
        return answer

    def control(self, action: str, body: dict[str, object] | None = None) -> None:
        """`/control/…`; loading may take minutes."""
        self.ask(action, body or {})

    def ask(self, action: str, body: dict[str, object]) -> dict[str, Any]:
        """`/control/…` and what it answers; machines that measure themselves take a while."""
        return self._json("POST", f"/control/{action}", body, read_timeout=None)

    def chat(self, body: dict[str, object]) -> Iterator[ChatDelta]:
        """The answer in pieces. Closing the iterator ends the answer on every stage."""
        timeout = httpx.Timeout(5.0, read=None)
        try:
            with self._http.stream(
                "POST", "/v1/chat/completions", json={**body, "stream": True}, timeout=timeout
            ) as reply:
                if reply.status_code != 200:
                    reply.read()
                    raise AppError(_sentence(reply))
                for line in reply.iter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        yield _said(json.loads(line.removeprefix("data: ")))
        except httpx.HTTPError as error:
            raise Unreachable(f"the app at {self.url} went away during the answer: {error}") from None

    def stop(self) -> None:
        """Ask the app to end, and wait until it is gone; one that does not answer or stays is killed.

        Raises AppError where even that does not end it.
        """
        with suppress(Unreachable):
            self._json("POST", "/control/shutdown", {}, read_timeout=ANSWERS_WITHIN)
            if self._gone(STOP_WITHIN):
                return
        with suppress(psutil.NoSuchProcess):  # its children end by themselves
            psutil.Process(self.pid).kill()
        if not self._gone(STOP_WITHIN):
            raise AppError(f"the app at {self.url} cannot be stopped; end process {self.pid}")

    def _gone(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while _runs(self.pid):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def _json(
        self, method: str, path: str, body: dict[str, object] | None = None, read_timeout: float | None = 30.0
    ) -> dict[str, Any]:
        try:
            reply = self._http.request(method, path, json=body, timeout=httpx.Timeout(5.0, read=read_timeout))
        except httpx.HTTPError as error:
            raise Unreachable(f"the app at {self.url} does not answer: {error}") from None
        if not reply.is_success:
            raise AppError(_sentence(reply))
        answer: dict[str, Any] = reply.json()
        return answer


def find_running(home: Path, within: float = 30.0) -> RunningApp | None:
    """This user's app, None where none answers `within` seconds.

    A stale port file, or another program on that port, is none.
    """
    announced = read_announced(home)
    if announced is None:
        return None
    app = RunningApp(announced.url, announced.pid)
    try:
        answer = app.version(within)
    except (TogetherError, ValueError):
        return None
    return app if answer.get("name") == "together" and answer.get("pid") == announced.pid else None


def require_running(home: Path) -> RunningApp:
    """This user's app. Raises AppError where none runs."""
    app = find_running(home)
    if app is None:
        raise AppError("together is not running; start it with: python3 launch.py")
    return app


def stop_running(home: Path) -> RunningApp:
    """End this user's app, also one that hangs and answers nobody. Raises AppError where none runs."""
    app = find_running(home, ANSWERS_WITHIN)
    if app is None and is_held(home) and (announced := read_announced(home)) is not None:
        app = RunningApp(announced.url, announced.pid)
    if app is None:
        return require_running(home)
    app.stop()
    return app


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # that one waits for its parent only
    except psutil.NoSuchProcess:
        return False


def _said(chunk: dict[str, Any]) -> ChatDelta:
    if "error" in chunk:
        raise AppError(str(chunk["error"]["message"]))
    choices = chunk.get("choices") or [{}]
    delta = choices[0].get("delta", {})
    return ChatDelta(str(delta.get("content") or ""), str(delta.get("reasoning_content") or ""))


def _sentence(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the app answered {reply.status_code} to {reply.request.url.path}"
