"""Machines that join by what the terminals print, in a network without multicast; run by test_joining.py."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.conftest import until
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.cluster import CHECKOUT, cluster_settings, environment
from tests.support.namespaces import OWN, switch
from tests.support.patience import PATIENCE
from together.settings import Settings


@dataclass(slots=True)
class Program:
    """A command of ours as a person starts it, and the lines of its terminal."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def wait_for(self, text: str) -> str:
        """The first line with `text`."""
        until(lambda: any(text in line for line in self.lines), PATIENCE, f"{text!r} in {self.lines}")
        return next(line for line in self.lines if text in line)

    def count(self, text: str) -> int:
        return sum(text in line for line in self.lines)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(PATIENCE) == 0, self.lines


@contextmanager
def running(settings: Settings, *arguments: str, within: tuple[str, ...] = ()) -> Iterator[Program]:
    process = subprocess.Popen(
        [*within, sys.executable, "-m", "together", *arguments],
        cwd=CHECKOUT,
        env=environment(settings) | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    program = Program(process)
    reader = threading.Thread(target=lambda: program.lines.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        yield program
    finally:
        process.kill()
        process.wait(PATIENCE)
        reader.join(PATIENCE)
        process.stdout.close() if process.stdout else None


def printed(line: str) -> list[str]:
    """The arguments of the command that a line tells a person to run."""
    return line.strip().partition("python3 launch.py ")[2].split()


async def by_what_is_printed(folder: Path) -> None:
    """A node first and the app by its line; another node by the app's line; a third by the page's address."""
    model = make_checksum_model(folder / "toy", layers=6, quiet_ids=(*QUIET, EOS))
    homes = {name: cluster_settings(folder / name, name=name, memory="300MB") for name in ("anna", "berta", "carla")}
    settings = cluster_settings(folder / "app", name="studio")
    homes = {name: replace(home, cluster=settings.cluster) for name, home in homes.items()}
    with switch("anna", "berta", "carla") as network:
        network.forbid_multicast()
        within = {name: machine.within for name, machine in network.machines.items()}
        with running(homes["anna"], "node", "--host", "0.0.0.0", within=within["anna"]) as anna:
            up = printed(anna.wait_for("on the machine with the app"))
            assert (up[0], up[2:5]) == ("join", ["up", "--host", "0.0.0.0"])
            assert up[6] == f"{network.machines['anna'].address}:{homes['anna'].node_port}"
            more = ("--no-browser", "--port", "0", "--local-nodes", "0", "--model", str(model))
            with running(settings, *up, *more, "--peer", f"{network.machines['berta'].address}:9") as app:
                node = printed(app.wait_for("on another machine"))
                page = app.wait_for("page for a phone").split()[-1]
                *keys, _ = printed(app.wait_for("a key for a browser"))  # no first one is made without a terminal
                with running(settings, *keys, "carla") as made:
                    link = made.wait_for("link that opens the page").split()[-1]
                assert link.startswith(f"{page}/?key=tg-")
                with (
                    running(homes["berta"], *node, within=within["berta"]) as berta,
                    running(homes["carla"], *node[:5], "--peer", link, within=within["carla"]) as carla,
                ):
                    they_join_and_leave(app, {"anna": anna, "berta": berta, "carla": carla}, page)
                nobody_is_flooded(app, anna)


def they_join_and_leave(app: Program, nodes: dict[str, Program], page: str) -> None:
    for name, node in nodes.items():
        app.wait_for(f"{name} joined: 0.3 GB, checksum/cpu")
        node.wait_for(f"the app on studio joined: {page}")
    app.wait_for("toy is ready on ")
    assert any(re.search(r"^runs layers \d+:\d+ of toy$", line) for line in nodes["anna"].lines), nodes["anna"].lines
    nodes["berta"].stop()
    app.wait_for("berta left: it was stopped")
    nodes["carla"].process.kill()
    app.wait_for("carla is lost: its connection broke: it was ended, or its machine cannot be reached")


def nobody_is_flooded(app: Program, anna: Program) -> None:
    """Whoever came, left or does not answer was said once, in words."""
    app.stop()
    anna.wait_for("the app on studio left")
    anna.wait_for("runs no layers any more")
    for text in (" joined: ", "berta left: it was stopped", "does not answer yet", "open to this network"):
        assert app.count(text) == (3 if text == " joined: " else 1), app.lines
    assert anna.count("open to this network") == 1
    assert not [line for line in (*app.lines, *anna.lines) if "WARNING" in line or "try again" in line]


async def refused(folder: Path) -> None:
    """A page where no app answers, in a sentence."""
    with switch(), running(cluster_settings(folder), "node", "--peer", f"http://{OWN}:8765") as node:
        assert node.process.wait(PATIENCE) == 1
        said = f"no app of together answers at http://{OWN}:8765; start it there with: python3 launch.py up"
        assert said in node.lines[0], node.lines
