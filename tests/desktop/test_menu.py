"""The menu's questions; what its items do is tested with a real app in test_running.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import RealApp
from tests.support.checksum import EOS, QUIET, make_checksum_model
from together.desktop.cli import main
from together.desktop.client import RunningApp
from together.desktop.menu import Item, Menu, choose_model, run_menu
from together.desktop.own_nodes import agreed, numbered
from together.errors import AppError, Unreachable
from together.settings import Settings


class Person:
    """Types lines, one after another, and keeps what was done."""

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)
        self.done: list[str] = []

    def ask(self, prompt: str) -> str:
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)

    def item(self, name: str, error: Exception | None = None, last: bool = False) -> Item:
        def act() -> None:
            self.done.append(name)
            if error is not None:
                raise error

        return Item(name, act, last)

    def use_menu(self) -> None:
        failing = self.item("fails", AppError("no node that this app started runs here"))
        items = (
            self.item("page"),
            self.item("status"),
            failing,
            self.item("stop app", last=True),
            self.item("quit", last=True),
        )
        run_menu("together is running", lambda: items, self.ask)


def test_numbers_act_and_the_menu_comes_again(capsys: pytest.CaptureFixture[str]) -> None:
    person = Person("1", " 2 ", "1", "q")
    person.use_menu()
    assert person.done == ["page", "status", "page", "quit"]
    assert capsys.readouterr().out.count(" 1  page") == 4


@pytest.mark.parametrize("line", ["0", "6", "-1", "abc", "", "1.5", "²"])
def test_unknown_input_is_answered_with_a_sentence(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    person = Person(line)
    person.use_menu()
    assert "type a number from 1 to 5" in capsys.readouterr().out
    assert person.done == []


def test_an_error_is_said_and_the_menu_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    person = Person("3", "2")
    person.use_menu()
    assert "together: no node that this app started runs here" in capsys.readouterr().out
    assert person.done == ["fails", "status"]


def test_the_last_item_ends_the_menu() -> None:
    person = Person("4", "2")
    person.use_menu()
    assert person.done == ["stop app"]


def test_ctrl_c_during_an_item_comes_back_to_the_menu(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    person = Person("1", "2")
    items = (Item("long", interrupted), person.item("quit", last=True))
    run_menu("together is running", lambda: items, person.ask)
    assert "back in the menu; what the app does goes on" in capsys.readouterr().out
    assert person.done == ["quit"]


def test_the_menu_ends_with_its_app(capsys: pytest.CaptureFixture[str]) -> None:
    def items() -> tuple[Item, ...]:
        raise Unreachable("the app at http://127.0.0.1:1 does not answer: refused")

    run_menu("together is running", items, Person("1").ask)
    assert "together: the app at http://127.0.0.1:1 does not answer" in capsys.readouterr().out


@pytest.mark.parametrize(("line", "yes"), [("y", True), (" YES ", True), ("", False), ("n", False), ("yep", False)])
def test_only_yes_is_yes(line: str, yes: bool) -> None:
    assert agreed("Stop it?", Person(line).ask) is yes


@pytest.mark.parametrize(
    ("choices", "answer"),
    [
        ((), "type a folder, or org/name of the hub\n"),
        ((("tiny", "tiny, 4 MB"),), "type a number from 1 to 1, a folder, or org/name of the hub\n"),
    ],
)
def test_a_number_of_no_model_is_answered(
    choices: tuple[tuple[str, str], ...], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert choose_model(choices, Person("99", "org/name").ask) == "org/name"
    assert capsys.readouterr().out.endswith(answer)
    assert choose_model(choices, Person("").ask) == ""


def test_a_choice_has_a_number_from_1_on() -> None:
    assert [numbered("ab", line) for line in ("1", " 2", "0", "3", "-1", "x", "")] == ["a", "b", *[None] * 5]


@pytest.fixture
def running(lent_app: RealApp) -> Iterator[RunningApp]:
    app = RunningApp(lent_app.url, lent_app.process.pid)
    with app._http:
        yield app


def test_several_models_are_told_apart(
    lent_app: RealApp, running: RunningApp, capsys: pytest.CaptureFixture[str]
) -> None:
    """One more comes beside the only one or in its place, as the person says; then each is chosen by its number."""
    folder = lent_app.home.parent / "menu-second"
    second = make_checksum_model(folder, layers=3, seed=5, quiet_ids=(*QUIET, EOS))
    settings = Settings(home=str(lent_app.home))
    before = lent_app.serving()["ring"]
    menu = Menu(running, settings, Person(str(second), "y").ask, main)
    menu.load()
    try:
        assert lent_app.serving()["ring"] == before
        said = capsys.readouterr().out
        assert "menu-second is ready at" in said
        Menu(running, settings, Person("").ask, main).chat()
        assert capsys.readouterr().out == "   1  toy\n   2  menu-second\n"
        Menu(running, settings, Person("2", "n").ask, main).plan()
        said = capsys.readouterr().out
        assert "   1  toy, which is loaded\n   2  menu-second, which is loaded\n" in said
        assert "toy computes on " in said
        third = make_checksum_model(lent_app.home.parent / "menu-third", layers=2, seed=6)
        Menu(running, settings, Person(str(third), "n").ask, main).plan()
        assert "it is loaded beside toy and menu-second" in capsys.readouterr().out
    finally:
        lent_app.post("/control/unload", {"model": "menu-second"}).raise_for_status()
    Menu(running, settings, Person(str(second), "").ask, main).load()  # in its place
    assert [each["serving"]["model"] for each in lent_app.status()["services"]] == ["menu-second"]
