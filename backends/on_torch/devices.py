"""The devices that torch can use, told without importing it where its build has no code for others than the CPU."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import psutil

from backends.on_torch.processor import processor
from together.cluster_types import Device

CPU_BUILD = "+cpu"  # how the version of such a build ends


def at_sight() -> tuple[Device, ...]:
    """The CPU alone, where torch is built for nothing else; nothing where torch itself has to be asked."""
    try:
        built = version("torch")
    except PackageNotFoundError:
        return ()
    return (cpu(),) if built.endswith(CPU_BUILD) else ()


def cpu() -> Device:
    memory = psutil.virtual_memory()
    return Device("torch", "cpu", processor(), memory.total, memory.available)
