"""Row S6: an app that serves a model with a hostile chat template answers everybody else, and stops when it is told to.

What each kind of template does to its process is in tests/text/test_chat_template.py.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import LAYERS, RealApp, run_up, until
from tests.reliability.web import chat_body
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.patience import PATIENCE
from tests.text.test_chat_template import LOOP, MOST_GROWTH

NO_SIGNALS = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals for other processes")
BEATS = 5  # answers of `/health` while a template takes the two seconds of a processor that it may
BOMBS = {
    "loop": LOOP,
    "size": "{{ messages[0].content * 10**9 }}",
    "text": LOOP.replace("{% endfor %}", "x" * 999 + "{% endfor %}"),
    "self": "{% macro f(x) %}{{ f(x + 1) }}{% endmacro %}{{ f(1) }}",
}
ANSWER = "{% for message in messages %}{{ message.content }}{% endfor %}"
SYNTAX = {
    "brackets": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "comments": "{# " + "x" * 25_000_000 + " #}",
    "folded": "{{ 9 ** 9 | nofilter }}",
}


def hostile_toy(folder: Path, template: str) -> Path:
    model = make_checksum_model(folder, layers=LAYERS, quiet_ids=(*QUIET, EOS), step_ms=2)
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": None}))
    (model / "chat_template.jinja").write_text(template)
    return model


@contextmanager
def hostile_app(folder: Path) -> Iterator[RealApp]:
    """An app whose template runs a bomb for a message that names it."""
    case = "{% if messages[0].content == 'NAME' %}BODY{% endif %}"
    cases = "".join(case.replace("NAME", name).replace("BODY", body) for name, body in BOMBS.items())
    model = hostile_toy(folder / "hostile", cases + ANSWER)
    with run_up(folder, "--model", str(model), "--backend", "checksum", "--layers", "0:2,2:4") as app:
        yield app


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealApp]:
    """For tests that leave it as they found it."""
    with hostile_app(tmp_path_factory.mktemp("hostile")) as app:
        yield app


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[RealApp]:
    """For a test that ends it."""
    with hostile_app(tmp_path) as app:
        yield app


@contextmanager
def watched(app: RealApp) -> Iterator[tuple[list[float], list[int]]]:
    """Seconds of each `/health` meanwhile, and how many bytes any of the app's processes grew by, or is new with."""
    stop, times, sizes = threading.Event(), [0.0], [0]
    before = {process: process.memory_info().rss for process in app.tree()}

    def ask() -> None:
        with httpx.Client(base_url=app.url, timeout=PATIENCE) as client:
            while not stop.wait(0.02):
                began = time.monotonic()
                assert client.get("/health").status_code == 200
                times.append(time.monotonic() - began)

    def weigh() -> None:
        while not stop.wait(0.02):
            for process in app.tree():
                try:
                    sizes.append(process.memory_info().rss - before.get(process, 0))
                except psutil.Error:
                    continue

    with ThreadPoolExecutor(2) as threads:
        jobs = [threads.submit(ask), threads.submit(weigh)]
        try:
            yield times, sizes
        finally:
            stop.set()
        for job in jobs:
            job.result()


def answer(app: RealApp, text: str) -> str:
    reply = app.post("/v1/chat/completions", chat_body(text, 12, stream=False))
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def refused(app: RealApp, text: str) -> str:
    reply = app.post("/v1/chat/completions", chat_body(text, 12, stream=False))
    assert reply.status_code == 400, reply.text
    return str(reply.json()["error"]["message"])


@pytest.mark.full  # tests/text/test_chat_template.py has what holds nobody up
def test_a_hostile_template_holds_nobody_up(app: RealApp) -> None:
    control = answer(app, "hello")
    with watched(app) as (times, sizes):
        for name in BOMBS:
            began, before = time.monotonic(), len(times)
            assert "the chat template of hostile cannot render this conversation" in refused(app, name)
            beats = len(times) - before
            print(f"{name}: refused after {time.monotonic() - began:.1f} s, with {beats} answers of /health meanwhile")
            assert beats >= BEATS or name != "loop"
            assert answer(app, "hello") == control
        with ThreadPoolExecutor(3) as threads:
            asked = [threads.submit(call, app, text) for call, text in ((refused, "loop"), (answer, "hello"))]
            assert "too much time" in asked[0].result()
            assert asked[1].result() == control
    print(f"health: at most {max(times):.3f} s; a process grew by at most {max(sizes) / 1e6:.0f} MB")
    assert max(times) < PATIENCE
    assert max(sizes) < MOST_GROWTH


def test_a_hostile_folder_is_refused_by_name_and_what_serves_goes_on(app: RealApp, tmp_path: Path) -> None:
    control = answer(app, "hello")
    with watched(app) as (times, sizes):
        for name, template in SYNTAX.items():
            model = hostile_toy(tmp_path / name, template)
            reply = app.post("/control/load", {"model": str(model), "layers": "0:2,2:4"})
            assert reply.status_code == 400
            said = reply.json()["error"]["message"]
            assert any(words in said for words in (f"the chat template of {name}", f"{name}/chat_template.jinja")), said
            assert answer(app, "hello") == control
    print(f"health: at most {max(times):.3f} s; a process grew by at most {max(sizes) / 1e6:.0f} MB")
    assert max(times) < PATIENCE
    assert max(sizes) < MOST_GROWTH


def renderers(app: RealApp) -> list[psutil.Process]:
    return [process for process in app.tree() if "together.text.template_process" in process.cmdline()]


def bomb_away(app: RealApp) -> threading.Thread:
    """A client whose conversation is being rendered; returns once it is."""
    until(lambda: renderers(app), PATIENCE, "the template process is there")
    (child,) = renderers(app)
    spent = child.cpu_times().user

    def ask() -> None:
        try:
            app.post("/v1/chat/completions", chat_body("loop", 12))
        except httpx.HTTPError:
            return  # cut off, as it should be

    client = threading.Thread(target=ask)
    client.start()
    until(lambda: child.cpu_times().user > spent + 0.1, PATIENCE, "the template is rendered")
    return client


def gone(app: RealApp, family: list[psutil.Process]) -> None:
    assert app.process.wait(PATIENCE) == 0
    until(lambda: not any(process.is_running() for process in family), PATIENCE, "nothing is left")
    assert "Traceback" not in (app.home.parent / "log").read_text()


@NO_SIGNALS
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.full)])
def test_a_signal_ends_an_app_that_renders_a_bomb(mortal: RealApp, number: signal.Signals) -> None:
    family = mortal.tree()
    client = bomb_away(mortal)
    mortal.process.send_signal(number)
    gone(mortal, family)
    client.join(PATIENCE)


@pytest.mark.full  # as a signal does, above
def test_stop_ends_an_app_that_renders_a_bomb(mortal: RealApp) -> None:
    family = mortal.tree()
    client = bomb_away(mortal)
    assert mortal.command("stop").returncode == 0
    gone(mortal, family)
    client.join(PATIENCE)


@pytest.mark.full  # as a signal ends one that renders, above
@NO_SIGNALS
def test_stop_ends_an_app_that_hangs(own_app: RealApp) -> None:
    family = own_app.tree()
    own_app.process.send_signal(signal.SIGSTOP)
    stopped = own_app.command("stop")
    assert (stopped.returncode, stopped.stdout) == (0, f"stopped {own_app.url}\n")
    own_app.process.wait(PATIENCE)
    until(lambda: not any(process.is_running() for process in family), PATIENCE, "nothing is left")
