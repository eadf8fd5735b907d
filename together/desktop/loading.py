"""`load` in a terminal: order it, and show what every machine does meanwhile. Knows only the app's HTTP."""

from __future__ import annotations

import threading
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from together.desktop.client import RunningApp
from together.desktop.show import one_line
from together.errors import TogetherError

LOOK_EVERY = 0.3  # seconds


def load_last_and_show(running: RunningApp) -> None:
    """Load what the app offers, which was applied last; where it serves already, load it again."""
    offer = running.status()["offer"]
    print(one_line(offer or "Loading the last model again."), flush=True)
    load_and_show(running, {}, action="last" if offer else "load")


def load_and_show(running: RunningApp, order: dict[str, object], action: str = "load") -> None:
    """Returns when the model serves. Raises the app's own sentence where it does not."""
    failure: list[TogetherError] = []

    def work() -> None:
        try:
            running.control(action, order)
        except TogetherError as error:
            failure.append(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[said]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        shown = Bars(progress)
        while worker.is_alive():
            worker.join(LOOK_EVERY)
            shown.draw(running.status())
    if failure:
        raise failure[0]
    status = running.status()
    names = {node["id"]: node["name"] for node in status["nodes"]}
    for stage in status["serving"]["plan"]["stages"]:
        name = one_line(names.get(stage["node"], stage["node"]))
        print(f"{name}: layers {stage['layers']['start']}:{stage['layers']['stop']}")
    print(f"{one_line(status['serving']['model'])} is ready at {running.url}")


class Bars:
    """One bar per stage of the ring that is being loaded."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[tuple[str, int], Any] = {}

    def draw(self, status: dict[str, Any]) -> None:
        ring = status["serving"]["ring"]
        for node in status["nodes"]:
            for stage in node["stages"]:
                if stage["ring"] == ring:
                    self._draw(node["name"], stage)

    def _draw(self, node: str, stage: dict[str, Any]) -> None:
        key = (stage["ring"], stage["slot"])
        if key not in self._tasks:
            layers = f"{stage['layers']['start']}:{stage['layers']['stop']}"
            self._tasks[key] = self._progress.add_task(f"{one_line(node)} {layers}", total=1.0, said="")
        done, said = progress_of(stage)
        self._progress.update(self._tasks[key], completed=done, said=said)


def progress_of(stage: dict[str, Any]) -> tuple[float, str]:
    """0 to 1 and words: first the bytes that come from elsewhere, then the layers."""
    layers = stage["layers"]["stop"] - stage["layers"]["start"]
    if stage["fetched_bytes"] < stage["fetch_bytes"]:
        done = stage["fetched_bytes"] / stage["fetch_bytes"]
        waits = f", waits for {one_line(stage['waiting'])}" if stage["waiting"] else ""
        return done, f"fetching, {stage['fetched_bytes'] / 1e6:.0f} of {stage['fetch_bytes'] / 1e6:.0f} MB{waits}"
    return stage["progress"], f"{round(stage['progress'] * layers)} of {layers} layers"
