"""What a node finds out about its machine and keeps on disk: its devices, their speeds, and its links."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import grpc.aio
import psutil
from filelock import AsyncFileLock

from backends.base import devices_at_sight
from together import __version__
from together.cluster.measure import REFUSED, Finding
from together.cluster.supervisor import COMPUTING, Witness, ending
from together.cluster_types import Blob, Device, DeviceProfile, LinkOrder, LinkSpeed, MeasureOrder
from together.errors import AppError, BadSetting, LoadFailed
from together.jsonfile import decode_json, recall_json, write_json
from together.processes import spawn
from together.ring import rpc, wire
from together.ring.doors import find_door
from together.sentences import template, verbatim
from together.trust.credentials import ALONE, Credentials

log = logging.getLogger(__name__)

PATIENCE = 120.0  # seconds for a child: a framework is imported, and measures
FORMAT = 4  # raise it when what is measured changes: older answers are forgotten
MOST_ASKED = 8  # measurements that wait: one takes seconds, and the machine makes one at a time
LARGEST_CONFIG = 2**20  # bytes
_LIBRARIES = {"torch": ("torch", "transformers"), "mlx": ("mlx", "mlx-lm"), "checksum": ("numpy",)}
_SHAPELESS = (  # what config.json says besides its shape; fine-tunes of one model differ in these
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "max_position_embeddings",
    "pad_token_id",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)


# --- devices ----------------------------------------------------------------------------------------------------------


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

    A framework that is built for CPUs alone is not asked. Of others, nodes that start together ask once. A machine
    whose only device is its CPU is asked again only after an update, since psutil knows its memory; an accelerator's
    free memory is asked for every time. `home` exists.
    """
    if seen := await asyncio.to_thread(devices_at_sight, backend):
        return seen
    file = home / f"devices-{backend}.json"
    async with AsyncFileLock(home / "devices.lock"):
        known = await asyncio.to_thread(_still_known, file, backend)
        if known:
            return known
        devices = await _probe(backend)
        await asyncio.to_thread(write_json, file, _Probed(_build(backend), devices))
        return devices


async def _probe(backend: str) -> tuple[Device, ...]:
    async with asyncio.timeout(PATIENCE), _child("devices", backend) as (process, _):
        output, said, _ = await _answer(process)
    try:
        found = decode_json(output, tuple[Device, ...])
    except ValueError:
        raise BadSetting(verbatim(said) or template("backend {backend} found no device", backend=backend)) from None
    return tuple(sorted(found, key=lambda device: device.name == "cpu"))


def _build(backend: str) -> str:
    """What the answer depends on."""
    return f"{_version(backend)} {_driver()}"


def _still_known(file: Path, backend: str) -> tuple[Device, ...]:
    """The stored answer with today's memory, or nothing where it is of another build or may have changed."""
    stored = recall_json(file, _Probed)
    if stored is None or stored.build != _build(backend) or any(device.name != "cpu" for device in stored.devices):
        return ()
    memory = psutil.virtual_memory()
    return tuple(replace(device, total_bytes=memory.total, free_bytes=memory.available) for device in stored.devices)


