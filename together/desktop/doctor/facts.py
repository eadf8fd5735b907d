"""Gathers what the doctor judges: this machine, its devices measured, ports, multicast, the running app.

Knows nothing of right and wrong.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from together import __version__
from together.cluster.agent import PORTS
from together.cluster.discovery import Discovery, Hint
from together.cluster.identity import machine_id, node_name, own_addresses
from together.cluster.local import shared_memory
from together.cluster.node import BLOCKS
from together.cluster.profiling import Profiler, default_backend, find_devices
from together.cluster_types import Device, Endpoint, MeasureOrder
from together.desktop.bench.shapes import SHAPES
from together.desktop.client import RunningApp, find_running
from together.desktop.doctor.checks import (
    App,
    Disk,
    Facts,
    Measured,
    MeasuredShape,
    Multicast,
    Neighbour,
    NodeRoute,
    Nvidia,
    Ports,
    RingStage,
)
from together.errors import AppError, BadSetting, TogetherError
from together.models.folder import read_bytes
from together.models.manifest import CONFIG
from together.models.spec import read_shape
from together.ring import wire
from together.settings import Settings, parse_bytes
from together.types import DTYPES, Dtype
from together.weights.find import BUNDLED
from together.weights.store import local_name

USUAL_SHAPE = "llama-3.2-1b"
HEAR_WITHIN = 5.0  # seconds for a record of our own to come back
ASK_WITHIN = 10.0  # seconds for nvidia-smi and the like
_LIBRARIES = ("torch", "transformers", "mlx", "mlx-lm", "numpy", "grpcio", "gradio", "huggingface-hub")


@dataclass(frozen=True, slots=True)
class DoctorSubject:
    """The shape that devices are measured at: a model's config.json."""

    model: str
    layers: int
    dtype: Dtype
    config: bytes


def subject_of(folder: Path | None, settings: Settings) -> DoctorSubject:
    """The model in `folder`, or a shape that people know. Raises BadSetting, UnsupportedModel or BrokenModel."""
    if folder is None:
        dtype = _dtype(settings.dtype, "bf16")
        shape = SHAPES[USUAL_SHAPE]
        return DoctorSubject(USUAL_SHAPE, shape.layers, dtype, json.dumps(shape.config(dtype)).encode())
    spec = read_shape(folder)
    usual: Dtype = "fp32" if folder.resolve() == BUNDLED else spec.dtype  # as the app would load it
    name = local_name(folder, settings.home_path)
    return DoctorSubject(name, spec.layers, _dtype(settings.dtype, usual), read_bytes(folder, CONFIG))


def _dtype(text: str, usual: Dtype) -> Dtype:
    for dtype in DTYPES:
        if dtype == (text or usual):
            return dtype
    raise BadSetting(f"there is no dtype {text!r}; choose one of {', '.join(DTYPES)}")


async def gather(settings: Settings, subject: DoctorSubject) -> Facts:
    """Takes seconds. What cannot be known is a fact as well. Raises AppError where the app could not keep anything."""
    home = settings.home_path
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or error
        raise AppError(f"the app cannot use its folder {home} ({why}); set TOGETHER_HOME to another one") from None
    running = await asyncio.to_thread(find_running, home)
    busy = await asyncio.to_thread(psutil.cpu_percent, 0.5)
    backend, devices, trouble = await _devices(settings)
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(home)
    return Facts(
        version=__version__,
        system=platform.system(),
        processor=platform.machine(),
        emulated=await asyncio.to_thread(is_emulated),
        libraries={"Python": platform.python_version()} | _libraries(),
        backend=backend,
        backend_trouble=trouble,
        nvidia=await asyncio.to_thread(find_nvidia),
        devices=devices,
        memory_total=memory.total,
        memory_free=memory.available,
        memory_usable=parse_bytes(settings.memory) if settings.memory else shared_memory(1),
        busy_percent=busy,
        shape=MeasuredShape(subject.model, subject.layers, subject.dtype),
        measured=await _measure(settings, subject, devices, anew=running is None),
        disk=Disk(str(home), disk.total, disk.free),
        ports=find_ports(settings),
        multicast=await hear_ourselves(settings),
        app=await asyncio.to_thread(look_at, running) if running else None,
    )


# --- this machine -----------------------------------------------------------------------------------------------------


async def _devices(settings: Settings) -> tuple[str, tuple[Device, ...], str]:
    """The backend, its devices, and what is wrong with it."""
    try:
        backend = settings.backend or default_backend()
    except TogetherError as error:
        return "", (), str(error)
    try:
        return backend, await find_devices(backend, settings.home_path), ""
    except (TogetherError, TimeoutError) as error:
        return backend, (), str(error) or f"{backend} does not answer"


async def _measure(
    settings: Settings, subject: DoctorSubject, devices: tuple[Device, ...], *, anew: bool
) -> tuple[Measured, ...]:
    """Each device; where an app runs, what it goes by: measuring would disturb it and be disturbed."""
    home = settings.home_path
    profiler = Profiler(node_name(settings), machine_id(home), home, devices)
    found = []
    for device in devices:
        order = MeasureOrder(device.backend, device.name, subject.dtype, subject.config)
        try:
            finding = await profiler.find(order, anew=anew)
            found.append(Measured(device.key, finding.profile, busy=finding.busy if finding.disturbed else 0.0))
        except TogetherError as error:
            found.append(Measured(device.key, trouble=str(error)))
    return tuple(found)


