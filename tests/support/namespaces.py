"""Networks of machines inside this one, by Linux's network namespaces: several addresses, links that can be cut.

A scenario, a coroutine function `module:name` that takes a folder, runs in a process of its own: there it is root of a
network that nobody else sees. Knows no scenario. Where the system does not permit it, `permitted` says so.

    run_scenario("tests.reliability.networks:a_cut", tmp_path)
    with switch() as network: …                      # in the scenario
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.support.cluster import CHECKOUT
from tests.support.patience import PATIENCE

NEW = ("unshare", "--user", "--map-root-user", "--net")
BRIDGE = "switch"
NETWORK = "10.77.0"  # inside; of no consequence outside
OWN = f"{NETWORK}.1"


@functools.cache
def permitted() -> bool:
    """Whether this system lets us make networks."""
    if sys.platform != "linux" or not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return False
    trial = [*NEW, "ip", "link", "add", BRIDGE, "type", "bridge"]
    return subprocess.run(trial, capture_output=True, check=False).returncode == 0


@functools.cache
def may_slow() -> bool:
    """Whether it also lets us make them slow."""
    trial = [*NEW, "sh", "-c", f"ip link add {BRIDGE} type bridge && tc {' '.join(_slow(1))}"]
    return permitted() and subprocess.run(trial, capture_output=True, check=False).returncode == 0


def _slow(megabits: int) -> tuple[str, ...]:
    rate = f"{megabits}mbit"
    return ("qdisc", "add", "dev", BRIDGE, "root", "tbf", "rate", rate, "burst", "64k", "latency", "99ms")


def run_scenario(scenario: str, folder: Path, timeout: float = 2 * PATIENCE) -> str:
    """Run it in a new network; what it printed. Fails with what it said if it failed."""
    command = [*NEW, sys.executable, "-m", "tests.support.namespaces", scenario, str(folder)]
    process = subprocess.Popen(
        command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
    )
    try:
        said, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        raise AssertionError(f"{scenario} did not end within {timeout:.0f} s: {said[-5000:]}") from None
    assert process.returncode == 0, said[-5000:]
    return said


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine of a network; `within` is the command that runs another command on it."""

    address: str
    port: str  # its end at the switch
    holder: subprocess.Popen[bytes]

    @property
    def within(self) -> tuple[str, ...]:
        return ("nsenter", "--target", str(self.holder.pid), "--net")

    def blind_to(self, folder: Path) -> tuple[str, ...]:
        """As `within`, where the folder, which is on this machine's disk, looks empty."""
        hide = f'mount -t tmpfs none "{folder}" && exec "$@"'
        return (*self.within, "unshare", "--mount", "sh", "-c", hide, "sh")


@dataclass(slots=True)
class Switch:
    """A switch that this process and its machines are connected to."""

    machines: dict[str, Machine] = field(default_factory=dict)

    def cut(self, *names: str) -> None:
        """These do not reach one another any more, silently; all others they do reach."""
        for name in names:
            _ip("link", "set", self.machines[name].port, "type", "bridge_slave", "isolated", "on")

    def unplug(self, name: str) -> None:
        """Nobody reaches it."""
        _ip("link", "set", self.machines[name].port, "down")

    def readdress(self, name: str, number: int) -> None:
        """The machine gets another address: the old one is gone before the new one is there."""
        machine = self.machines[name]
        moved = replace(machine, address=f"{NETWORK}.{number}")
        _run(*machine.within, "ip", "addr", "del", f"{machine.address}/24", "dev", "eth0")
        _run(*machine.within, "ip", "addr", "add", f"{moved.address}/24", "dev", "eth0")
        self.machines[name] = moved

    def readdress_self(self, old: str, number: int) -> str:
        """The same for this process's own network; its new address."""
        moved = f"{NETWORK}.{number}"
        _ip("addr", "del", f"{old}/24", "dev", BRIDGE)
        _ip("addr", "add", f"{moved}/24", "dev", BRIDGE)
        return moved

    def slow(self, megabits: int) -> None:
        """What this process sends travels at so many Mbit/s."""
        _run("tc", *_slow(megabits))

    def forbid_multicast(self) -> None:
        """As many a router does: machines must be named."""
        _ip("link", "set", BRIDGE, "multicast", "off")
        for machine in self.machines.values():
            _run(*machine.within, "ip", "link", "set", "eth0", "multicast", "off")

    def heal(self) -> None:
        for machine in self.machines.values():
            _ip("link", "set", machine.port, "type", "bridge_slave", "isolated", "off")
            _ip("link", "set", machine.port, "up")

    def add(self, name: str, holder: subprocess.Popen[bytes]) -> Machine:
        """Connect a process's network."""
        number = len(self.machines) + 2
        machine = Machine(f"{NETWORK}.{number}", f"port{number}", holder)
        _ip("link", "add", machine.port, "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
        _ip("link", "set", machine.port, "master", BRIDGE, "up")
        for command in (("addr", "add", f"{machine.address}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
            _run(*machine.within, "ip", *command)
        _run(*machine.within, "ip", "link", "set", "lo", "up")
        self.machines[name] = machine
        return machine


@contextmanager
def switch(*names: str) -> Iterator[Switch]:
    """A network of this process, at OWN, and one machine per name. Only inside a scenario."""
    _ip("link", "set", "lo", "up")
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("addr", "add", f"{OWN}/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    network = Switch()
    with ExitStack() as stack:
        for name in names:
            network.add(name, stack.enter_context(_held_network()))
        yield network


@contextmanager
def _held_network() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing but have a network of its own; it ends with us."""
    with subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as holder:
        own, deadline = os.readlink("/proc/self/ns/net"), time.monotonic() + PATIENCE
        while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
            assert time.monotonic() < deadline, "no new network came about"
            time.sleep(0.01)
        yield holder  # leaving closes its input, and it ends


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


def main() -> None:
    """Entry point of a scenario's process."""
    module, _, name = sys.argv[1].partition(":")
    asyncio.run(getattr(importlib.import_module(module), name)(Path(sys.argv[2])))


if __name__ == "__main__":
    main()
