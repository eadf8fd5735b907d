"""The terminal chat's conversations, which the head keeps: begun, listed, gone on with, of a real app."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import RealApp, until
from tests.support.patience import PATIENCE
from tests.support.terminal import NO_TERMINALS, Terminal
from together.chats.records import ChatSettings, ChatSummary
from together.desktop.chat import Shown
from together.desktop.kept_chat import DAY, ChatList, list_lines
from together.requests import PromptProgress

FEW = ("--max-tokens", "5", "--temperature", "0")


def latest(app: RealApp) -> dict[str, Any]:
    listed = app.get("/conversations").json()["conversations"]
    chat = max(listed, key=lambda each: each["changed"])["id"]
    found: dict[str, Any] = app.get(f"/conversations/{chat}").json()
    return found


def test_a_conversation_goes_on_with_its_settings(real_app: RealApp) -> None:
    begun = real_app.command("chat", *FEW, "--system", "S", "--stop", "\x01", input="Hello\n")
    assert begun.returncode == 0, begun.stderr
    kept = latest(real_app)
    assert [turn["said"]["text"] for turn in kept["turns"]] == ["Hello", begun.stdout.removesuffix("\n")]
    listed = real_app.command("chat", "--list").stdout
    assert f"0 min ago  Hello  {kept['summary']['id']}\n" in listed
    more = real_app.command("chat", "Again", "--continue", "--max-tokens", "3")
    assert more.returncode == 0, more.stderr
    now = latest(real_app)
    assert [turn["role"] for turn in now["turns"]] == ["user", "assistant"] * 2
    assert now["turns"][3]["said"]["text"] + "\n" == more.stdout
    assert now["settings"] == {**kept["settings"], "max_tokens": 3}
    messages = [{"role": "system", "content": "S"}]
    messages += [{"role": turn["role"], "content": turn["said"]["text"]} for turn in now["turns"][:3]]
    body = {"messages": messages, "max_tokens": 3, "temperature": 0}
    assert real_app.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"] + "\n" == more.stdout


def test_another_conversation_by_its_id(real_app: RealApp) -> None:
    real_app.command("chat", *FEW, input="first\n")
    first = latest(real_app)["summary"]["id"]
    real_app.command("chat", *FEW, input="second\n")
    done = real_app.command("chat", "more", "--conversation", first)
    assert done.returncode == 0, done.stderr
    assert len(real_app.get(f"/conversations/{first}").json()["turns"]) == 4
    for wrong, why in (("gone", "there is no such conversation"), ("../status", "")):
        refused = real_app.command("chat", "more", "--conversation", wrong)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith(f"together: {why}")


def test_one_question_is_not_kept(real_app: RealApp) -> None:
    before = real_app.get("/conversations").json()
    assert real_app.command("chat", "Hello", *FEW).returncode == 0
    assert real_app.get("/conversations").json() == before


def said_so_far(app: RealApp) -> str:
    turns = latest(app)["turns"]
    return str(turns[-1]["said"]["text"]) if turns else ""


@pytest.mark.skipif(NO_TERMINALS, reason="Windows has no pseudo-terminals to type Ctrl-C into")
def test_an_answer_that_ctrl_c_stops_is_kept(real_app: RealApp) -> None:
    with Terminal.of(real_app, "chat", "--max-tokens", "-1") as terminal:
        terminal.wait_for("you> ")
        terminal.type("stop me\n")
        until(lambda: said_so_far(real_app), PATIENCE, "the answer is being made")
        terminal.type("\x03")
        terminal.wait_for("(stopped)")
    turn = latest(real_app)["turns"][-1]
    assert (turn["state"], bool(turn["said"]["text"])) == ("stopped", True)


def test_a_terminal_says_what_an_answer_waits_for_until_its_first_word(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Shown(terminal=True)
    for progress in (PromptProgress(3, 0, 9000), PromptProgress(1, 0, 9000), PromptProgress(0, 2560, 9000)):
        shown.wait(progress)
    shown.write("hello")
    shown.end()
    lines = [line.rpartition("\x1b[2K")[2] for line in capsys.readouterr().out.split("\r")]
    assert lines == ["place 3 in the queue", "next in the queue", "reading: 2,560 of 9,000 tokens", "hello\n"]
    piped = Shown(terminal=False)
    piped.wait(PromptProgress(3, 0, 9000))
    piped.write("hello")
    assert capsys.readouterr().out == "hello"


@pytest.mark.skipif(NO_TERMINALS, reason="Windows has no pseudo-terminals to type a result into")
def test_a_call_of_a_function_asks_for_its_result(real_app: RealApp) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    functions = json.dumps([{"name": "pick", "parameters": schema}])
    settings = {"calls": "required", "max_tokens": 90, "functions": functions}
    chat = real_app.post("/conversations", {"settings": settings}).json()["summary"]["id"]
    piped = real_app.command("chat", "pick", "--conversation", chat)
    assert (piped.returncode, "(pick with {" in piped.stderr, "waits for your word" in piped.stderr) == (0, True, True)
    real_app.post(f"/conversations/{chat}/turns/{latest(real_app)['leaf']}/call", {"allow": "no"}).raise_for_status()
    until(lambda: latest(real_app)["turns"][-1]["state"] == "done", PATIENCE, "the answer after it")
    with Terminal.of(real_app, "chat", "--conversation", chat) as terminal:
        terminal.wait_for("you> ")
        terminal.type("again\n")
        terminal.wait_for("result of pick with {")
        terminal.type("seven\n")
        terminal.wait_for("you> ", times=2)
    turns = latest(real_app)["turns"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool", "assistant"] * 2
    assert turns[6]["said"]["text"] == "seven"


def test_lists_say_when_and_show_no_control_letters() -> None:
    now = 1_000_000.0
    chats = (
        ChatSummary("a", "first\x1b[2J", True, 0.0, now - 3 * DAY),
        ChatSummary("b", "second", False, 0.0, now - 7300.0),
        ChatSummary("c", "third", False, 0.0, now - 90.0),
    )
    lines = list(list_lines(ChatList(chats, "the file was damaged"), now))
    assert lines[0] == "the file was damaged"
    assert [line.split()[-1] for line in lines[1:]] == ["c", "b", "a"]
    assert lines[1].startswith("1 min ago")
    assert lines[2].startswith("  2 h ago")
    assert "\x1b" not in lines[3]
    assert list(list_lines(ChatList(()), now)) == ["no conversations yet: python3 launch.py chat begins one"]


@pytest.mark.parametrize(("given", "limit"), [(None, 2048), (7, 7), (-1, None)])
def test_limits_of_answers(given: int | None, limit: int | None) -> None:
    assert ChatSettings(max_tokens=given).limit == limit
