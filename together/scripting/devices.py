"""The devices of this machine as places for partitions: which are meant, what they share, how fast they are.

Knows no split.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from together.cluster.identity import machine_id, node_name
from together.cluster.probe import default_backend, find_devices
from together.cluster.profiling import Profiler
from together.errors import BadPlan
from together.head.model import Opened
from together.settings import Settings
from together.types import Device, DeviceProfile, MeasureOrder

MEMORY = "memory"  # the pool of everything that lives in this machine's main memory
UNIFIED = ("mps", "gpu")  # Apple's GPU, in torch's and MLX's words: it shares the CPU's memory
ALSO = {"cuda": "cuda:0", "mps": "gpu", "gpu": "mps"}  # other words for a device, where its own is not there


@dataclass(frozen=True, slots=True)
class Seat:
    """A place for one partition; seats of one pool share its memory."""

    name: str
    device: Device

    @property
    def pool(self) -> str:
        return MEMORY if self.device.name in ("cpu", *UNIFIED) else self.device.name


async def take_seats(names: Sequence[str], partitions: int, settings: Settings) -> tuple[Seat, ...]:
    """One per named device, in this order; without names this machine's own choice, `partitions` of them or all.

    Raises BadPlan for a device that is not here.
    """
    settings.home_path.mkdir(parents=True, exist_ok=True)
    backend = settings.backend or await asyncio.to_thread(default_backend)
    found = await find_devices(backend, settings.home_path)
    return choose_seats(names, partitions, found)


def choose_seats(names: Sequence[str], partitions: int, found: Sequence[Device]) -> tuple[Seat, ...]:
    """As `take_seats`, among the devices that were found. A device that has several seats numbers them."""
    chosen = [_named(name, found) for name in names] or _own_choice(found, partitions)
    times = Counter(device.name for device in chosen)
    return tuple(
        Seat(device.name if times[device.name] == 1 else f"{device.name} (partition {index})", device)
        for index, device in enumerate(chosen)
    )


def _named(name: str, found: Sequence[Device]) -> Device:
    for word in (name, ALSO.get(name)):
        for device in found:
            if device.name == word:
                return device
    names = ", ".join(device.name for device in found)
    raise BadPlan(f"target_devices: there is no device {name!r} here for {found[0].backend}; choose among {names}")


def _own_choice(found: Sequence[Device], partitions: int) -> list[Device]:
    """The best ones, several times where there are not enough; the CPU not beside a GPU with the same memory."""
    unified = any(device.name in UNIFIED for device in found)
    useful = [device for device in found if not (unified and device.name == "cpu")]
    return [useful[index % len(useful)] for index in range(partitions or len(useful))]


async def measure_seats(seats: Sequence[Seat], opened: Opened, settings: Settings) -> dict[str, DeviceProfile]:
    """What each seat's device does at the model's shape, by the seat's name; seconds where it is not known yet."""
    devices = {seat.device.name: seat.device for seat in seats}
    machine = await asyncio.to_thread(machine_id, settings.home_path)
    profiler = Profiler(node_name(settings), machine, settings.home_path, tuple(devices.values()))
    profiles = {}
    for device in devices.values():
        order = MeasureOrder(device.backend, device.name, opened.dtype, opened.config)
        profiles[device.name] = await profiler.measure(order)
    return {seat.name: profiles[seat.device.name] for seat in seats}
