"""What the doctor finds: this machine, its devices measured, ports, multicast, the running app."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from together.checkout import own_version
from together.cluster.claims import SharedOut, shared_out
from together.cluster.discovery import Discovery, Hint
from together.cluster.identity import PORTS, machine_id, node_name, own_addresses, port_blocks
from together.cluster.profiling import Profiler, default_backend, find_devices
from together.cluster_types import Device, DeviceProfile, Endpoint, KeptChoices, MeasureOrder, NodeStatus
from together.desktop.app_status import AppNote, AppStatus
from together.desktop.bench.shapes import SHAPES
from together.desktop.client import RunningApp, find_running
from together.errors import AppError, TogetherError
from together.jsonfile import recall_json
from together.models.folder import read_bytes
from together.models.manifest import CONFIG
from together.models.spec import read_shape
from together.planning.cluster_file import parse_cluster
from together.planning.problem import Link, Problem
from together.planning.request import parse_dtype
from together.ring import rpc, wire
from together.settings import Settings
from together.types import Dtype, LayerRange, StagePlan, Threads
from together.weights.find import BUNDLED
from together.weights.store import local_name
from together.wording import reason_of

USUAL_SHAPE = "llama-3.2-1b"
HEAR_WITHIN = 5.0  # seconds for a record of our own to come back
ASK_WITHIN = 10.0  # seconds for nvidia-smi and the like
LIBRARIES = ("torch", "transformers", "mlx", "mlx-lm", "numpy", "grpcio", "gradio", "huggingface-hub")


@dataclass(frozen=True, slots=True)
class Nvidia:
    """An NVIDIA driver that answers, and its GPUs."""

    gpus: tuple[str, ...]
    driver: str  # "580.95.05"


@dataclass(frozen=True, slots=True)
class MeasuredShape:
    """The model, and its config.json, whose shape devices are measured at."""

    model: str
    layers: int
    dtype: Dtype
    config: bytes


@dataclass(frozen=True, slots=True)
class Measured:
    """A device's profile, or why there is none."""

    device: str  # its key
    profile: DeviceProfile | None = None
    trouble: str = ""
    busy: float = 0.0  # the share of all processors that other programs used meanwhile, if enough to disturb


@dataclass(frozen=True, slots=True)
class Disk:
    """Where the app keeps models."""

    folder: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Ports:
    """What the app would listen on; `nodes` is the first free block, None where all are taken."""

    host: str
    page: int
    page_is_free: bool
    nodes: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Multicast:
    """Whether a record of our own came back, on the addresses that the app uses."""

    heard: bool
    network: bool  # of all interfaces; else of loopback alone
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class RingStage:
    """A stage of the ring that serves; `ms` is its time for a token, 0 where that is not known."""

    place: str  # as in links: a node, or one of its devices
    layers: LayerRange
    ms: float
    threads: Threads | None = None  # that its steps get; None: it does not say


