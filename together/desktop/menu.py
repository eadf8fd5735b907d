"""The menu of `launch.py` in a terminal while the app runs. Whatever may end something asks first."""

from __future__ import annotations

import json
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from together.cluster_types import NodeState, NodeStatus
from together.desktop.app_status import AppStatus
from together.desktop.cli_models import SavedPlan, given
from together.desktop.client import RunningApp
from together.desktop.doctor import run_doctor
from together.desktop.kept_chat import KeptChats, talk_kept
from together.desktop.keys import reached_at
from together.desktop.models import list_models
from together.desktop.show import (
    load_and_show,
    load_last_and_show,
    one_line,
    print_line,
    show_status,
    wait_until,
    working,
)
from together.errors import TogetherError
from together.jsonfile import decode_json
from together.settings import Settings
from together.weights.find import known_models
from together.weights.store import KnownModel
from together.wording import exact_size_text, size_text

Ask = Callable[[str], str]  # prints a prompt and returns a line; raises EOFError at the end of the input
Choice = TypeVar("Choice")

LAST = "the last model"  # what it is called where it is one of several choices
STARTS_WITHIN = 60.0  # seconds


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
            entries = items()
        except TogetherError as error:
            print_line(f"together: {error}")
            return
        chosen = _ask_for_item(entries, ask)
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


def _ask_for_item(entries: tuple[Item, ...], ask: Ask) -> Item | None:
    """None at the end of the input and for Ctrl-C."""
    for number, item in enumerate(entries, 1):
        print_line(f"  {number:>2}  {item.label}")
    while True:
        try:
            line = ask(f"1-{len(entries)}> ").strip().lower()
        except (EOFError, KeyboardInterrupt):
            print_line("")
            return None
        if line in ("q", "quit", "exit"):
            return entries[-1]
        if (chosen := numbered(entries, line)) is not None:
            return chosen
        print_line(f"type a number from 1 to {len(entries)}, or q to quit")


def numbered(choices: Sequence[Choice], line: str) -> Choice | None:
    """The choice of that number, counted from 1."""
    text = line.strip()
    if text.isascii() and text.isdecimal() and 1 <= int(text) <= len(choices):
        return choices[int(text) - 1]
    return None


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


def agreed(question: str, ask: Ask) -> bool:
    """Whether the answer is yes; anything else is no."""
    return ask(f"{one_line(question)} [y/N] ").strip().lower() in ("y", "yes")


@dataclass(frozen=True, slots=True)
class Menu:
    """What can be done with a running app, and the questions for it."""

    app: RunningApp
    settings: Settings
    ask: Ask

    def items(self) -> tuple[Item, ...]:
        """What the menu offers now. Raises TogetherError where the app does not answer."""
        status = self.app.status()
        advised = any(model.advice for model in status.models)
        balance = (Item("Balance: move layers as advised", self.balance),) if advised else ()
        return (
            Item("Open the page", self.open_page),
            Item("Chat here", self.chat),
            Item("Status", lambda: show_status(self.app.status(), self.app.url, Console(), reached_at(self.app))),
            Item("Load a model", self.load),
            Item("Plan: who would take which layers", self.plan),
            *balance,
            Item("Models on this machine", lambda: list_models(self.settings.home_path, self.app.status(), False)),
            Item("Doctor: what this machine can do, and what is wrong", self.doctor),
            Item("Start a node on this machine", self.start_node),
            Item("Stop a node on this machine", self.stop_node),
            Item("Stop the app", self.app.stop, last=True),
            Item("Quit this menu; the app goes on", lambda: None, last=True),
        )

    def open_page(self) -> None:
        print_line(self.app.url)
        webbrowser.open(self.app.link)

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

    # --- nodes --------------------------------------------------------------------------------------------------------

    def start_node(self) -> None:
        before = {node.id for node in self._own_nodes()}
        self.app.ask("nodes", {"action": "start"})
        with working("starting a node"):
            wait_until(lambda: any(node.id not in before for node in self._own_nodes()), STARTS_WITHIN)
        started = [node for node in self._own_nodes() if node.id not in before]
        for node in started:
            print_line(f"{node.name} is there, with {size_text(node.memory_bytes)}")
        if not started:
            print_line("the node is still starting; the app's own terminal says if it cannot")

    def stop_node(self) -> None:
        """Ask which one, and say first what that would mean."""
        nodes = self._own_nodes()
        if not nodes:
            print_line("this app started no node here")
            return
        for number, node in enumerate(nodes, 1):
            print_line(f"  {number:>2}  {node.name}, {_holds(node)}")
        chosen = numbered(nodes, self.ask("which one? Enter goes back> "))
        if chosen is None:
            print_line("no node was stopped")
            return
        print_line(str(self.app.ask("nodes", {"action": "foresee", "node": chosen.id})["text"]))
        if agreed(f"Stop {chosen.name}?", self.ask):
            with working(f"stopping {chosen.name}"):
                self.app.ask("nodes", {"action": "stop", "node": chosen.id})
            print_line(f"{chosen.name} was stopped")

    def _own_nodes(self) -> tuple[NodeStatus, ...]:
        status = self.app.status()
        return tuple(node for node in status.nodes if node.owner == status.head and node.state is not NodeState.FAILED)


def _line_of(model: KnownModel, among: list[KnownModel]) -> str:
    """Name and size, what is here of it, whose it is, and its folder where the name is not enough."""
    twice = sum(other.name == model.name for other in among) > 1
    program = f"of {model.program}" if model.program else ""
    parts = (model.name, exact_size_text(model.bytes), "" if model.whole else f"here are {model.held}", program)
    return ", ".join(filter(None, (*parts, str(model.folder) if twice else "")))


def _served(status: AppStatus) -> tuple[str, ...]:
    return tuple(model.serving.model for model in status.models if model.serving.up)


def _holds(node: NodeStatus) -> str:
    stages = [f"layers {stage.layers} of {stage.model}" for stage in node.stages]
    return f"runs {' and '.join(stages)}" if stages else "runs no layers"


def _order_of(plan: dict[str, Any]) -> dict[str, object]:
    """A plan's answer as an order to load by it."""
    saved = decode_json(json.dumps(plan).encode(), SavedPlan)
    return given(layers=saved.layers, context=saved.context, users=saved.users)
