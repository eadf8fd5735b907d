"""What a node measures once and keeps on disk: its devices at a model's shape, and its links."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import grpc.aio
from filelock import AsyncFileLock

from together import __version__
from together.cluster.measure import REFUSED, Finding, Order
from together.cluster.supervisor import SHORT_WAITS, ending
from together.cluster.witness import Witness
from together.cluster_types import Blob, Device, DeviceProfile, Endpoint, LinkOrder, LinkSpeed, MeasureOrder
from together.errors import BadSetting, LoadFailed
from together.jsonfile import decode_json, recall_json, write_json
from together.processes import spawn
from together.ring import rpc

ROUNDS = 10
WITHIN = 0.6  # seconds for each of the three measurements, however slow the link
ONCE_WITHIN = 20.0  # seconds for one message
FIRST_BULK, LARGEST_BULK = 2**16, 2**20  # bytes of the messages that bandwidth is measured with
LARGEST_SIZE = FIRST_BULK  # larger messages are not sent for their own sake: bandwidth says what they take


async def measure_link(order: LinkOrder) -> LinkSpeed:
    """The link to `order.target`, from here. Raises Unreachable."""
    async with _channel(order.target) as (channel, peer):
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


@asynccontextmanager
async def _channel(target: Endpoint) -> AsyncIterator[tuple[grpc.aio.Channel, str]]:
    address = await rpc.fastest(target)
    async with rpc.open_channel(address, target.port) as channel:
        yield channel, f"the machine at {address}:{target.port}"


async def _once(channel: grpc.aio.Channel, peer: str, size: int) -> float:
    """Seconds until a message of `size` bytes is there and an empty answer is back."""
    blob = Blob(bytes(size))
    began = time.perf_counter()
    await rpc.call(channel, rpc.ECHO_CALL, blob, peer, timeout=ONCE_WITHIN)
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


__all__ = ["Profiler", "measure_link"]

log = logging.getLogger(__name__)

PATIENCE = 120.0  # seconds for a child to measure
FORMAT = 2  # raise it when what is measured changes: older answers are forgotten
LARGEST_CONFIG = 2**20  # bytes
_LIBRARIES = {"torch": ("torch", "transformers"), "mlx": ("mlx", "mlx-lm"), "checksum": ("numpy",)}
_SHAPELESS = (  # what config.json says beside its shape; fine-tunes of one model differ in these
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


@dataclass(frozen=True, slots=True)
class Profiler:
    """Measures this machine's `devices`. `node` is what errors call it, `machine` what its nodes take turns by."""

    node: str
    machine: str
    home: Path
    devices: tuple[Device, ...]
    patience: float = PATIENCE

    async def measure(self, order: MeasureOrder) -> DeviceProfile:
        """What is known, or else measured now: seconds. Cancelled, it ends the child.

        Raises BadSetting for an unknown device or a model that does not run here, LoadFailed where measuring failed.
        """
        return (await self.find(order)).profile

    async def find(self, order: MeasureOrder, *, anew: bool = False) -> Finding:
        """As `measure`, and how disturbed it was; `anew` measures whatever is known, but keeps the better answer."""
        self._check(order)
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

    async def reach(self, order: LinkOrder) -> LinkSpeed:
        """A link from here, as it is now. Raises Unreachable."""
        return await measure_link(order)

    def _check(self, order: MeasureOrder) -> None:
        keys = [device.key for device in self.devices]
        if f"{order.backend}/{order.device}" not in keys:
            known = ", ".join(keys)
            raise BadSetting(f"node {self.node} has no device {order.backend}/{order.device}; it has {known}")
        if len(order.config) > LARGEST_CONFIG:
            raise BadSetting(f"a config.json of {len(order.config)} bytes is none; choose another model")

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Nobody else on this machine measures meanwhile; where another user's lock is closed to us, nobody of ours."""
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
        config = order.config.decode(errors="replace")
        line = Order(order.backend, order.device, order.dtype, config, str(self.home)).line()
        with closing(Witness()) as witness:
            process = await spawn("together.cluster.measure", environment=SHORT_WAITS)
            watching = asyncio.create_task(witness.watch(process.pid))
            try:
                return await self._patiently(process, witness, line, f"{order.backend}/{order.device}")
            finally:
                if process.returncode is None:
                    process.kill()
                watching.cancel()
                await asyncio.gather(process.wait(), watching, return_exceptions=True)

    async def _patiently(
        self, process: asyncio.subprocess.Process, witness: Witness, line: bytes, device: str
    ) -> Finding:
        try:
            async with asyncio.timeout(self.patience):
                return await self._converse(process, witness, line, device)
        except TimeoutError:
            raise LoadFailed(
                f"node {self.node}: measuring {device} took more than {self.patience:.0f} s; "
                "close other programs there and try again"
            ) from None

    async def _converse(
        self, process: asyncio.subprocess.Process, witness: Witness, line: bytes, device: str
    ) -> Finding:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(line)  # and stays open: when this node dies, it closes, and the child leaves
        output, errors = await asyncio.gather(process.stdout.read(), process.stderr.read())
        code = await process.wait()
        try:
            return decode_json(output, Finding)
        except ValueError:
            said = [line for line in errors.decode(errors="replace").splitlines() if line.strip()]
            cause = said[-1].strip()[:500] if said and code >= 0 else (await ending(process, witness, ""))[0]
            kind = BadSetting if code == REFUSED else LoadFailed
            raise kind(f"node {self.node} cannot measure {device}: {cause}") from None


def better(found: Finding, known: Finding | None) -> Finding:
    """What to believe of two answers: an undisturbed one, the newer first, else the faster, as noise only adds."""
    if known is None or not found.disturbed:
        return found
    if known.disturbed and known.profile.ms_per_layer < found.profile.ms_per_layer:
        return replace(known, at=found.at)  # and not measured again at once
    return found if known.disturbed else known


def profile_key(order: MeasureOrder, devices: tuple[Device, ...]) -> str:
    """What an answer depends on, as text: whoever has the same may have the answer."""
    driver = Path("/proc/driver/nvidia/version")
    return json.dumps(
        {
            "format": FORMAT,
            "together": __version__,
            "device": [order.backend, order.device],
            "machine": [platform.machine(), os.cpu_count(), *(device.description for device in devices)],
            "libraries": {name: _version(name) for name in _LIBRARIES.get(order.backend, ())},
            "driver": driver.read_text() if driver.is_file() else "",
            "dtype": order.dtype,
            "shape": hashlib.sha256(_shape(order.config)).hexdigest(),
        },
        sort_keys=True,
    )


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def _shape(config: bytes) -> bytes:
    """The values of config.json that speed may depend on; all of it where it is not readable."""
    try:
        values = json.loads(config)
        return json.dumps({key: values[key] for key in values if key not in _SHAPELESS}, sort_keys=True).encode()
    except (ValueError, TypeError):
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
