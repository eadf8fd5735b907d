"""The menu of `launch.py` in a terminal while the app runs. Whatever may end something asks first."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from together.desktop.app_status import AppStatus
from together.desktop.at_login import is_on, way_here
from together.desktop.cli_models import SavedPlan, given
from together.desktop.client import RunningApp
from together.desktop.doctor import run_doctor
from together.desktop.entries import Entry, EntryState, MenuState, entries
from together.desktop.kept_chat import KeptChats, talk_kept
from together.desktop.models import list_models
from together.desktop.own_nodes import Ask, agreed, numbered
from together.desktop.show import load_and_show, load_last_and_show, print_line, working
from together.errors import TogetherError
from together.jsonfile import decode_json
from together.settings import Settings
from together.weights.find import known_models
from together.weights.store import KnownModel
from together.wording import exact_size_text

LAST = "the last model"  # what it is called where it is one of several choices


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the menu. `last`: the menu ends after it."""

    label: str
    act: Callable[[], object]
    last: bool = False


def run_menu(title: str, items: Callable[[], tuple[Item, ...]], ask: Ask) -> None:
    """Act until an item that is the last, the end of the input, Ctrl-C, or an app that has gone."""
    print_line(title)
    while True:
        try:
            shown = items()
        except TogetherError as error:
            print_line(f"together: {error}")
            return
        chosen = _ask_for_item(shown, ask)
        if chosen is None:
            return
        try:
            chosen.act()
        except TogetherError as error:
            print_line(f"together: {error}")
            continue
        except (EOFError, KeyboardInterrupt):
            print_line("")
            print_line("back in the menu; what the app does goes on")
            continue
        if chosen.last:
            return


def _ask_for_item(items: tuple[Item, ...], ask: Ask) -> Item | None:
    """None at the end of the input and for Ctrl-C."""
    for number, item in enumerate(items, 1):
        print_line(f"  {number:>2}  {item.label}")
    while True:
        try:
            line = ask(f"1-{len(items)}> ").strip().lower()
        except (EOFError, KeyboardInterrupt):
            print_line("")
            return None
        if line in ("q", "quit", "exit"):
            return items[-1]
        if (chosen := numbered(items, line)) is not None:
            return chosen
        print_line(f"type a number from 1 to {len(items)}, or q to quit")


def choose_model(choices: Sequence[tuple[str, str]], ask: Ask) -> str:
    """What stands for the chosen line, a folder, or what was typed; empty where the person goes back."""
    for count, (_, shown) in enumerate(choices, 1):
        print_line(f"  {count:>2}  {shown}")
    number, range_text = ("a number, ", f"a number from 1 to {len(choices)}, ") if choices else ("", "")
    while line := ask(f"{number}a folder, or org/name of the hub; Enter goes back> ").strip():
        if (chosen := numbered(choices, line)) is not None:
            return chosen[0]
        if not line.isdecimal():
            return str(Path(line).expanduser().resolve()) if Path(line).expanduser().is_dir() else line
        print_line(f"type {range_text}a folder, or org/name of the hub")
    return ""


