"""Three machines with folders and addresses of their own and a fourth that is a stranger; run by test_hosts.py."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.cluster import (
    CHECKOUT,
    Node,
    ask,
    by_hand,
    cluster_settings,
    environment,
    right_answer,
    start_node,
    until,
)
from tests.support.namespaces import BRIDGE, Machine, switch
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


@dataclass(slots=True)
class Capture:
    """All that travels over the switch."""

    data: bytearray = field(default_factory=bytearray)
    _over: threading.Event = field(default_factory=threading.Event)

    def listen(self, there: socket.socket) -> None:
        while not self._over.is_set():
            try:
                self.data += there.recv(2**16)[14:]  # without Ethernet's header
            except TimeoutError:
                continue

    def has(self, text: bytes) -> bool:
        return text in self.data


@contextmanager
def capturing() -> Iterator[Capture]:
    capture = Capture()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERY_FRAME)) as there:
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**24)
        there.bind((BRIDGE, 0))
        there.settimeout(0.2)
        thread = threading.Thread(target=capture.listen, args=(there,))
        thread.start()
        try:
            yield capture
        finally:
            capture._over.set()
            thread.join()


@contextmanager
def node_on(machine: Machine, settings: Settings) -> Iterator[Node]:
    node = start_node(settings, within=machine.within)
    node.host = machine.address
    try:
        node.wait_ready()
        yield node
    finally:
        node.stop()


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
        nodes = {name: stack.enter_context(node_on(machine, homes[name])) for name, machine in network.machines.items()}
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