# --- speeds -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Profiler:
    """Measures this machine's `devices`. Errors name `node`; the nodes of one `machine` take turns."""

    node: str
    machine: str
    home: Path
    devices: tuple[Device, ...]
    patience: float = PATIENCE
    _asked: int = 0

    async def measure(self, order: MeasureOrder) -> DeviceProfile:
        """What is known, else measured now, which takes seconds; the child ends when this is cancelled.

        Raises BadSetting for an unknown device or a model that does not run here, LoadFailed where measuring failed.
        """
        return (await self.find(order)).profile

    async def find(self, order: MeasureOrder, *, anew: bool = False) -> Finding:
        """As `measure`, with how disturbed it was; `anew` measures again and keeps the better answer."""
        self._check(order)
        if self._asked >= MOST_ASKED:
            message = "node {name} has {count} measurements to make already; try again in a minute"
            raise LoadFailed(message, name=self.node, count=self._asked)
        self._asked += 1
        try:
            return await self._find(order, anew)
        finally:
            self._asked -= 1

    async def _find(self, order: MeasureOrder, anew: bool) -> Finding:
        key = profile_key(order, self.devices)
        known = None if anew else await asyncio.to_thread(_recall, self.home, key)
        if known is not None and known.lasts:
            return known
        async with self._turn():
            known = await asyncio.to_thread(_recall, self.home, key)  # another may have measured the same meanwhile
            if known is not None and known.lasts and not anew:
                return known
            found = better(await self._ask(order), known)
            await asyncio.to_thread(_keep, self.home, key, found)
            return found

    def _check(self, order: MeasureOrder) -> None:
        keys, device = tuple(device.key for device in self.devices), f"{order.backend}/{order.device}"
        if device not in keys:
            message = "node {name} has no device {device}; it has {known}"
            raise BadSetting(message, name=self.node, device=device, known=keys)
        if len(order.config) > LARGEST_CONFIG:
            message = "a config.json of {size} bytes is none; choose another model"
            raise BadSetting(message, size=len(order.config))

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One measurement at a time on this machine; where another user's lock is closed to us, in this home."""
        name = f"together-{self.machine}-measure.lock"
        try:
            lock = AsyncFileLock(Path(tempfile.gettempdir()) / name, mode=0o666)
            await lock.acquire()
        except OSError:
            lock = AsyncFileLock(self.home / name)
            await lock.acquire()
        try:
            yield
        finally:
            await lock.release()

    async def _ask(self, order: MeasureOrder) -> Finding:
        """The disk is measured where the app keeps its models."""
        with suppress(OSError):
            self.home.mkdir(parents=True, exist_ok=True)
        device = f"{order.backend}/{order.device}"
        try:
            async with asyncio.timeout(self.patience), _child("speeds", str(self.home)) as (process, witness):
                output, said, code = await _answer(process, wire.MEASURE_ORDER.encode(order).hex().encode() + b"\n")
                try:
                    return decode_json(output, Finding)
                except ValueError:
                    why = verbatim(said) if said and code >= 0 else (await ending(process, witness, ""))[0]
                    kind = BadSetting if code == REFUSED else LoadFailed
                    message = "node {name} cannot measure {device}: {why}"
                    raise kind(message, name=self.node, device=device, why=why) from None
        except TimeoutError:
            raise LoadFailed(
                "node {name}: measuring {device} took more than {seconds:.0f} s; close other programs there and try "
                "again",
                name=self.node,
                device=device,
                seconds=self.patience,
            ) from None


def better(found: Finding, known: Finding | None) -> Finding:
    """The answer to keep: an undisturbed one, the newer first, else the faster, as noise only adds."""
    if known is None or not found.disturbed:
        return found
    if known.disturbed and known.profile.ms_per_layer < found.profile.ms_per_layer:
        return replace(known, at=found.at)  # and not measured again at once
    return found if known.disturbed else known


def profile_key(order: MeasureOrder, devices: tuple[Device, ...]) -> str:
    """Cache key: all that an answer depends on, as text."""
    return json.dumps(
        {
            "format": FORMAT,
            "together": __version__,
            "device": [order.backend, order.device],
            "machine": [platform.machine(), os.cpu_count(), *(device.description for device in devices)],
            "libraries": {name: _version(name) for name in _LIBRARIES.get(order.backend, ())},
            "driver": _driver(),
            "dtype": order.dtype,
            "packed": [str(order.packed.layers), str(order.packed.head)],
            "exact": order.packed.exact and not order.packed.plain,  # plain weights know no other
            "shape": hashlib.sha256(_shape(order.config)).hexdigest(),
        },
        sort_keys=True,
    )


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def _driver() -> str:
    """NVIDIA's, where there is one."""
    file = Path("/proc/driver/nvidia/version")
    return file.read_text() if file.is_file() else ""


def _shape(config: bytes) -> bytes:
    """The values of config.json that speed may depend on; all of it where it cannot be parsed."""
    try:
        values = json.loads(config)
        return json.dumps({key: values[key] for key in values if key not in _SHAPELESS}, sort_keys=True).encode()
    except (ValueError, TypeError, RecursionError):
        return config


@dataclass(frozen=True, slots=True)
class _KeptFinding:
    key: str
    found: Finding


