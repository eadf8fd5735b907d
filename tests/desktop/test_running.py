"""The commands against a running app, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.api.test_thinking import thinking_toy
from tests.conftest import ROOT, RealApp, environment_for, serving_instead, start_app, until
from tests.support.checksum import EOS, QUIET
from tests.support.lightest import LIGHTEST
from tests.support.patience import PATIENCE
from tests.support.stand_ins import program
from tests.support.terminal import NO_TERMINALS, Terminal
from together.desktop.client import AppLock

pytestmark = pytest.mark.usefixtures("started_anew")


def test_a_second_up_shows_the_first_and_exits_0(real_app: RealApp) -> None:
    second = real_app.command("up", "--no-browser")
    assert second.returncode == 0
    assert real_app.url in second.stdout
    assert second.stderr == ""


def test_status(real_app: RealApp) -> None:
    shown = real_app.command("status", "--json")
    assert shown.returncode == 0
    status = json.loads(shown.stdout)
    assert status["url"] == real_app.url
    assert len(status["nodes"]) == 2
    table = real_app.command("status").stdout
    assert "toy is ready on 2 stages" in table
    assert "0:2 toy" in table
    assert "2:4 toy" in table


def test_chat_prints_one_answer_and_nothing_else(real_app: RealApp) -> None:
    options = (
        "--max-tokens",
        "12",
        "--temperature",
        "0",
        "--system",
        "S",
        "--top-k",
        "3",
        "--top-p",
        "0.9",
        "--seed",
        "1",
    )
    said = real_app.command("chat", "Hello", *options)
    assert said.returncode == 0
    assert said.stderr == "(the answer was cut off at its limit of 12 tokens; for a longer one add: --max-tokens 24)\n"
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Hello"}]
    body = {"messages": messages, "max_tokens": 12, "temperature": 0}
    answer = real_app.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    assert said.stdout == answer + "\n"


def test_chat_is_a_conversation_on_its_input(real_app: RealApp) -> None:
    options = ("--max-tokens", "5", "--temperature", "0")
    done = real_app.command("chat", *options, input="Hello\n\nAgain\n")
    said = done.stdout
    short = "(the answer was cut off at its limit of 5 tokens; to go on, write: continue; for longer ones: "
    assert done.stderr == f"{short}python3 launch.py chat --max-tokens 10)\n" * 2
    first, second = said[:5], said[6:11]
    turns = ["Hello", first, "Again"]
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    body = {"messages": messages, "max_tokens": 5, "temperature": 0}
    assert second == real_app.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]


def test_chat_asks_the_examples(real_app: RealApp) -> None:
    said = real_app.command("chat", "--examples", "--max-tokens", "4")
    assert said.returncode == 0
    assert said.stdout.count("> ") >= 4
    assert "> What is the capital of France?\n" in said.stdout


def test_chat_says_what_is_wrong_with_an_option(real_app: RealApp) -> None:
    said = real_app.command("chat", "Hello", "--temperature", "7")
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr.startswith("together: temperature")


@pytest.mark.skipif(NO_TERMINALS, reason="Windows has no pseudo-terminals")
def test_thoughts_are_dimmed_and_a_pipe_gets_the_answer_only(real_app: RealApp, tmp_path: Path) -> None:
    toy = thinking_toy(tmp_path / "thinker", (*QUIET, EOS))
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 150, "temperature": 0}
    with serving_instead(real_app, toy):
        message = real_app.post("/v1/chat/completions", body).json()["choices"][0]["message"]
        assert message["reasoning_content"]
        assert message["content"]
        piped = real_app.command("chat", "Hello", "--max-tokens", "150", "--temperature", "0")
        assert piped.stdout == message["content"] + "\n"
        colours = {"TERM": "xterm-256color"}
        with Terminal.of(real_app, "chat", "Hello", "--max-tokens", "150", "--temperature", "0", **colours) as terminal:
            terminal.wait_for(message["content"])
            assert terminal.process.wait(PATIENCE) == 0
    before, _, answer = terminal.shown.replace("\r\n", "\n").partition("(thought for ")
    assert "\x1b[2mThinking…" in before
    assert re.sub(r"\x1b\[\d+m", "", before) == f"Thinking…\n{message['reasoning_content']}\n"
    assert f"{message['content']}\n(the answer was cut off at its limit of 150 tokens; " in answer


@pytest.mark.skipif(NO_TERMINALS, reason="Windows has no pseudo-terminals to type Ctrl-C into")
def test_ctrl_c_stops_the_answer_and_then_the_chat(real_app: RealApp) -> None:
    with Terminal.of(real_app, "chat", "--max-tokens", "4000") as terminal:
        terminal.wait_for("you> ")
        terminal.type("Hello\n")
        before = real_app.generated_tokens()
        until(lambda: real_app.serving()["running"] == 1, PATIENCE, "the answer is being made")
        terminal.type("\x03")
        terminal.wait_for("(stopped)")
        until(lambda: real_app.serving()["running"] == 0, PATIENCE, "the sequence is gone")
        assert real_app.generated_tokens() - before < 4000
        terminal.wait_for("you> ", times=2)
        terminal.type("\x03")
        assert terminal.process.wait(PATIENCE) == 0
        assert "Traceback" not in terminal.shown


@pytest.mark.skipif(NO_TERMINALS, reason="Windows has no pseudo-terminals")
def test_the_menu_shows_what_there_is(real_app: RealApp, tmp_path: Path) -> None:
    program(tmp_path, "xclip", f"cat > {tmp_path}/copied")
    program(tmp_path, "browser", f"echo $1 > {tmp_path}/opened")
    desktop = {"DISPLAY": ":7", "BROWSER": str(tmp_path / "browser"), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with Terminal.of(real_app, **desktop) as terminal:
        terminal.choose("what?", "type a number from 1 to 16")
        assert "   3  Status: toy is ready on 2 stages; 1 machine\r\n" in terminal.shown
        terminal.choose("1", f"{real_app.url}\r\n")
        opened = tmp_path / "opened"
        until(lambda: opened.exists() and opened.read_text(), PATIENCE, "the chat is opened")
        terminal.choose("3", "toy is ready on 2 stages", "memory free")
        terminal.choose("4", "demo_model, ", "Enter goes back> ")
        terminal.choose("nowhere/at/all/", "Load it beside toy, and not in its place? [y/N] ")
        terminal.choose("y", "together: ")  # no folder, and no name of the hub
        terminal.choose("6", "demo_model")
        terminal.choose("8", "layers held")
        terminal.choose("10", "which one? Enter goes back> ")
        terminal.choose("", "no node was stopped")
        terminal.choose("11", "the address of the API is in the clipboard")
        terminal.choose("13", "INFO")
    assert (tmp_path / "copied").read_text() == f"{real_app.url}/v1"
    assert (tmp_path / "opened").read_text() == f"{real_app.url}\n"


@pytest.mark.full  # short above; its lines one by one are in test_menu.py
@pytest.mark.skipif(NO_TERMINALS, reason="Windows has no pseudo-terminals")
def test_the_menu_does_everything(own_app: RealApp, tmp_path: Path) -> None:
    with Terminal.of(own_app) as terminal:
        choose = terminal.choose
        choose("what?", "type a number from 1 to 16")
        choose("3", "toy is ready on 2 stages")
        own_app.post("/control/unload", {})
        choose("4", "Last: toy on ", "demo_model, ", "Enter goes back> ")
        choose("99", "type a number from 1 to ")
        choose("nowhere/at/all/", "together: ")  # no folder, and no name of the hub
        choose("4", "Enter goes back> ")
        choose("1", "Last: toy on ", "toy is ready at")
        choose("5", "toy, which is loaded", "Enter goes back> ")
        choose("1", "Load it by this plan? [y/N] ")
        choose("y", "toy is ready at")
        choose("6", "demo_model")
        choose("9", "is there, with ")
        assert living_nodes(own_app) == 3
        family = own_app.tree()
        stop_nodes_by_the_menu(own_app, terminal)
        terminal.type("15\n")
        assert terminal.process.wait(PATIENCE) == 0
    assert own_app.process.wait(PATIENCE) == 0
    until(lambda: not any(process.is_running() for process in family), PATIENCE, "no orphan")
    assert "Traceback" not in (tmp_path / "log").read_text()


def stop_nodes_by_the_menu(app: RealApp, terminal: Terminal) -> None:
    """Of three nodes those that are chosen, while answers go on; the last one's end is foreseen, and refused."""
    choose = terminal.choose
    choose("10", "which one? Enter goes back> ")
    choose("", "no node was stopped")
    before = {node["name"] for node in app.status()["nodes"]}
    for left in (2, 1):
        choose("10", "which one? Enter goes back> ")
        choose("1", "Stop ", "? [y/N] ")
        choose("y", " was stopped")
        until(lambda count=left: living_nodes(app) == count, PATIENCE, f"{left} nodes")  # type: ignore[misc]
    assert "they move to " in terminal.shown
    assert app.get("/health").status_code == 200
    (kept,) = {node["name"] for node in app.status()["nodes"] if node["state"] != "FAILED"}
    assert kept == max(before)  # the lower numbers were chosen
    choose("10", "which one? Enter goes back> ")
    choose("1", "no other machine has room", "? [y/N] ")
    choose("n", "Stop a node on this machine")
    assert app.get("/health").status_code == 200
    refused = app.post("/control/nodes", {"action": "stop", "node": "dora"})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == f"this app started no node dora; those that it started: {kept}"