@dataclass(frozen=True, slots=True)
class App:
    """The app that runs here; `ring` is empty where no model is loaded, `place` is the head's in links."""

    url: str
    nodes: tuple[NodeStatus, ...] = ()
    links: tuple[Link, ...] = ()
    ring: tuple[RingStage, ...] = ()
    place: str = ""
    trouble: str = ""
    notes: tuple[AppNote, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that the checks look at."""

    version: str
    system: str  # "Linux", "Darwin", "Windows"
    processor: str  # "x86_64", "arm64", …, as this Python sees it
    emulated: bool  # the machine's own is another one
    libraries: dict[str, str]  # name → version, of those installed
    backend: str  # "" where none can be used
    backend_trouble: str
    nvidia: Nvidia | None
    devices: tuple[Device, ...]
    memory: SharedOut
    busy_percent: float  # of the processors, before anything was measured
    shape: MeasuredShape
    measured: tuple[Measured, ...]
    disk: Disk
    ports: Ports
    multicast: Multicast
    app: App | None
    kernels: tuple[KeptChoices, ...] = ()  # of this machine's builds, the newest first


def facts_json(facts: Facts) -> dict[str, Any]:
    """Fields by name; the shape without its configuration, layers as `0:8`, of a node only its health."""
    data = asdict(facts)
    del data["shape"]["config"]
    if facts.app is not None:
        keys = ("name", "state", "cause", "version")
        data["app"]["nodes"] = [{key: node[key] for key in keys} for node in data["app"]["nodes"]]
        data["app"]["ring"] = [asdict(stage) | {"layers": str(stage.layers)} for stage in facts.app.ring]
    return data


def shape_of(folder: Path | None, settings: Settings) -> MeasuredShape:
    """The model in `folder`, or a well-known shape. Raises BadSetting, UnsupportedModel or BrokenModel."""
    if folder is None:
        dtype = parse_dtype(settings.dtype or "bf16")
        shape = SHAPES[USUAL_SHAPE]
        return MeasuredShape(USUAL_SHAPE, shape.layers, dtype, json.dumps(shape.config(dtype)).encode())
    spec = read_shape(folder)
    usual = "fp32" if folder.resolve() == BUNDLED else spec.dtype  # as the app would load it
    name = local_name(folder, settings.home_path)
    return MeasuredShape(name, spec.layers, parse_dtype(settings.dtype or usual), read_bytes(folder, CONFIG))


Note = Callable[[str], None]  # gets what goes on


async def gather(settings: Settings, shape: MeasuredShape, note: Note) -> Facts:
    """Takes seconds. What cannot be found out is a fact as well. Raises AppError where the app's folder cannot be."""
    home = settings.home_path
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AppError(
            "the app cannot use its folder {home} ({why}); set TOGETHER_HOME to another one",
            home=str(home),
            why=reason_of(error),
        ) from None
    running = await asyncio.to_thread(find_running, home)
    busy = await asyncio.to_thread(psutil.cpu_percent, 0.5)
    backend, devices, trouble = await _devices(settings)
    disk = shutil.disk_usage(home)
    measured = await _measure(settings, shape, devices, note, anew=running is None)
    note("listening to the network")
    multicast = await hear_ourselves(settings)
    note("asking the app that runs here, which measures its links")
    app = await asyncio.to_thread(look_at, running) if running else None
    return Facts(
        version=own_version(),
        system=platform.system(),
        processor=platform.machine(),
        emulated=await asyncio.to_thread(is_emulated),
        libraries={"Python": platform.python_version()} | _libraries(),
        backend=backend,
        backend_trouble=trouble,
        nvidia=await asyncio.to_thread(find_nvidia),
        devices=devices,
        memory=await asyncio.to_thread(shared_out, settings),
        busy_percent=busy,
        shape=shape,
        measured=measured,
        disk=Disk(str(home), disk.total, disk.free),
        ports=find_ports(settings),
        multicast=multicast,
        app=app,
        kernels=kept_choices(home),
    )


# --- this machine -----------------------------------------------------------------------------------------------------


async def _devices(settings: Settings) -> tuple[str, tuple[Device, ...], str]:
    """The backend, its devices, and what is wrong with it."""
    backend = settings.backend
    try:
        backend = backend or default_backend()
        return backend, await find_devices(backend, settings.home_path), ""
    except (TogetherError, TimeoutError) as error:
        return backend, (), str(error) or f"{backend} does not answer"


async def _measure(
    settings: Settings, shape: MeasuredShape, devices: tuple[Device, ...], note: Note, *, anew: bool
) -> tuple[Measured, ...]:
    """Each device; while an app runs, the figures it uses, as measuring would disturb both."""
    home, found = settings.home_path, []
    profiler = Profiler(node_name(settings), machine_id(home), home, devices)
    for device in devices:
        note(f"measuring {device.key} with layers of {shape.model}")
        order = MeasureOrder(device.backend, device.name, shape.dtype, shape.config)
        try:
            finding = await profiler.find(order, anew=anew)
            found.append(Measured(device.key, finding.profile, busy=finding.busy if finding.disturbed else 0.0))
        except TogetherError as error:
            found.append(Measured(device.key, trouble=str(error)))
    return tuple(found)


def kept_choices(home: Path) -> tuple[KeptChoices, ...]:
    """Which kernels loaded models compute with; nothing before the first load that tried any."""
    files = sorted((home / "kernels").glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    found = (recall_json(file, KeptChoices) for file in files)
    return tuple(choices for choices in found if choices is not None)


def is_emulated() -> bool:
    """Whether this Python's instructions are another processor's: Rosetta on macOS, x86 on Windows for ARM."""
    if platform.system() == "Darwin":
        return _output("sysctl", "-in", "sysctl.proc_translated").strip() == "1"
    if platform.system() == "Windows":
        arm = os.environ.get("PROCESSOR_IDENTIFIER", "").upper().startswith("ARM")
        return arm and "ARM" not in platform.machine().upper()
    return False


def find_nvidia() -> Nvidia | None:
    kernel = ""
    with suppress(OSError):
        kernel = Path("/proc/driver/nvidia/version").read_text(errors="replace")
    return nvidia_of(_output("nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"), kernel)


def nvidia_of(listed: str, kernel: str) -> Nvidia | None:
    """From nvidia-smi's lines, as `580.95.05, NVIDIA H200`, else from the kernel driver's version file.

    None where no driver answers.
    """
    gpus = re.findall(r"^(\d+\.[\d.]+), *(.+?) *$", listed, re.MULTILINE)
    if gpus:
        return Nvidia(tuple(name for _, name in gpus), gpus[0][0])
    loaded = re.search(r" (\d{3,}\.[\d.]+)", kernel)
    return Nvidia((), loaded.group(1)) if loaded else None


def _output(*command: str) -> str:
    """A tool's output; empty where it is missing or fails."""
    try:
        answer = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_WITHIN, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.decode(errors="replace")


def _libraries() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


# --- the network ------------------------------------------------------------------------------------------------------


def find_ports(settings: Settings) -> Ports:
    host, page = settings.host, settings.port
    blocks = ((port, port + PORTS - 1) for port in port_blocks(settings.node_port) if rpc.is_free(host, port))
    return Ports(host, page, page == 0 or rpc.is_free(host, page), next(blocks, None))


async def hear_ourselves(settings: Settings, seconds: float = HEAR_WITHIN) -> Multicast:
    """Advertise as nodes do, in a cluster of its own, and listen for it."""
    own = replace(settings, cluster=f"doctor-{secrets.token_hex(8)}")
    heard, trouble = asyncio.Event(), ""
    speaker, listener = Discovery(own, lambda: None), Discovery(own, heard.set)
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
    nodes, notes = tuple[NodeStatus, ...](), tuple[AppNote, ...]()
    try:
        status = running.status()
        nodes, notes = status.nodes, status.notes
        if not nodes:
            return App(running.url, notes=notes)
        problem = parse_cluster(json.dumps(running.ask("cluster", {})))
    except TogetherError as error:
        return App(running.url, nodes, trouble=str(error), notes=notes)
    return App(running.url, nodes, problem.links, ring_of(status, problem), problem.head or "", notes=notes)


def ring_of(status: AppStatus, problem: Problem) -> tuple[RingStage, ...]:
    """The stages of the app's plan, by the names that links have, with what a token takes in each."""
    names, known = {node.id: node.name for node in status.nodes}, {node.name: node for node in problem.nodes}
    loaded = ((node.id, stage) for node in status.nodes for stage in node.stages if stage.ring == status.serving.ring)
    threads = {(node, stage.layers): stage.threads for node, stage in loaded}

    def ring_stage(stage: StagePlan) -> RingStage:
        name = names.get(stage.node, stage.node)
        for place in (name, f"{name}/{stage.device}"):
            if place in known:
                ms = problem.stage_ms(known[place], stage.layers)
                return RingStage(place, stage.layers, ms, threads.get((stage.node, stage.layers)))
        return RingStage(name, stage.layers, 0.0)

    return tuple(map(ring_stage, status.serving.plan.stages if status.serving.plan else ()))
