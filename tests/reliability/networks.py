"""Row R7's scenarios, each run in a network of its own: nodes with addresses of their own, and links that are cut."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from tests.head.test_recovery import TOKENS, disturbed
from tests.reliability.watching import holds_each_layer_once, stages_of
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.cluster import Node, ask, by_hand, cluster_settings, right_answer, running_head, start_node, until
from tests.support.namespaces import OWN, Switch, switch
from together.cluster_types import NodeState
from together.head.head import Head
from together.settings import Settings

NAMES = ("anna", "berta", "carla")


def toy_in(folder: Path) -> Path:
    return make_checksum_model(folder / "toy", layers=6, quiet_ids=(*QUIET, EOS), step_ms=2)


@contextmanager
def nodes_on(network: Switch, settings: Settings) -> Iterator[list[Node]]:
    """One ready node per machine."""
    with ExitStack() as stack:
        nodes = []
        for name, machine in network.machines.items():
            node = start_node(replace(settings, host=machine.address, name=name), within=machine.within)
            stack.callback(node.stop)
            nodes.append(node)
        for node in nodes:
            node.wait_ready()
        yield nodes


@asynccontextmanager
async def machines(folder: Path) -> AsyncIterator[tuple[Switch, Head, list[Node]]]:
    """Three machines with a node each, and a head on a fourth."""
    settings = cluster_settings(folder, host=OWN, lease=9.0)  # a head looks for stages it forgot every sixth of it
    with switch(*NAMES) as network, nodes_on(network, settings) as nodes:
        async with running_head(settings, *nodes) as head:
            yield network, head, nodes


def neighbours(head: Head) -> set[frozenset[str]]:
    """Pairs of nodes whose stages follow one another."""
    plan, names = head.view().serving.plan, {node.id: node.name for node in head.view().nodes}
    assert plan is not None
    places = [names[stage.node] for stage in plan.stages]
    return {frozenset(pair) for pair in pairwise(places)}


async def cuts_that_heal(folder: Path) -> None:
    """Between two nodes, then around one: each time the text goes on, and all is as before when it is healed."""
    toy = toy_in(folder)
    async with machines(folder) as (network, head, nodes):
        await head.load(toy, by_hand("anna=0:3,berta=3:6"))
        await a_cut_between_two_nodes(network, head, toy)
        network.heal()
        await head.load(toy, by_hand("anna=0:3,berta=3:6"))
        assert await ask(head) == right_answer(toy)
        await until(lambda: holds_each_layer_once(head, 6))
        await a_node_that_nobody_reaches(network, head, toy, nodes[1])


async def a_cut_between_two_nodes(network: Switch, head: Head, toy: Path) -> None:
    """The head reaches both all the time: they are planned around, and none of them is declared dead."""
    outcome = await disturbed(head, lambda: network.cut("anna", "berta"))
    print(f"cut between two nodes: stall of {outcome.stall:.1f} s")
    assert outcome.text == right_answer(toy, tokens=TOKENS), outcome
    assert frozenset(("anna", "berta")) not in neighbours(head), head.view().serving.plan
    assert all(node.state is not NodeState.FAILED for node in head.view().nodes)
    await until(lambda: holds_each_layer_once(head, 6))
    assert await ask(head, "again") == right_answer(toy, "again")


async def a_node_that_nobody_reaches(network: Switch, head: Head, toy: Path, node: Node) -> None:
    """It lives on, with stages of a ring that went on without it; when it is back they are ended, and none is used."""
    cut_off = node.stages()
    outcome = await disturbed(head, lambda: network.unplug("berta"))
    print(f"cut around a node: stall of {outcome.stall:.1f} s")
    assert outcome.text == right_answer(toy, tokens=TOKENS), outcome
    assert cut_off
    assert all(stage.is_running() for stage in cut_off)
    ring = head.view().serving.ring
    network.heal()
    await until(lambda: all(node.state is not NodeState.FAILED for node in head.view().nodes))
    await until(lambda: not any(stage.is_running() for stage in cut_off))
    await until(lambda: holds_each_layer_once(head, 6))
    assert {stage.ring for stage in stages_of(head)} == {ring}
    assert await ask(head) == right_answer(toy)