def is_emulated() -> bool:
    """Whether this Python's instructions are another processor's: Rosetta on macOS, x86 on Windows for ARM."""
    if platform.system() == "Darwin":
        return _output("sysctl", "-in", "sysctl.proc_translated").strip() == "1"
    if platform.system() == "Windows":
        arm = os.environ.get("PROCESSOR_IDENTIFIER", "").upper().startswith("ARM")
        return arm and "ARM" not in platform.machine().upper()
    return False


def find_nvidia() -> Nvidia | None:
    """None where no driver answers."""
    return nvidia_of(
        _output("nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"),
        _text(Path("/proc/driver/nvidia/version")),
    )


def nvidia_of(listed: str, kernel: str) -> Nvidia | None:
    """From nvidia-smi's lines, as `580.95.05, NVIDIA H200`, else from what the kernel's driver says of itself."""
    gpus = re.findall(r"^(\d+\.[\d.]+), *(.+?) *$", listed, re.MULTILINE)
    if gpus:
        return Nvidia(tuple(name for _, name in gpus), gpus[0][0])
    loaded = re.search(r" (\d{3,}\.[\d.]+)", kernel)
    return Nvidia((), loaded.group(1)) if loaded else None


def _output(*command: str) -> str:
    """What a tool says; nothing where it is missing or fails."""
    try:
        answer = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_WITHIN, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.decode(errors="replace")


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _libraries() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


# --- the network ------------------------------------------------------------------------------------------------------


def find_ports(settings: Settings) -> Ports:
    first = settings.node_port
    starts = range(first, min(first + BLOCKS * PORTS, 2**16 - PORTS), PORTS)
    free = next((port for port in starts if _is_free(settings.host, port)), None)
    nodes = (free, free + PORTS - 1) if free is not None else None
    page_is_free = settings.port == 0 or _is_free(settings.host, settings.port)
    return Ports(settings.host, settings.port, page_is_free, nodes)


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        if os.name == "posix":  # a port in TIME_WAIT is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


async def hear_ourselves(settings: Settings, seconds: float = HEAR_WITHIN) -> Multicast:
    """Advertise as nodes do, in a cluster of its own, and listen for it."""
    own = replace(settings, cluster=f"doctor-{secrets.token_hex(8)}")
    heard = asyncio.Event()
    speaker, listener = Discovery(own, lambda: None), Discovery(own, heard.set)
    trouble = ""
    try:
        addresses = own_addresses(settings.host)
        await listener.start()
        await speaker.start()
        async with asyncio.timeout(seconds):
            await speaker.advertise(Hint(own.cluster, own.cluster, Endpoint(addresses, own.node_port), wire.PROTOCOL))
            await heard.wait()
    except TimeoutError:
        trouble = f"no record of our own came back within {seconds:.0f} s"
    except (OSError, TogetherError) as error:
        trouble = str(error)
    finally:
        await asyncio.gather(speaker.close(), listener.close(), return_exceptions=True)
    return Multicast(heard.is_set(), settings.open_to_network, trouble)


# --- the running app --------------------------------------------------------------------------------------------------


def look_at(running: RunningApp) -> App:
    """The nodes and links that the app sees; it measures what it does not know."""
    app = App(running.url)
    try:
        status = running.status()
        nodes = tuple(Neighbour(n["name"], n["state"], n["cause"], n["version"]) for n in status["nodes"])
        app = replace(app, nodes=nodes)
        cluster = running.ask("cluster", {}) if nodes else {}
    except (TogetherError, KeyError, TypeError) as error:
        return replace(app, trouble=str(error))
    links = tuple(NodeRoute(link["a"], link["b"], link["ms"]) for link in cluster.get("links", ()))
    return replace(app, links=links, ring=ring_of(status, cluster), place=cluster.get("head") or "")


def ring_of(status: dict[str, Any], cluster: dict[str, Any]) -> tuple[RingStage, ...]:
    """The stages of the app's plan, by the names that links have, with what a token takes in each."""
    plan = status["serving"]["plan"]
    times = {node["name"]: node for node in cluster.get("nodes", ())}
    return tuple(_stage(stage, plan, status["nodes"], times) for stage in plan["stages"]) if plan else ()


def _stage(
    stage: dict[str, Any], plan: dict[str, Any], nodes: list[dict[str, Any]], times: dict[str, dict[str, Any]]
) -> RingStage:
    layers = stage["layers"]
    text = f"{layers['start']}:{layers['stop']}"
    name = next((node["name"] for node in nodes if node["id"] == stage["node"]), "")
    names = (name, f"{name} ({stage['node'][:4]})")
    known = [each for base in names for each in (base, f"{base}/{stage['device']}") if each in times]
    if not known:
        return RingStage(name or stage["node"], text, 0.0)
    time = times[known[0]]
    count = layers["stop"] - layers["start"]
    head = time["ms_per_head"] if layers["stop"] == plan["model"]["layers"] else 0.0
    return RingStage(known[0], text, time["ms_per_stage"] + count * time["ms_per_layer"] + head)
