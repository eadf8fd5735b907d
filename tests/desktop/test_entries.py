"""The menu as data, and the commands that it consists of."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from tests.conftest import EVIL_NAME, RealApp
from tests.support.stand_ins import program
from together.cluster_types import Endpoint, NodeState, NodeStatus
from together.desktop.app_status import AppServing, AppStatus
from together.desktop.cli import app as command_line
from together.desktop.cli import main
from together.desktop.clipboard import programs
from together.desktop.entries import Entry, EntryState, MenuState, entries, status_line
from together.head.leaving import ends_a_model
from together.sentences import say
from together.trust.code import secret_of
from together.view import ServingState

NODE = NodeStatus("1", "studio", "a machine", Endpoint((), 1), 1, NodeState.READY, owner="head")
SERVING = AppServing(ServingState.READY, "toy", None, "", "toy is ready on 2 stages")
STATUS = AppStatus((NODE,), SERVING, "", "", (), "", head="head")


def named(status: AppStatus | None) -> dict[str, Entry]:
    return {entry.name: entry for entry in entries(MenuState(status))}


@pytest.mark.parametrize("status", [None, STATUS], ids=["nothing runs", "an app runs"])
def test_every_entry_is_a_command(status: AppStatus | None) -> None:
    group = typer.main.get_command(command_line)
    assert isinstance(group, TyperGroup)
    for entry in entries(MenuState(status)):
        for words in (entry.command, entry.shown):
            _, command, rest = group.resolve_command(typer.Context(group), list(words))
            assert command is not None
            command.make_context(words[0], list(rest))
    assert len(named(status)) == len(entries(MenuState(status)))


def test_what_can_be_done_follows_from_what_runs() -> None:
    assert list(named(None)) == ["status", "start", "logs", "login"]
    found = named(STATUS)
    assert found["stop_node"].state is EntryState.PLAIN
    assert [name for name, entry in found.items() if entry.ends] == ["quit"]
    ticked = {entry.name: entry for entry in entries(MenuState(STATUS, at_login=True))}["login"]
    assert (found["login"].state, found["login"].command) == (EntryState.PLAIN, ("at-login", "up"))
    assert (ticked.state, ticked.command) == (EntryState.TICKED, ("at-login", "off"))
    of_another = replace(NODE, owner="another head")
    assert named(replace(STATUS, nodes=(of_another,)))["stop_node"].state is EntryState.OFF


def test_the_line_of_the_status() -> None:
    assert status_line(None) == "together is not running"
    lost = replace(NODE, id="2", machine="another", state=NodeState.FAILED)
    assert status_line(replace(STATUS, nodes=(NODE, replace(NODE, id="3"), lost))) == (
        "toy is ready on 2 stages; 1 machine"
    )


def test_the_clipboard_of_each_system() -> None:
    assert programs("darwin", {}) == (("pbcopy",),)
    assert programs("win32", {}) == (("clip",),)
    assert programs("linux", {}) == ()
    assert [line[0] for line in programs("linux", {"DISPLAY": ":0"})] == ["xclip", "xsel"]
    assert programs("linux", {"DISPLAY": ":0", "WAYLAND_DISPLAY": "w"})[0] == ("wl-copy",)


@pytest.mark.skipif(os.name == "nt", reason="shell scripts")
def test_the_join_code_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"TOGETHER_HOME": str(tmp_path / "home"), "PATH": str(tmp_path), "DISPLAY": ":7"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert main(["copy", "code"]) == 0
    said = capsys.readouterr()
    assert said.err == "no clipboard is here: the join code is above\n"
    program(tmp_path, "xsel", "read -r code; echo -n $code > $0.copied")
    assert main(["copy", "code"]) == 0
    assert capsys.readouterr() == (said.out, "the join code is in the clipboard\n")
    copied = (tmp_path / "xsel.copied").read_text()
    assert copied + "\n" == said.out
    assert secret_of(copied)


WRONG = [
    (["open", "window"], "there is no page 'window'; choose chat, machines, models or settings"),
    (["copy", "password"], "'password' is nothing to copy; choose address or code"),
    (["nodes", "restart"], "'restart' is nothing that nodes does; choose start or stop"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG)
def test_a_word_that_is_none_of_them(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err == f"together: {sentence}\n"


def test_without_an_app(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--line"]) == 0
    assert capsys.readouterr().out == "together is not running\n"
    for words in (["open"], ["machines"], ["nodes"], ["copy", "address"]):
        assert main(words) == 1
        assert capsys.readouterr().err.startswith("together: together is not running; start it with: ")


def test_the_commands_of_a_running_app(lent_app: RealApp) -> None:
    """Nodes come and go without a question where no terminal is; one whose end would end a model stays."""
    assert lent_app.command("status", "--line").stdout == "toy is ready on 2 stages; 1 machine\n"
    assert "0:2 toy" in lent_app.command("machines").stdout
    assert f"  {EVIL_NAME}-1, runs layers 0:2 of toy\n" in lent_app.command("nodes").stdout
    started = lent_app.command("nodes", "start")
    assert f"{EVIL_NAME}-3 is there, with " in started.stdout
    stopped = lent_app.command("nodes", "stop")
    assert "runs no layers now, so nothing else changes" in stopped.stdout
    assert f"{EVIL_NAME}-3 was stopped" in stopped.stdout
    unknown = lent_app.command("nodes", "stop", "dora")
    assert (unknown.returncode, "this app started no node 'dora'; those that it started: " in unknown.stderr) == (
        2,
        True,
    )


def test_a_model_that_ends_with_a_node_is_known_by_the_sentence() -> None:
    ends, moves = say("stop_ends", node="a", model="toy", layers="0:2"), say("stop_idle", node="a")
    assert ends_a_model(ends)
    assert ends_a_model(say("all", sentences=(moves, ends)))
    assert not ends_a_model(say("all", sentences=(moves, moves)))
