"""Which devices this machine has, asked in a short-lived child process so that the node imports no framework.

`python -m together.cluster.probe torch` prints them as JSON. Knows no node and no plan.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import platform
import sys
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from filelock import AsyncFileLock

from backends.base import open_backend
from together.cluster_types import Device
from together.errors import AppError, BadSetting
from together.jsonfile import decode_json, recall_json, write_json
from together.processes import spawn

PATIENCE = 120.0  # seconds for a framework to import and look


@dataclass(frozen=True, slots=True)
class _Probed:
    """A backend's answer as it is kept, and the build that gave it."""

    build: str
    devices: tuple[Device, ...]


def default_backend() -> str:
    """MLX on Apple Silicon, PyTorch elsewhere; the other one where only that is installed."""
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    for name, module in (("mlx", "mlx"), ("torch", "torch"))[:: 1 if apple else -1]:
        if importlib.util.find_spec(module):
            return name
    raise AppError("neither PyTorch nor MLX is installed; start with python3 launch.py, which installs the right one")


async def find_devices(backend: str, home: Path) -> tuple[Device, ...]:
    """The devices of `backend`, best first. Raises BadSetting with the child's last words.

    Nodes that start together ask once. A machine whose only device is its CPU is asked again only after an update,
    since psutil knows its memory; an accelerator's free memory is asked for every time. `home` exists.
    """
    file = home / f"devices-{backend}.json"
    async with AsyncFileLock(home / "devices.lock"):
        known = await asyncio.to_thread(_recall, file, backend)
        if known:
            return known
        devices = await _ask(backend)
        await asyncio.to_thread(write_json, file, _Probed(_build(backend), devices))
        return devices


async def _ask(backend: str) -> tuple[Device, ...]:
    process = await spawn("together.cluster.probe", backend)
    async with asyncio.timeout(PATIENCE):
        output, errors = await process.communicate()
    try:
        found = decode_json(output.splitlines()[-1], tuple[Device, ...])
        return tuple(sorted(found, key=lambda device: device.name == "cpu"))
    except (ValueError, IndexError):
        said = errors.decode(errors="replace").strip().splitlines()
        raise BadSetting(said[-1] if said else f"backend {backend} found no device") from None


def _build(backend: str) -> str:
    """What the answer depends on: the framework's build and the NVIDIA driver."""
    try:
        framework = version(backend)
    except PackageNotFoundError:
        framework = ""
    driver = Path("/proc/driver/nvidia/version")
    return f"{framework} {driver.read_text() if driver.is_file() else ''}"


def _recall(file: Path, backend: str) -> tuple[Device, ...]:
    """The stored answer with today's memory, or nothing where it is of another build or may have changed."""
    stored = recall_json(file, _Probed)
    if stored is None or stored.build != _build(backend) or any(device.name != "cpu" for device in stored.devices):
        return ()
    memory = psutil.virtual_memory()
    return tuple(replace(device, total_bytes=memory.total, free_bytes=memory.available) for device in stored.devices)


def main() -> None:
    try:
        devices = open_backend(sys.argv[1]).probe()
    except BadSetting as error:
        sys.exit(str(error))
    print(json.dumps([asdict(device) for device in devices]))


if __name__ == "__main__":
    main()
