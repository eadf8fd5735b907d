"""Two apps of one machine, a node that belongs to nobody, and a node that the menu adds: who takes which nodes."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.conftest import EVIL_NAME, LAYERS, RealApp, run_up, until
from tests.support.checksum import make_checksum_model
from tests.support.cluster import Node, call, cluster_settings, running_node
from tests.support.namespaces import permitted, run_scenario
from tests.support.orders import loaded, make_order
from tests.support.patience import PATIENCE
from together.cluster.claims import shared_out
from together.errors import NotEnoughMemory
from together.ring import rpc
from together.settings import Settings


@dataclass(frozen=True, slots=True)
class Machine:
    """All that runs on it."""

    apps: tuple[RealApp, RealApp]
    alone: Node
    model: Path
    settings: Settings  # of the free node


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Two apps with homes of their own, two nodes each, and a node that a person started."""
    folder = tmp_path_factory.mktemp("machine")
    settings = cluster_settings(folder / "home of the node", name="alone", memory="", lease=10 * PATIENCE)
    model = make_checksum_model(folder / "toy", layers=LAYERS)
    shared = {
        "TOGETHER_CLUSTER": settings.cluster,
        "TOGETHER_CLAIMS": settings.claims,
        "TOGETHER_NODE_PORT": str(settings.node_port),
    }
    command = ("--model", str(model), "--backend", "checksum", "--layers", "0:2,2:4")
    with ExitStack() as stack:
        apps = [stack.enter_context(run_up(made(folder / name), *command, **shared)) for name in ("one", "other")]
        alone = stack.enter_context(running_node(settings))
        yield Machine((apps[0], apps[1]), alone, model, settings)


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def names(app: RealApp) -> list[str]:
    return sorted(node["name"] for node in app.status()["nodes"])


def ids(app: RealApp) -> set[str]:
    return {node["id"] for node in app.status()["nodes"]}


@pytest.mark.full  # tests/cluster/test_membership.py has whom a node belongs to
def test_each_app_has_its_own_nodes_and_those_that_belong_to_nobody(machine: Machine) -> None:
    one, other = machine.apps
    mine = [f"{EVIL_NAME}-1", f"{EVIL_NAME}-2", "alone"]
    until(lambda: names(one) == names(other) == mine, PATIENCE, "their own nodes and the free one")
    assert len(ids(one) & ids(other)) == 1
    assert {node["owner"] for app in machine.apps for node in app.status()["nodes"] if node["name"] == "alone"} == {""}
    owners = [{node["owner"] for node in app.status()["nodes"]} - {""} for app in machine.apps]
    assert [len(found) for found in owners] == [1, 1]
    assert owners[0] != owners[1]
    one.post("/control/nodes", {"action": "start"}).raise_for_status()
    until(lambda: len(names(one)) == 4, PATIENCE, "the new node is there")
    assert names(one) == sorted([*mine, f"{EVIL_NAME}-3"])
    assert names(other) == mine
    one.post("/control/nodes", {"action": "stop"}).raise_for_status()
    until(lambda: names(one) == mine, PATIENCE, "the new node is gone")


# --- memory -----------------------------------------------------------------------------------------------------------


def free(app: RealApp) -> dict[str, int]:
    """What each node offers, by id."""
    return {node["id"]: node["free_bytes"] for node in app.status()["nodes"]}


@dataclass(slots=True)
class Watcher:
    """Adds up, again and again, what all nodes of the machine offer, as the apps show it."""

    machine: Machine
    sums: list[tuple[int, int]] = field(default_factory=list)  # offered, available
    _stop: threading.Event = field(default_factory=threading.Event)

    def look(self) -> int:
        """Returns what is offered. Two apps are not asked at one moment: what changed between does not count."""
        one, other = self.machine.apps
        while True:
            available = psutil.virtual_memory().available
            first, second = free(one), free(other)
            available = max(available, psutil.virtual_memory().available)
            if free(one) == first:
                offered = sum((first | second).values())
                self.sums.append((offered, available))
                return offered

    def look_for_ours(self) -> int:
        """Returns what would be offered if no other program ran: theirs come and go while the test does."""
        return self.look() + shared_out(self.machine.settings).others

    def watch(self) -> None:
        while not self._stop.is_set():
            self.look()

    @classmethod
    @contextmanager
    def watching(cls, machine: Machine) -> Iterator[Watcher]:
        watcher = cls(machine)
        thread = threading.Thread(target=watcher.watch)
        thread.start()
        try:
            yield watcher
        finally:
            watcher._stop.set()
            thread.join()
        assert len(watcher.sums) > 5
        assert all(offered <= available for offered, available in watcher.sums), watcher.sums


