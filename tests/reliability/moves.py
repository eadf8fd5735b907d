"""Row R9's scenarios, each run in a network of its own: machines whose address changes while they run and people chat.

All timings are the app's own defaults.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

from tests.head.test_recovery import TOKENS, disturbed
from tests.reliability.watching import holds_each_layer_once, stages_of
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.cluster import Node, ask, by_hand, cluster_settings, right_answer, start_node, until
from tests.support.namespaces import OWN, Machine, Switch, switch
from tests.support.patience import PATIENCE
from tests.support.suppliers import LAYERS, MEGABYTE, heavy_toy
from together.cluster_types import Endpoint, NodeState
from together.head.head import Head
from together.settings import Settings
from together.view import ServingState

DEFAULTS = Settings()
SPLIT = by_hand("anna=0:3,berta=3:6")


def toy_in(folder: Path) -> Path:
    return make_checksum_model(folder / "toy", layers=6, quiet_ids=(*QUIET, EOS), step_ms=2)


def settings_in(folder: Path) -> Settings:
    return cluster_settings(
        folder,
        config=str(folder / "code"),
        host="0.0.0.0",
        heartbeat=DEFAULTS.heartbeat,
        node_timeout=DEFAULTS.node_timeout,
        users=1,
    )


@contextmanager
def node_on(
    machine: Machine, settings: Settings, name: str, *peers: Endpoint, within: tuple[str, ...] = ()
) -> Iterator[Node]:
    """A ready node that listens on all addresses of its machine."""
    node = start_node(replace(settings, name=name), *peers, within=within or machine.within)
    node.host = machine.address
    try:
        node.wait_ready()
        yield node
    finally:
        node.stop()


@asynccontextmanager
async def heading(settings: Settings, *peers: Endpoint, nodes: int = 2) -> AsyncIterator[Head]:
    head = Head(settings, peers)
    await head.start()
    try:
        await until(lambda: len(head.view().nodes) == nodes)
        yield head
    finally:
        await head.stop()


# --- found by multicast -----------------------------------------------------------------------------------------------


async def found_by_multicast(folder: Path) -> None:
    toy = toy_in(folder)
    async with serving_pair(folder, toy) as (head, network):
        await all_move_in_turn(head, network, toy, ("berta", "this"), ("berta",), ("anna",), ("this",))


@asynccontextmanager
async def serving_pair(folder: Path, toy: Path) -> AsyncIterator[tuple[Head, Switch]]:
    """A head that serves the toy on two machines."""
    settings = settings_in(folder)
    with switch("anna", "berta") as network, ExitStack() as stack:
        for name, machine in network.machines.items():
            stack.enter_context(node_on(machine, settings, name))
        async with heading(settings) as head:
            await head.load(toy, SPLIT)
            yield head, network


async def all_move_in_turn(head: Head, network: Switch, toy: Path, *moves: tuple[str, ...]) -> None:
    """Each time those, while an answer is under way; "this" is the head's machine."""
    own = OWN
    for number, names in enumerate(moves, start=1):

        async def move(numbers: int = 10 * number, names: tuple[str, ...] = names) -> None:
            nonlocal own
            for name in names:
                if name == "this":
                    own = network.readdress_self(own, 100 + numbers)
                else:
                    network.readdress(name, numbers + list(network.machines).index(name) + 2)

        await a_move_under_way(head, network, toy, names, move)


async def a_move_under_way(
    head: Head, network: Switch, toy: Path, names: tuple[str, ...], move: Callable[[], Awaitable[None]]
) -> None:
    """The answer goes on with the same text, over the same stages; then another one is right."""
    clock = asyncio.get_running_loop().time
    before, moves = {stage.pid for stage in stages_of(head)}, list[asyncio.Task[float]]()
    ring, epoch = head.view().serving.ring, epoch_of(head)

    async def follow() -> float:
        began = clock()
        await move()
        await until(lambda: epoch_of(head) > epoch and back(head, network))
        return clock() - began

    outcome = await disturbed(head, lambda: moves.append(asyncio.create_task(follow())))
    took = await moves[0]
    print(f"{' and '.join(names)} moved: back after {took:.1f} s, the answer paused for {outcome.stall:.1f} s")
    assert outcome.text == right_answer(toy, tokens=TOKENS), outcome
    assert took < PATIENCE
    assert outcome.stall < PATIENCE
    assert {stage.pid for stage in stages_of(head)} == before, "a stage was loaded again"
    assert head.view().serving.ring == ring
    assert await ask(head, "again") == right_answer(toy, "again")
    assert holds_each_layer_once(head, 6)


