"""Nodes that the running app starts and stops on this machine, at a terminal or without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from together.cluster_types import NodeStatus
from together.desktop.client import RunningApp
from together.desktop.entries import own_nodes
from together.desktop.show import one_line, print_line, wait_until, working
from together.errors import AppError, BadPlan
from together.wording import MOST, count_text, cut, quoted, size_text

Ask = Callable[[str], str]  # prints a prompt and returns a line; raises EOFError at the end of the input
Choice = TypeVar("Choice")

STARTS_WITHIN = 60.0  # seconds


def start_node_here(app: RunningApp) -> None:
    before = {node.id for node in _own(app)}
    app.ask("nodes", {"action": "start"})
    with working("starting a node"):
        wait_until(lambda: any(node.id not in before for node in _own(app)), STARTS_WITHIN)
    started = [node for node in _own(app) if node.id not in before]
    for node in started:
        print_line(f"{node.name} is there, with {size_text(node.memory_bytes)}")
    if not started:
        print_line("the node is still starting; the app's own terminal says if it cannot")


def stop_node_here(app: RunningApp, ask: Ask | None, name: str = "", sure: bool = False) -> None:
    """The one of that name or id, else the one that is chosen; `sure` asks nothing more.

    Without a terminal (`ask` is None) the one with the fewest layers is stopped, unless a model ends with it: that
    raises AppError. Raises BadPlan for a node that is not one of them.
    """
    nodes = _own(app)
    if not nodes:
        print_line("this app started no node here")
        return
    chosen = _named(nodes, name) if name else _chosen(nodes, ask)
    if chosen is None:
        print_line("no node was stopped")
        return
    meaning = app.ask("nodes", {"action": "foresee", "node": chosen.id})
    if ask is None and meaning["ends"] and not sure:
        raise AppError(
            "{meaning} To stop it all the same: python3 launch.py nodes stop {name} --yes",
            meaning=str(meaning["text"]),
            name=chosen.name,
        )
    print_line(str(meaning["text"]))
    if sure or ask is None or agreed(f"Stop {chosen.name}?", ask):
        with working(f"stopping {chosen.name}"):
            app.ask("nodes", {"action": "stop", "node": chosen.id})
        print_line(f"{chosen.name} was stopped")


def list_nodes_here(app: RunningApp) -> None:
    nodes = _own(app)
    print_line(f"this app started {count_text(len(nodes), 'node') if nodes else 'no node'} here")
    for node in nodes:
        print_line(f"  {node.name}, {_holds(node)}")


def _own(app: RunningApp) -> tuple[NodeStatus, ...]:
    return own_nodes(app.status())


def _named(nodes: Sequence[NodeStatus], name: str) -> NodeStatus:
    found = next((node for node in nodes if name in (node.id, node.name)), None)
    if found is None:
        message = "this app started no node {name}; those that it started: {names}"
        raise BadPlan(message, name=quoted(cut(name, MOST)), names=tuple(node.name for node in nodes))
    return found


def _chosen(nodes: Sequence[NodeStatus], ask: Ask | None) -> NodeStatus | None:
    if ask is None:
        return min(nodes, key=lambda node: sum(len(stage.layers) for stage in node.stages))
    for number, node in enumerate(nodes, 1):
        print_line(f"  {number:>2}  {node.name}, {_holds(node)}")
    return numbered(nodes, ask("which one? Enter goes back> "))


def numbered(choices: Sequence[Choice], line: str) -> Choice | None:
    """The choice of that number, counted from 1."""
    text = line.strip()
    if text.isascii() and text.isdecimal() and 1 <= int(text) <= len(choices):
        return choices[int(text) - 1]
    return None


def agreed(question: str, ask: Ask) -> bool:
    """Whether the answer is yes; anything else is no."""
    return ask(f"{one_line(question)} [y/N] ").strip().lower() in ("y", "yes")


def _holds(node: NodeStatus) -> str:
    stages = [f"layers {stage.layers} of {stage.model}" for stage in node.stages]
    return f"runs {' and '.join(stages)}" if stages else "runs no layers"
