"""Three machines with folders and addresses of their own and a fourth that is a stranger; run by test_hosts.py."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.reliability.moves import node_on
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.cluster import (
    CHECKOUT,
    Node,
    ask,
    by_hand,
    cluster_settings,
    environment,
    right_answer,
    until,
)
from tests.support.namespaces import BRIDGE, OWN, Machine, switch
from tests.support.patience import PATIENCE
from together.cluster_types import Endpoint
from together.errors import Locked
from together.head.head import Head
from together.requests import Message
from together.ring.doors import find_door
from together.settings import Settings
from together.text.tokenizer import TextModel
from together.view import ServingState

MEMBERS = ("anna", "berta")
STRANGER = "dora"
PROMPT = "a secret that nobody on this network may read"
EVERY_FRAME = 3  # ETH_P_ALL
MARKER = b"what is not encrypted is found"


def told(settings: Settings, *arguments: str) -> str:
    """The first line that a command prints, as typed on the machine of these settings."""
    command = [sys.executable, "-m", "together", *arguments]
    done = subprocess.run(
        command, cwd=CHECKOUT, env=environment(settings), capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    return done.stdout.partition("\n")[0]


class Capture:
    """All that travels over the switch, read whenever this event loop has time."""

    def __init__(self, there: socket.socket) -> None:
        self.data = bytearray()
        self._there = there

    def read(self) -> None:
        with suppress(BlockingIOError):
            while True:
                self.data += self._there.recv(2**16)[14:]  # without Ethernet's header

    def has(self, text: bytes) -> bool:
        return text in self.data


@contextmanager
def capturing() -> Iterator[Capture]:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERY_FRAME)) as there:
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**24)
        there.bind((BRIDGE, 0))
        there.setblocking(False)
        capture = Capture(there)
        asyncio.get_running_loop().add_reader(there, capture.read)
        try:
            yield capture
        finally:
            asyncio.get_running_loop().remove_reader(there)


def living(head: Head) -> set[str]:
    return {node.name for node in head.machines.membership.living()}


async def join_load_chat_part_and_meet_again(folder: Path) -> None:
    toy = make_checksum_model(folder / "toy", layers=6, width=512, quiet_ids=(*QUIET, EOS))
    app = cluster_settings(folder / "app", host="0.0.0.0", name="studio")
    homes = {name: replace(app, home=str(folder / name), name=name) for name in (*MEMBERS, STRANGER)}
    code = told(app, "join-code")
    for name in MEMBERS:
        told(homes[name], "join", code.lower())
    with switch(*homes) as network, ExitStack() as stack:
        nodes = {
            name: stack.enter_context(node_on(machine, homes[name], name)) for name, machine in network.machines.items()
        }
        head = Head(app)  # nobody tells it where they are
        await head.start()
        try:
            await until(lambda: living(head) == set(MEMBERS))
            await the_stranger_is_locked(head, nodes[STRANGER])
            await nothing_is_read_on_the_way(head, toy, network.machines["anna"])
            network.unplug("berta")
            await until(lambda: living(head) == {"anna"})
            await until(lambda: head.view().serving.state is ServingState.READY)
            assert await ask(head, PROMPT) == right_answer(toy, PROMPT)
            network.heal()
            await until(lambda: living(head) == set(MEMBERS))
            await a_new_code_puts_the_others_out(head, app, homes, nodes)
            await until(lambda: head.view().serving.state is ServingState.READY)
            assert await ask(head, PROMPT) == right_answer(toy, PROMPT)
        finally:
            await head.stop()


async def the_stranger_is_locked(head: Head, stranger: Node) -> None:
    """It is heard, shown, and refused by whoever is given its address."""
    await until(lambda: any(stranger.host in str(locked) for locked in head.view().locked))
    with pytest.raises(Locked, match="has another join code"):
        await find_door(Endpoint((stranger.host,), stranger.port), head.machines.credentials, by_hand=True)
    assert STRANGER not in {node.name for node in head.view().nodes}


async def nothing_is_read_on_the_way(head: Head, toy: Path, anna: Machine) -> None:
    """S2: weights are fetched and a conversation is had, and neither is in what travelled."""
    with capturing() as capture:
        await head.load(str(toy), by_hand("anna=0:3,berta=3:6"))
        assert await ask(head, PROMPT) == right_answer(toy, PROMPT)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
            plain.sendto(MARKER, (anna.address, 9))
        await until(lambda: capture.has(MARKER))
    weights = (toy / "model.safetensors").read_bytes()
    assert len(capture.data) > len(weights) / 2, "the weights travelled"
    places = range(len(weights) // 4, len(weights) - 64, 997)
    assert not [at for at in places if capture.has(weights[at : at + 24]) and len(set(weights[at : at + 24])) > 12]
    assert not capture.has(head.view().serving.ring.encode())
    ids = TextModel.open(toy).prompt_ids((Message("user", PROMPT),))
    assert not capture.has(bytes(ids[4:24])), "ids below 128 are a byte each"
    assert not capture.has(PROMPT.encode()[:16])


async def a_new_code_puts_the_others_out(
    head: Head, app: Settings, homes: dict[str, Settings], nodes: dict[str, Node]
) -> None:
    """They say why; one comes back with the new code while its node runs."""
    code = told(app, "join-code", "--rotate")
    await until(lambda: not living(head))
    await until(lambda: all(any("another join code" in line for line in nodes[name].lines) for name in MEMBERS))
    assert not living(head)
    for name in MEMBERS:
        told(homes[name], "join", code)
    await until(lambda: living(head) == set(MEMBERS))
    assert STRANGER not in living(head)


VPN = "10.99.0"  # of a second network, in which no machine is found by itself


async def over_a_vpn(folder: Path) -> None:
    """A node that only a VPN's address reaches is named by it, used by it, and shown with it."""
    toy = make_checksum_model(folder / "toy", layers=6, quiet_ids=(*QUIET, EOS))
    app = cluster_settings(folder / "app", host="0.0.0.0", name="studio")
    away = replace(app, home=str(folder / "anna"), name="anna")
    told(away, "join", told(app, "join-code"))
    with switch("anna") as network:
        network.forbid_multicast()
        machine = network.machines["anna"]
        _only_over_a_vpn(machine)
        with node_on(machine, away, away.name) as node:
            head = Head(app, (Endpoint((f"{VPN}.2",), node.port),))
            await head.start()
            try:
                await until(lambda: living(head) == {"anna"})
                await head.load(str(toy))
                assert await ask(head, PROMPT) == right_answer(toy, PROMPT)
                assert head.view().nodes[0].endpoint.addresses == (f"{VPN}.2", machine.address)
            finally:
                await head.stop()


def _only_over_a_vpn(machine: Machine) -> None:
    """The machine keeps its first address, at which this process does not reach it any more."""
    for command in (
        ("ip", "addr", "del", f"{OWN}/24", "dev", BRIDGE),
        ("ip", "addr", "add", f"{VPN}.1/24", "dev", BRIDGE),
        (*machine.within, "ip", "addr", "add", f"{VPN}.2/24", "dev", "eth0"),
    ):
        subprocess.run(command, check=True)