def epoch_of(head: Head) -> int:
    assert head.service is not None, "nothing serves"
    return head.service.loader.epoch


def back(head: Head, network: Switch) -> bool:
    """Every node is known by its machine's address, none is lost, and the model serves."""
    view = head.view()
    known = {node.name: node.endpoint.addresses for node in view.nodes}
    right = all(known.get(name) == (machine.address,) for name, machine in network.machines.items())
    ready = all(node.state is NodeState.READY for node in view.nodes)
    return right and ready and view.serving.state is ServingState.READY


# --- known by name ----------------------------------------------------------------------------------------------------


async def without_multicast(folder: Path) -> None:
    """The head was told of anna, berta of anna; nobody else says where anybody is."""
    toy, settings = toy_in(folder), settings_in(folder)
    with switch("anna", "berta") as network:
        network.forbid_multicast()
        machines = network.machines
        with (
            node_on(machines["anna"], settings, "anna") as anna,
            node_on(machines["berta"], settings, "berta", anna.endpoint),
        ):
            async with heading(settings, anna.endpoint) as head:
                await head.load(toy, SPLIT)
                await all_move_in_turn(head, network, toy, ("berta",), ("anna",), ("this",))


async def asked_while_it_moves(folder: Path) -> None:
    """The question whether a stage is frozen goes to the address that its machine has just left: the stage is well."""
    async with serving_pair(folder, toy_in(folder)) as (head, network):
        assert head.service is not None
        network.readdress("berta", 20)
        assert await head.service.loader.frozen() == ()


# --- loads that are cut -----------------------------------------------------------------------------------------------


async def a_load_is_cut_for_seconds(folder: Path) -> None:
    await a_load_is_cut(folder, 6.0)


async def a_load_is_cut_for_a_minute(folder: Path) -> None:
    """Longer than the lease of a head that is silent: the node frees its stage, and gets its order again."""
    await a_load_is_cut(folder, 60.0)


async def a_load_is_cut(folder: Path, seconds: float) -> None:
    """A node fetches from this machine, which has the model, and nobody reaches it for a while."""
    clock = asyncio.get_running_loop().time
    async with loading(folder) as (network, head, load):
        steps = list[str]()
        network.unplug("anna")
        watching = asyncio.create_task(note_steps(head, steps))
        await asyncio.sleep(seconds)  # this is what is tested
        assert not load.done(), "the load did not wait"
        healed = clock()
        network.heal()
        await load
        print(f"a load cut for {seconds:.0f} s: ready {clock() - healed:.1f} s after it; {steps}")
        watching.cancel()
        assert any("out of reach for" in step for step in steps), steps


async def a_source_moves_while_it_gives(folder: Path) -> None:
    """The head's machine has the model, and gets another address: the node is told, and fetches the rest there."""
    clock = asyncio.get_running_loop().time
    async with loading(folder) as (network, _, load):
        moved = clock()
        network.readdress_self(OWN, 150)
        await load
        print(f"a source that moved: the load was ready {clock() - moved:.1f} s after it")


@asynccontextmanager
async def loading(folder: Path) -> AsyncIterator[tuple[Switch, Head, asyncio.Task[str]]]:
    """A node that fetches the toy from this machine, and has a part of it; at the end the toy serves."""
    toy, settings = heavy_toy(folder / "home"), replace(settings_in(folder), home=str(folder / "home"))
    with switch("anna") as network:
        network.slow(24)  # so that there is time for harm
        elsewhere, machine = replace(settings, home=str(folder / "anna")), network.machines["anna"]
        with node_on(machine, elsewhere, "anna", within=machine.blind_to(folder / "home")):
            async with heading(settings, nodes=1) as head:
                load = asyncio.create_task(head.load(toy, by_hand(f"anna=0:{LAYERS}")))
                await until(lambda: any(stage.fetched_bytes > MEGABYTE for stage in stages_of(head)))
                yield network, head, load
                assert head.view().serving.state is ServingState.READY
                assert await ask(head) == right_answer(toy)


async def note_steps(head: Head, steps: list[str]) -> None:
    async for view in head.changes():
        step = str(view.serving.step)
        if step not in steps:
            steps.append(step)
