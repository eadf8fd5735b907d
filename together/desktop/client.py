"""The running app from outside: its lock and address, its HTTP API, and an app that lives as long as a command."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, get_args

import httpx
import psutil
from filelock import FileLock, Timeout

from together import __version__
from together.desktop.app_status import AppStatus
from together.desktop.show import load_with_progress, print_aside, working
from together.errors import AppError, TogetherError, Unreachable
from together.jsonfile import decode_json, recall_json, write_json
from together.processes import command, surroundings
from together.requests import FinishReason, Usage
from together.sentences import say
from together.view import ServingState


@dataclass(frozen=True, slots=True)
class Announced:
    """The port file. It may be stale: a crash leaves it behind."""

    pid: int
    url: str
    version: str
    key: str = ""  # of this user's own programs, as long as the app runs
    network: int = 0  # the port for other machines; 0: none reach it
    plain: bool = False  # that port is in the clear


class AppLock:
    """The lock and the port file in one home folder; the system frees the lock however its process ends."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._port_file = _port_file(home)
        self._lock = FileLock(home / "app.lock")

    def acquire(self) -> bool:
        """Whether the lock is ours now; then a port file of an earlier owner is gone."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        self._port_file.unlink(missing_ok=True)
        return True

    def announce(self, url: str, key: str, network: int = 0, plain: bool = False) -> None:
        """Write our address to the port file, and the key that opens it to who may read that."""
        write_json(self._port_file, Announced(os.getpid(), url, __version__, key, network, plain), private=True)

    def release(self) -> None:
        self._port_file.unlink(missing_ok=True)
        self._lock.release()


def read_announced(home: Path) -> Announced | None:
    """None where there is no port file, or a broken one."""
    return recall_json(_port_file(home), Announced)


def _port_file(home: Path) -> Path:
    return home / "app.json"


TIMEOUT = httpx.Timeout(5.0, read=30.0)
STOP_WITHIN = 10.0  # seconds
NOT_RUNNING = "together is not running; start it with: python3 launch.py"
ONLY_A_NODE = "a node runs here, and no app: Ctrl-C in its terminal ends it, and python3 launch.py starts the app"
ANSWERS_WITHIN = 5.0  # seconds after which an app that does not answer counts as hung


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """A piece of an answer; the model's reasoning comes before its text, why it ended and its counts at the end."""

    text: str = ""
    reasoning: str = ""
    finish: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class AppVersion:
    """What tells our app from another program on its port."""

    name: str
    pid: int