async def test_all_nodes_together_never_offer_more_than_is_free(machine: Machine) -> None:
    """While a node comes and goes, and while one is granted all that it offers."""
    one, other = machine.apps
    with Watcher.watching(machine) as watcher:
        before = ours(machine)
        until(lambda: same(watcher.look_for_ours(), before), PATIENCE, "five nodes offer all that is ours")
        one.post("/control/nodes", {"action": "start"}).raise_for_status()
        until(lambda: len(free(one)) == 4 and min(free(one).values()) > 0, PATIENCE, "the new node offers memory")
        until(lambda: same(watcher.look_for_ours(), before), PATIENCE, "six nodes offer what five did")
        assert max(free(one).values()) < sum(free(one).values()) / 3
        await grant_all(machine, watcher, before)
        one.post("/control/nodes", {"action": "stop"}).raise_for_status()
        until(lambda: same(watcher.look_for_ours(), before), PATIENCE, "five offer it again")
    refuse_too_much(other, machine.model)


async def grant_all(machine: Machine, watcher: Watcher, before: int) -> None:
    """The free node is granted its offer. The others' stay, and nobody gets those bytes again."""
    (alone,) = ids(machine.apps[0]) & ids(machine.apps[1])
    share = free(machine.apps[1])[alone]
    order = make_order(machine.model, memory=share)
    async with loaded(machine.alone, order):
        until(lambda: free(machine.apps[1])[alone] == 0, PATIENCE, "it has nothing left")
        until(lambda: granted(machine)["alone"] == share, PATIENCE, "everybody can read that")
        assert len(granted(machine)) == 6
        whole = shared_out(machine.settings)
        assert whole.others + whole.kept + whole.granted + whole.left == whole.total
        assert same(ours(machine), before - share)
        until(lambda: same(watcher.look_for_ours(), before - share), PATIENCE, "the others offer what they did")
        with pytest.raises(NotEnoughMemory, match=r"node alone: needs 999\.0 GB for layers 0:4, has [\d.]+ GB free"):
            await call(machine.alone, rpc.LOAD, make_order(machine.model, memory=999 * 10**9))
    until(lambda: same(watcher.look_for_ours(), before), PATIENCE, "it is given back")


def ours(machine: Machine) -> int:
    """Returns what the books leave to give, as if no other program ran. Unlike an offer it is never a moment old."""
    whole = shared_out(machine.settings)
    return whole.left + whole.others


def granted(machine: Machine) -> dict[str, int]:
    return {node.name: node.granted for node in shared_out(machine.settings).nodes}


def same(one: int, other: int) -> bool:
    """Two moments are compared, and what runs takes a little more or less."""
    return abs(one - other) < min(one, other) / 8


def refuse_too_much(app: RealApp, model: Path) -> None:
    """More than the machine has: both numbers, and what serves goes on."""
    answer = app.post("/control/load", {"model": str(model), "layers": "0:2,2:4", "context": 512, "users": 10**9})
    said = answer.json()["error"]["message"]
    assert re.search(r"0:2 need [\d.,]+ GB with .*, it may use [\d.]+ GB", said), said
    assert app.serving()["state"] == "READY"


# --- another machine --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not permitted(), reason="needs Linux's network namespaces")
def test_the_app_of_another_machine_keeps_its_nodes(tmp_path: Path) -> None:
    run_scenario("tests.reliability.neighbours:an_app_next_door", tmp_path)