@pytest.mark.full  # the short form is in tests/head/test_last_plan.py
def test_a_restarted_app_offers_the_last_plan_and_load_takes_it(tmp_path: Path) -> None:
    with start_app(tmp_path) as first:
        before = {node["id"]: [stage["layers"] for stage in node["stages"]] for node in first.status()["nodes"]}
        assert first.command("load", "--users", "2").returncode == 2  # options are for a model
    with up_without_a_model(first, tmp_path) as app:  # the demo does not run on the toy's backend
        assert re.search(r"Last: toy on .* 0:2, .* 2:4\. Load it with: python3 launch\.py load", said(app))
        assert "Last: toy on" in app.command("status").stdout
        loaded = app.command("load")
        assert loaded.returncode == 0, loaded.stderr
        assert loaded.stdout.startswith("Last: toy on ")
        assert "toy is ready at" in loaded.stdout
        after = {node["id"]: [stage["layers"] for stage in node["stages"]] for node in app.status()["nodes"]}
        assert after == before
        assert app.status()["offer"] == ""
        again = app.command("load")  # it serves already
        assert again.stdout.startswith("Loading the last model again.")


@contextlib.contextmanager
def up_without_a_model(first: RealApp, folder: Path) -> Iterator[RealApp]:
    """The app of the same home and cluster, once it has tried the demo."""
    command = [sys.executable, "-m", "together", "up", "--no-browser", "--port", "0", "--backend", "checksum"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=first.environment, stdout=log, stderr=log, text=True)
    try:
        until(lambda: "Load it with" in (folder / "log").read_text(), PATIENCE, "the last plan is offered")
        url = json.loads((folder / "home" / "app.json").read_text())["url"]
        yield RealApp(url, folder / "home", first.environment, process)
    finally:
        process.terminate()
        process.wait(PATIENCE)