class RunningApp:
    """An app that answers at `url`. Methods raise TogetherError with the app's own sentence."""

    def __init__(self, url: str, pid: int, key: str = "", network: int = 0, plain: bool = False) -> None:
        """`network` is the port for other machines, 0 where there is none; `plain`: in the clear."""
        self.url = url
        self.pid = pid
        self.network = network
        self.plain = plain
        self._key = key
        shown = {"Authorization": f"Bearer {key}"} if key else {}
        # this machine needs no proxy
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT, trust_env=False, headers=shown)

    def close(self) -> None:
        """For who looks again and again; all others end with their process."""
        self._http.close()

    @property
    def link(self) -> str:
        """What a browser of this machine opens: where a proxy may be the client, a browser shows a key, too."""
        return f"{self.url}/?key={self._key}" if self.plain else self.url

    def version(self, within: float) -> AppVersion:
        """Raises ValueError for the answer of another program."""
        return decode_json(self.request("GET", "/version", read_timeout=within), AppVersion)

    def status(self) -> AppStatus:
        try:
            return decode_json(self.status_json(), AppStatus)
        except ValueError as error:
            raise AppError(
                "the app at {url} shows another status than {version} reads: {error}",
                url=self.url,
                version=__version__,
                error=str(error),
            ) from None

    def status_json(self) -> bytes:
        return self.request("GET", "/status")

    def ask(self, action: str, body: dict[str, object]) -> dict[str, Any]:
        """`/control/…` and its answer, which may take minutes: models load, machines measure themselves."""
        answer: dict[str, Any] = json.loads(self.request("POST", f"/control/{action}", body, read_timeout=None))
        return answer

    def chat(self, body: dict[str, object]) -> Generator[ChatDelta]:
        """The answer in pieces; `close` ends it on every stage."""
        streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
        with closing(self.events("/v1/chat/completions", streamed)) as events:
            for event in events:
                yield _said(event)

    def events(self, path: str, body: dict[str, object] | None = None) -> Generator[dict[str, Any]]:
        """The events of a stream, which `close` ends; with a body it is posted."""
        method, timeout = "GET" if body is None else "POST", httpx.Timeout(5.0, read=None)
        try:
            with self._http.stream(method, path, json=body, timeout=timeout) as reply:
                if reply.status_code != 200:
                    reply.read()
                    raise AppError(_sentence(reply))
                for line in reply.iter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        yield json.loads(line.removeprefix("data: "))
        except httpx.HTTPError as error:
            raise Unreachable(
                "the app at {url} went away during the answer: {error}", url=self.url, error=str(error)
            ) from None

    def stop(self) -> None:
        """Ask the app to end, and wait until it is gone; one that does not answer or stays is killed.

        Raises AppError where even that does not end it.
        """
        with suppress(Unreachable):
            self.request("POST", "/control/shutdown", {}, read_timeout=ANSWERS_WITHIN)
            if self._gone(STOP_WITHIN):
                return
        with suppress(psutil.NoSuchProcess):  # its children end by themselves
            psutil.Process(self.pid).kill()
        if not self._gone(STOP_WITHIN):
            raise AppError("the app at {url} cannot be stopped; end process {pid}", url=self.url, pid=self.pid)

    def _gone(self, seconds: float) -> bool:
        """Whether its process ends in time; a zombie only waits for its parent."""
        deadline = time.monotonic() + seconds
        with suppress(psutil.NoSuchProcess):
            while psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.05)
        return True

    def request(
        self, method: str, path: str, body: dict[str, object] | None = None, read_timeout: float | None = 30.0
    ) -> bytes:
        """The body of an answer. Raises AppError with the app's own sentence, or Unreachable."""
        try:
            reply = self._http.request(method, path, json=body, timeout=httpx.Timeout(5.0, read=read_timeout))
        except httpx.HTTPError as error:
            raise Unreachable("the app at {url} does not answer: {error}", url=self.url, error=str(error)) from None
        if not reply.is_success:
            raise AppError(_sentence(reply))
        return reply.content


def find_running(home: Path, within: float = 30.0) -> RunningApp | None:
    """This user's app; None where none answers `within` seconds, or another program has its port."""
    announced = read_announced(home)
    if announced is None:
        return None
    app = _app_of(announced)
    try:
        answer = app.version(within)
    except (TogetherError, ValueError):
        return None
    return app if answer == AppVersion("together", announced.pid) else None


def _app_of(announced: Announced) -> RunningApp:
    return RunningApp(announced.url, announced.pid, announced.key, announced.network, announced.plain)


def require_running(home: Path) -> RunningApp:
    """This user's app. Raises AppError where none runs."""
    app = find_running(home)
    if app is None:
        raise _not_running(home)
    return app


def _not_running(home: Path) -> AppError:
    from together.cluster.identity import nodes_run  # loads gRPC, which a command that finds its app does not need

    return AppError(ONLY_A_NODE if nodes_run(home) else NOT_RUNNING)


def stop_running(home: Path) -> RunningApp:
    """End this user's app, even one that hangs. Raises AppError where none runs."""
    app, lock = find_running(home, ANSWERS_WITHIN), AppLock(home)
    if app is None and lock.acquire():
        lock.release()
    elif app is None and (announced := read_announced(home)) is not None:
        # It hangs: while it holds the lock, the port file is its own.
        app = _app_of(announced)
    if app is None:
        raise _not_running(home)
    app.stop()
    return app


