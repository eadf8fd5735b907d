"""What a node's machine does beside our work: its free memory, its battery, and what connects it. Read cheaply."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from together.cluster.pressure import PressureGauge
from together.cluster_types import LinkKind, MachineLife

BATTERY_EVERY = 10.0  # seconds
STEP = 5  # percent: a status that changes is sent to every page
PORTS_WITHIN = 5.0  # seconds for macOS's list of its ports
NETWORKS = Path("/sys/class/net")
_WIRELESS, _WIRED = ("wi-fi", "wifi", "wlan", "wireless"), ("ethernet", "lan")  # as Windows and macOS begin their names


@dataclass(slots=True)
class LifeGauge:
    """`read` it at every heartbeat."""

    clock: Callable[[], float] = time.monotonic
    pressure: PressureGauge = field(default_factory=PressureGauge)
    _battery: int | None = None
    _looked: float | None = None  # when for the battery
    _addresses: tuple[str, ...] | None = None  # that `_link` is of
    _link: LinkKind = LinkKind.UNKNOWN

    async def read(self, addresses: tuple[str, ...]) -> MachineLife:
        """`addresses` are those that the node listens at."""
        now = self.clock()
        if self._looked is None or now - self._looked >= BATTERY_EVERY:
            self._looked, self._battery = now, battery_left()
        if addresses != self._addresses:
            self._addresses, self._link = addresses, await asyncio.to_thread(link_kind, addresses)
        return MachineLife(self.pressure.read(), self._battery, self._link)


def battery_left() -> int | None:
    """Percent, while the machine runs on it; None where it does not, has none, or the system does not say."""
    read = getattr(psutil, "sensors_battery", None)
    try:
        battery = read() if read is not None else None
    except (OSError, RuntimeError, ValueError, psutil.Error):  # NotImplementedError among them
        return None
    if battery is None or battery.power_plugged is not False:
        return None
    left: int = round(min(max(battery.percent, 0), 100) / STEP) * STEP
    return left


def link_kind(addresses: Collection[str]) -> LinkKind:
    """A cable where one of the interfaces with these addresses has one: others take the fastest way."""
    kinds = {_kind(interface) for interface in _interfaces(addresses)}
    return next((kind for kind in (LinkKind.CABLE, LinkKind.WIFI) if kind in kinds), LinkKind.UNKNOWN)


def _interfaces(addresses: Collection[str]) -> Iterable[str]:
    try:
        known = psutil.net_if_addrs()
    except (OSError, psutil.Error):
        return ()
    families = (socket.AF_INET, socket.AF_INET6)
    return [
        name
        for name, found in known.items()
        if any(each.family in families and each.address.partition("%")[0] in addresses for each in found)
    ]


def _kind(interface: str) -> LinkKind:
    if sys.platform == "linux":
        return _linux_kind(NETWORKS / interface)
    return _named_kind(_macos_port(interface) if sys.platform == "darwin" else interface)


def _linux_kind(interface: Path) -> LinkKind:
    """Bridges, tunnels and loopback have no device, and say nothing."""
    if (interface / "wireless").exists() or (interface / "phy80211").exists():
        return LinkKind.WIFI
    return LinkKind.CABLE if (interface / "device").exists() else LinkKind.UNKNOWN


def _named_kind(name: str) -> LinkKind:
    folded = name.casefold()
    if folded.startswith(_WIRELESS):
        return LinkKind.WIFI
    return LinkKind.CABLE if folded.startswith(_WIRED) or "thunderbolt" in folded else LinkKind.UNKNOWN


def _macos_port(interface: str) -> str:
    """`en0` → `Wi-Fi`; empty where the system does not say."""
    program = shutil.which("networksetup")
    if program is None:
        return ""
    try:
        said = subprocess.run(
            [program, "-listallhardwareports"], capture_output=True, timeout=PORTS_WITHIN, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return port_of(interface, said.decode(errors="replace"))


def port_of(interface: str, ports: str) -> str:
    """In what macOS's `networksetup -listallhardwareports` prints."""
    name = ""
    for line in ports.splitlines():
        key, _, value = line.partition(": ")
        name = value if key == "Hardware Port" else name
        if key == "Device" and value.strip() == interface:
            return name
    return ""