def said(app: RealApp) -> str:
    return (app.home.parent / "log").read_text()


def living_nodes(app: RealApp) -> int:
    return sum(node["state"] != "FAILED" for node in app.status()["nodes"])


# --- the end ----------------------------------------------------------------------------------------------------------


def begin_an_answer(app: RealApp) -> subprocess.Popen[str]:
    """A client in the middle of a stream."""
    command = [sys.executable, "-m", "together", "chat", "Hello", "--max-tokens", "4000"]
    client = subprocess.Popen(
        command, cwd=ROOT, env=app.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until(lambda: app.serving()["running"] == 1, PATIENCE, "the answer is being made")
    return client


def test_ctrl_c_during_an_answer_ends_everything(own_app: RealApp, tmp_path: Path) -> None:
    family = own_app.tree()
    assert len(family) >= 5  # the app, two nodes, two stages
    with httpx.stream("GET", own_app.url + "/events", timeout=PATIENCE) as watching:
        client = begin_an_answer(own_app)
        own_app.process.send_signal(signal.SIGINT)
        assert own_app.process.wait(PATIENCE) == 0
        with contextlib.suppress(httpx.HTTPError):  # the stream is cut, not hung
            watching.read()
    until(lambda: not any(process.is_running() for process in family), PATIENCE, "no orphan")
    assert client.wait(PATIENCE) == 1
    assert client.communicate()[1].startswith("together: ")
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert log.endswith("stopped\n")
    assert not (own_app.home / "app.json").exists()


@pytest.mark.full  # as `run` does in test_manners.py
def test_chat_starts_an_app_for_the_time(tmp_path: Path) -> None:
    environment = environment_for(tmp_path) | {"TOGETHER_BACKEND": LIGHTEST}
    command = [sys.executable, "-m", "together", "chat", "What is the capital of France?", "--temperature", "0"]
    said = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, input="", timeout=2 * PATIENCE, check=False
    )
    assert said.returncode == 0, said.stderr
    assert "Paris" in said.stdout
    assert "starting together" in said.stderr
    assert not (tmp_path / "app.json").exists()
    assert AppLock(tmp_path).acquire()
