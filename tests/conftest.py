"""A really started app for whole-product tests: its own processes, home and cluster, on loopback. Knows no test."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support import forks
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.patience import PATIENCE
from together.ring.rpc import is_free

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it, and so do its children
os.environ["TOGETHER_CLAIMS"] = f"{tempfile.gettempdir()}/together-tests-{os.getpid()}"  # apart from running apps
_OURS = tempfile.TemporaryDirectory(prefix="together-tests-", ignore_cleanup_errors=True)
os.environ["TOGETHER_HOME"] = f"{_OURS.name}/home"  # what a test does not place itself; never a person's home
os.environ["HF_HUB_CACHE"] = f"{_OURS.name}/hub"
for name in ("OLLAMA_MODELS", "LMSTUDIO_HOME", "LLAMA_CACHE"):  # the models of whoever runs the tests are not theirs
    os.environ[name] = f"{tempfile.gettempdir()}/together-tests-nowhere"
os.environ.pop("LLAMA_ARG_MODELS_DIR", None)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each of 1,500 processes would compile the program for itself
sys.dont_write_bytecode = False  # and each worker all tests
os.environ["OMP_NUM_THREADS"] = "1"  # of torch and numpy, also in stages: models are so tiny that threads only wait
ROOT = Path(__file__).resolve().parents[1]
EVIL_NAME = "<img src=x onerror=\"document.title='hacked'\">"  # what the nodes of these apps are called
NODE_NAMES = [f"{EVIL_NAME}-1", f"{EVIL_NAME}-2"]
LAYERS = 4
LONG = ("reliability", "ring", "webui", "api", "desktop", "backends")  # folders whose files take longest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files begin first: one that begins last leaves every other worker idle."""
    items.sort(key=lambda item: LONG.index(folder) if (folder := item.path.parent.name) in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def _warm() -> None:
    """Processes of ours are forked; before any test, so that none finds a child more than it began with."""
    forks.install()


@pytest.fixture
def started_anew() -> Iterator[None]:
    """For tests of a start itself, and of what a process has from it."""
    with forks.real_starts():
        yield


@dataclass(slots=True)
class RealApp:
    """`python -m together up` with the checksum toy on two nodes. Its answers never end by themselves."""

    url: str
    home: Path
    environment: dict[str, str]
    process: subprocess.Popen[str]

    @property
    def ollama(self) -> Path:
        """Where Ollama's models would be."""
        return Path(self.environment["OLLAMA_MODELS"])

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=PATIENCE)

    def post(self, path: str, body: object) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=PATIENCE)

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.get("/status").json()
        return answer

    def serving(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.status()["serving"]
        return answer

    def generated_tokens(self) -> int:
        """Tokens of answers since the model was loaded."""
        (line,) = (line for line in self.get("/metrics").text.splitlines() if line.startswith("together_generated_tok"))
        return int(float(line.split()[-1]))

    def stage_pids(self) -> list[int]:
        return [stage["pid"] for node in self.status()["nodes"] for stage in node["stages"]]

    def command(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Another `python -m together` of the same user."""
        command = [sys.executable, "-m", "together", *arguments]
        given: dict[str, Any] = {"input": "", "capture_output": True, "timeout": PATIENCE} | more
        return subprocess.run(command, cwd=ROOT, env=self.environment, text=True, check=False, **given)

    def tree(self) -> list[psutil.Process]:
        """The app and all its descendants, alive now."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Poll until `condition` holds; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def free_ports(count: int) -> int:
    """The first of `count` ports that nobody uses now, far below those that connections out are given."""
    for _ in range(500):
        first = random.randrange(10_000, 20_000 - count)
        if all(is_free("127.0.0.1", port) for port in range(first, first + count)):
            return first
    raise AssertionError("no free ports")


def environment_for(home: Path) -> dict[str, str]:
    """Variables that keep an app apart from every other on this machine."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("TOGETHER_", "DISPLAY", "WAYLAND"))
    }
    return clean | {
        "TOGETHER_HOME": str(home),
        "TOGETHER_CLAIMS": str(home / "claims"),
        "TOGETHER_CLUSTER": f"test-{uuid.uuid4().hex[:12]}",
        "TOGETHER_NODE_PORT": str(free_ports(128) + 64),  # the head listens below it
        "TOGETHER_NAME": EVIL_NAME,
        "OLLAMA_MODELS": str(home / "ollama"),
        "PYTHONUNBUFFERED": "1",
    }


@contextmanager
def start_app(folder: Path, **variables: str) -> Iterator[RealApp]:
    """An app that serves the toy; ended after, with everything it started. `variables` are of its environment."""
    model = make_checksum_model(folder / "toy", layers=LAYERS, quiet_ids=(*QUIET, EOS), step_ms=2)
    variables = {"TOGETHER_MEMORY": "2GB"} | variables  # more than toys need, and too little for spare processes
    with run_up(folder, "--model", str(model), "--backend", "checksum", "--layers", "0:2,2:4", **variables) as app:
        yield app


@contextmanager
def run_up(folder: Path, *arguments: str, **variables: str) -> Iterator[RealApp]:
    """`up` on two local nodes, as soon as it serves; ended after, with everything it started."""
    environment = environment_for(folder / "home") | variables
    command = [sys.executable, "-m", "together", "up", "--no-browser", "--port", "0", "--local-nodes", "2", *arguments]
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, text=True)
        family: list[psutil.Process] = []
        try:
            app = _wait_until_ready(process, environment, folder)
            family = app.tree()
            yield app
        finally:
            _end(process, family)


def _wait_until_ready(process: subprocess.Popen[str], environment: dict[str, str], folder: Path) -> RealApp:
    port_file = folder / "home" / "app.json"

    def said() -> str:
        assert process.poll() is None, (folder / "log").read_text()
        return (folder / "log").read_text()

    until(lambda: said() and port_file.exists(), PATIENCE, "the page is there")
    app = RealApp(json.loads(port_file.read_text())["url"], folder / "home", environment, process)
    until(lambda: said() and app.get("/health").status_code == 200, PATIENCE, f"the toy serves: {said()}")
    return app


def _end(process: subprocess.Popen[str], family: list[psutil.Process]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
    for left in family:
        if left.is_running() and left.pid != process.pid:
            left.kill()
    process.wait(PATIENCE)


@contextmanager
def serving_instead(app: RealApp, model: Path) -> Iterator[None]:
    """Another model in an app of `start_app`, for a while."""
    try:
        app.post("/control/load", {"model": str(model), "layers": "0:2,2:4"}).raise_for_status()
        yield
    finally:
        toy = app.home.parent / "toy"
        app.post("/control/load", {"model": str(toy), "layers": "0:2,2:4"}).raise_for_status()


@pytest.fixture(scope="session")
def real_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealApp]:
    """One app for all tests that leave it as they found it."""
    with start_app(tmp_path_factory.mktemp("app")) as app:
        yield app


@pytest.fixture
def lent_app(real_app: RealApp) -> Iterator[RealApp]:
    """The shared app for a test that changes what it serves, or kills a stage of it: as it was, after."""
    places = (real_app.home / "models", real_app.home / "imports", real_app.ollama)
    before = {found for place in places for found in place.glob("*")}
    try:
        yield real_app
    finally:
        for added in {found for place in places for found in place.glob("*")} - before:
            shutil.rmtree(added)
        for limit in real_app.status()["limits"]:
            real_app.post("/control/forget", {"node": limit["name"]})
        real_app.post("/control/unload", {}).raise_for_status()
        order = {"model": str(real_app.home.parent / "toy"), "layers": "0:2,2:4"}
        real_app.post("/control/load", order).raise_for_status()


@pytest.fixture
def own_app(tmp_path: Path) -> Iterator[RealApp]:
    """An app for a test that ends or breaks it."""
    with start_app(tmp_path) as app:
        yield app
