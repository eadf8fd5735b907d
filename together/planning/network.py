"""The network of a cluster file: what a name like `wifi` stands for, and what a hop over it takes. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from together.errors import BadSetting
from together.planning.fields import Fields, near_names, shown
from together.planning.units import GBIT_PER_S, MS

# What a hop costs before any cable: encoding, gRPC and two event loops. `bench hop` measures 0.39 ms on one machine.
OWN_HOP_MS = 0.4


@dataclass(frozen=True, slots=True)
class Wire:
    """How a machine is connected: gigabits per second, and ms of one way between two machines that both have it."""

    gbit_per_s: float
    ms: float


WIRED_MS = 0.15
# Rates of wires: IEEE 802.3, and Intel's "Thunderbolt networking". Latencies, and all of Wi-Fi, are what is usual in a
# home with one access point: no maker can publish them.
WIRES = {
    "wifi": Wire(0.3, 4.0),
    "100 Mbit ethernet": Wire(0.1, WIRED_MS),
    "gigabit ethernet": Wire(1.0, WIRED_MS),
    "2.5 Gbit ethernet": Wire(2.5, WIRED_MS),
    "10 Gbit ethernet": Wire(10.0, WIRED_MS),
    "thunderbolt": Wire(10.0, 0.1),
}
_SAME = {"wlan": "wifi", "wi-fi": "wifi", "gigabit": "gigabit ethernet", "ethernet": "gigabit ethernet"}
USUAL = "gigabit ethernet"


def hop_ms(a: Wire, b: Wire, size: float) -> float:
    """Milliseconds of one way for `size` bytes: the slower end's rate, and half of each end's latency."""
    sending = 8 * size / (min(a.gbit_per_s, b.gbit_per_s) * 1e6)
    return OWN_HOP_MS + (a.ms + b.ms) / 2 + sending


@dataclass(frozen=True, slots=True)
class Way:
    """What a file says of the way between two machines: its ms, or what it runs over; neither: there is none."""

    a: str
    b: str
    ms: float | None = None
    wire: Wire | None = None

    def hop_ms(self, size: float) -> float | None:
        return self.ms if self.wire is None else hop_ms(self.wire, self.wire, size)


def wire_of(path: str, value: object) -> Wire:
    """A name, a rate as `2.5 Gbit/s`, or an object with `bandwidth` and `latency`. Raises BadSetting."""
    if isinstance(value, dict):
        found = Fields(path, value, ("bandwidth", "latency"))
        return Wire(found.more_than_zero("bandwidth", GBIT_PER_S), found.number("latency", WIRED_MS, MS))
    name = " ".join(value.casefold().split()) if isinstance(value, str) else ""
    known = {title.casefold(): wire for title, wire in WIRES.items()}
    if wire := known.get(_SAME.get(name, name)):
        return wire
    if not name or (rate := GBIT_PER_S.read(name.removesuffix(" ethernet"))) is None or not name[0].isdigit():
        names = tuple(WIRES)
        near = near_names(name, names, 2) or names
        raise BadSetting(
            "{path}: there is no network {value}; the nearest: {near}; or give its rate, as {example}",
            path=path,
            value=shown(value),
            near=near,
            example=f'"{GBIT_PER_S.example}"',
        )
    return Wire(Fields("", {path: rate}, (path,)).more_than_zero(path, GBIT_PER_S), WIRED_MS)