def _file(home: Path, key: str) -> Path:
    return home / "profiles" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def _recall(home: Path, key: str) -> Finding | None:
    stored = recall_json(_file(home, key), _KeptFinding)
    return stored.found if stored is not None and stored.key == key else None


def _keep(home: Path, key: str, found: Finding) -> None:
    """Without it, the next one measures again."""
    try:
        write_json(_file(home, key), _KeptFinding(key, found))
    except OSError as error:
        log.warning("cannot keep what was measured: %s", error)


# --- children ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _child(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Witness]]:
    """A measuring process that ends with the block."""
    with closing(Witness()) as witness:
        process = await spawn("together.cluster.measure", *arguments, environment=COMPUTING)
        watching = asyncio.create_task(witness.watch(process.pid))
        try:
            yield process, witness
        finally:
            if process.returncode is None:
                process.kill()
            watching.cancel()
            await asyncio.gather(process.wait(), watching, return_exceptions=True)


async def _answer(process: asyncio.subprocess.Process, line: bytes = b"") -> tuple[bytes, str, int]:
    """What a child prints until it ends, its last words, and its exit code."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(line)  # and stays open: when this node dies, it closes, and the child leaves
    output, errors = await asyncio.gather(process.stdout.read(), process.stderr.read())
    code = await process.wait()
    said = [text.strip() for text in errors.decode(errors="replace").splitlines() if text.strip()]
    return output, said[-1][:500] if said else "", code


# --- links ------------------------------------------------------------------------------------------------------------

ROUNDS = 10
WITHIN = 0.6  # seconds for each of the three measurements, however slow the link
ONCE_WITHIN = 20.0  # seconds for one message
FIRST_BULK, LARGEST_BULK = 2**16, 2**20  # bytes of the messages that bandwidth is measured with
LARGEST_SIZE = FIRST_BULK  # larger messages are not sent for their own sake: bandwidth says what they take


async def measure_link(order: LinkOrder, credentials: Credentials = ALONE) -> LinkSpeed:
    """The link to `order.target`, from here. Raises Unreachable."""
    door = await find_door(order.target, credentials)
    peer = f"the machine at {door}"
    async with door.open() as channel:
        for _ in range(2):  # the connection, and what grows with its first answers
            await _once(channel, peer, 0)
        rtt = median(await _times(channel, peer, 0))
        if not order.size:
            return LinkSpeed(1e3 * rtt, 1e3 * rtt / 2, 0.0)
        speed = await _bulk_speed(channel, peer, rtt)
        if order.size > LARGEST_SIZE:
            hop = rtt / 2 + order.size / speed
        else:
            # a moment that was slow for the empty messages alone must not make the way free
            hop = max(median(await _times(channel, peer, order.size)) - rtt / 2, rtt / 4)
        return LinkSpeed(1e3 * rtt, 1e3 * hop, speed)


async def _once(channel: grpc.aio.Channel, peer: str, size: int) -> float:
    """Seconds until a message of `size` bytes is there and an empty answer is back."""
    blob = Blob(bytes(size))
    began = time.perf_counter()
    await rpc.call(channel, rpc.ECHO, blob, peer, timeout=ONCE_WITHIN)
    return time.perf_counter() - began


async def _times(channel: grpc.aio.Channel, peer: str, size: int) -> list[float]:
    """Up to ROUNDS messages, at least one, none after WITHIN."""
    times: list[float] = []
    while not times or (len(times) < ROUNDS and sum(times) < WITHIN):
        times.append(await _once(channel, peer, size))
    return times


async def _bulk_speed(channel: grpc.aio.Channel, peer: str, rtt: float) -> float:
    """Bytes per second, by messages as large as a quarter of the time allows. A round trip of each is waiting."""
    size, spent, speeds = FIRST_BULK, 0.0, list[float]()
    while spent < WITHIN and len(speeds) < ROUNDS:
        took = await _once(channel, peer, size)
        spent += took
        speed = size / max(took - rtt, took / 10)  # a quick answer may come sooner than the usual one
        grown = min(LARGEST_BULK, 4 * size)
        if grown > size and grown / speed < WITHIN / 4:
            size, speeds = grown, []
        else:
            speeds.append(speed)
    return median(speeds or [speed])