@dataclass(frozen=True, slots=True)
class Menu:
    """What can be done with a running app, and the questions for it."""

    app: RunningApp
    settings: Settings
    ask: Ask
    run: Callable[[list[str]], object]  # a command line of ours, in this terminal

    def items(self) -> tuple[Item, ...]:
        """What the menu offers now. Raises TogetherError where the app does not answer."""
        status = self.app.status()
        found = {entry.name: self._item(entry) for entry in entries(MenuState(status, is_on(way_here())))}
        advised = any(model.advice for model in status.models)
        balance = (Item("Balance: move layers as advised", self.balance),) if advised else ()
        return (
            found.pop("chat"),
            Item("Chat here", self.chat),
            found.pop("status"),
            Item("Load a model", self.load),
            Item("Plan: who would take which layers", self.plan),
            *balance,
            Item("Models on this machine", lambda: list_models(self.settings.home_path, self.app.status(), False)),
            Item("Doctor: what this machine can do, and what is wrong", self.doctor),
            *found.values(),
            Item("Quit this menu; the app goes on", lambda: None, last=True),
        )

    def _item(self, entry: Entry) -> Item:
        """An entry as a line of this menu."""
        label = f"Status: {entry.label}" if entry.name == "status" else entry.label
        label += " (it does; end that)" if entry.state is EntryState.TICKED else ""
        return Item(label, lambda: self.run(list(entry.command)), last=entry.ends)

    def balance(self) -> None:
        for model in self.app.status().models:
            if model.advice:
                print_line(model.advice)
                load_and_show(self.app, {"model": model.serving.model}, action="balance")

    def doctor(self) -> None:
        run_doctor(self.settings, None, False)

    # --- models -------------------------------------------------------------------------------------------------------

    def chat(self) -> None:
        """Where several models answer, ask which one."""
        served = _served(self.app.status())
        if len(served) < 2:
            talk_kept(KeptChats(self.app), (), {})
            return
        for number, name in enumerate(served, 1):
            print_line(f"  {number:>2}  {name}")
        if (chosen := numbered(served, self.ask("which one? Enter goes back> "))) is not None:
            talk_kept(KeptChats(self.app), (), {"model": chosen})

    def load(self) -> None:
        status = self.app.status()
        chosen = self._choose_model(status, ((LAST, status.offer),) if status.offer else ())
        if chosen == LAST:
            load_last_and_show(self.app)
        elif chosen:
            load_and_show(self.app, {"model": chosen} | self._place(status, chosen))

    def plan(self) -> None:
        """Show a plan, and load by it if that is wanted."""
        status = self.app.status()
        served = _served(status)
        chosen = self._choose_model(status, tuple((name, f"{name}, which is loaded") for name in served))
        if not chosen:
            return
        model = {} if served == (chosen,) else {"model": chosen} | self._place(status, chosen)
        with working("measuring the machines and their links"):
            answer = self.app.ask("plan", dict(model))
        print_line(str(answer.pop("text")))
        if "error" not in answer and agreed("Load it by this plan?", self.ask):
            load_and_show(self.app, model | _order_of(answer))

    def _place(self, status: AppStatus, chosen: str) -> dict[str, object]:
        """Whether it is loaded beside what serves; without an answer in the place of the only one."""
        served = _served(status)
        if not served or chosen in served or status.serving_of(chosen) is not None:
            return {}
        if len(served) > 1:
            print_line(f"it is loaded beside {' and '.join(served)}")
            return {"beside": True}
        return {"beside": True} if agreed(f"Load it beside {served[0]}, and not in its place?", self.ask) else {}

    def _choose_model(self, status: AppStatus, first: tuple[tuple[str, str], ...]) -> str:
        """What `load` takes; empty where the person goes back. `first` are further choices with their lines."""
        served = {model.serving.plan.model.path for model in status.models if model.serving.plan}
        here = [model for model in known_models(self.settings.home_path) if not model.fault]
        others = [
            (str(model.folder), _line_of(model, here)) for model in here if str(model.folder.resolve()) not in served
        ]
        return choose_model([*first, *others], self.ask)


def _line_of(model: KnownModel, among: list[KnownModel]) -> str:
    """Name and size, what is here of it, whose it is, and its folder where the name is not enough."""
    twice = sum(other.name == model.name for other in among) > 1
    program = f"of {model.program}" if model.program else ""
    parts = (model.name, exact_size_text(model.bytes), "" if model.whole else f"here are {model.held}", program)
    return ", ".join(filter(None, (*parts, str(model.folder) if twice else "")))


def _served(status: AppStatus) -> tuple[str, ...]:
    return tuple(model.serving.model for model in status.models if model.serving.up)


def _order_of(plan: dict[str, Any]) -> dict[str, object]:
    """A plan's answer as an order to load by it."""
    saved = decode_json(json.dumps(plan).encode(), SavedPlan)
    return given(layers=saved.layers, context=saved.context, users=saved.users)