def _said(chunk: dict[str, Any]) -> ChatDelta:
    if "error" in chunk:
        raise AppError(str(chunk["error"]["message"]))
    choice = (chunk.get("choices") or [{}])[0]
    delta, counts = choice.get("delta", {}), chunk.get("usage")
    return ChatDelta(
        str(delta.get("content") or ""),
        str(delta.get("reasoning_content") or ""),
        next((reason for reason in get_args(FinishReason) if reason == choice.get("finish_reason")), None),
        Usage(int(counts["prompt_tokens"]), int(counts["completion_tokens"])) if counts else None,
    )


def _sentence(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the app answered {reply.status_code} to {reply.request.url.path}"


# --- an app for a while -----------------------------------------------------------------------------------------------

START_WITHIN = 90.0  # seconds until the page answers
READY_WITHIN = 900.0  # seconds until a model serves
LOADS_WITHIN = 10.0  # seconds until an app that was just started begins to load
LEAVE_WITHIN = 8.0


@contextmanager
def app_for_a_while(
    home: Path, model: str | None = None, form: Mapping[str, object] | None = None
) -> Iterator[RunningApp]:
    """This user's running app, or one that lives as long as this block.

    It serves when the block begins: `model`, a name or the path of its folder, where one is given, quantized as `form`
    says, which are options of `load`; without them in whatever form it serves already.
    """
    options = dict(form or {})
    if (app := find_running(home)) is not None:
        if model is None:
            wait_until_ready(app)
        elif options or app.status().serving_of(model) is None:
            print_aside(f"loading {model}")
            load_with_progress(app, {"model": model, **options})
        yield app
        return
    print_aside("starting together for this chat")
    with tempfile.TemporaryFile() as errors, _child(errors, model, options) as child:
        app = _wait_for_page(home, child, errors)
        wait_until_ready(app)
        yield app


def wait_until_ready(app: RunningApp) -> None:
    """Return when a request would be served. Raises AppError with the reason when none will be."""
    if app.status().serving.state is ServingState.READY:
        return  # without a word: an answer comes
    said, started = ServingState.READY, time.monotonic()
    with working("waiting for a model") as note:
        while (state := (status := app.status()).serving.state) is not ServingState.READY:
            waited = time.monotonic() - started
            just_started = waited < LOADS_WITHIN and state is ServingState.EMPTY
            if (state in (ServingState.FAILED, ServingState.EMPTY) and not just_started) or waited > READY_WITHIN:
                raise AppError(status.reason)
            if state is ServingState.LOADING:
                step = status.serving.step or say("step_loading")
                note(str(say("terminal_loading", model=status.serving.model, step=step)))
            elif not just_started:
                note(status.reason)  # how far it is changes all the time
                if state is not said:
                    print_aside(status.reason)
                said = state
            time.sleep(0.1)


@contextmanager
def _child(errors: IO[bytes], model: str | None, options: Mapping[str, object]) -> Iterator[subprocess.Popen[bytes]]:
    """`up` as a child: out of reach of our Ctrl-C, and ended by the end of its input, however we end."""
    line = command("together", "up", "--no-browser", "--port", "0", "--with-parent")
    given = {"model": model, **options} if model is not None else {}
    line += [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    child = subprocess.Popen(line, **(surroundings() | {"stdout": subprocess.DEVNULL, "stderr": errors}))
    try:
        yield child
    finally:
        assert child.stdin is not None
        child.stdin.close()
        try:
            child.wait(LEAVE_WITHIN)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _wait_for_page(home: Path, child: subprocess.Popen[bytes], errors: IO[bytes]) -> RunningApp:
    deadline = time.monotonic() + START_WITHIN
    while time.monotonic() < deadline:
        if (app := find_running(home)) is not None:
            return app
        if child.poll():
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            if last:
                raise AppError(last.removeprefix("together: "))
            raise AppError("the app ended with code {code}", code=child.returncode)
        time.sleep(0.1)
    raise AppError("the app did not show its page within {seconds:.0f} s", seconds=START_WITHIN)
