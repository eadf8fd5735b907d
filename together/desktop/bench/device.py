"""`bench device`: what one device of this machine does with a made-up model, in one table and in under four minutes.

It is for hardware that nobody has measured: what does not run there says why, and the rest goes on.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from backends.base import Computing
from together.cluster.profiling import default_backend, find_devices
from together.cluster_types import Device
from together.desktop.bench.engine import joint_speed
from together.desktop.bench.reads import MemoryReader
from together.desktop.bench.rings import PROMPT, BenchRequest, BenchRing, bench_folder, bench_ring
from together.desktop.bench.setups import peak_memory
from together.desktop.bench.shapes import random_checkpoint
from together.errors import BadSetting, TogetherError
from together.models.form import PUBLISHED, asked_form, form_title
from together.types import Dtype

WITHIN = 220.0  # seconds for everything, weights that are made on the first run included
SHORT, LONG = 128, 512  # tokens of a prompt
PEOPLE = 8
ROOM = 512  # tokens for each of them: the scheduler admits a request where 256 more of its tokens fit
NEW = 24  # tokens of an answer
SETUPS = (("no", 1), ("4", 1), ("8", 1), ("no", 2))  # what weights are quantized to, and stages


@dataclass(frozen=True, slots=True)
class DeviceRequest:
    """What is asked for; None takes the best device of this machine, and the shape and context that suit it."""

    backend: str | None
    device: str | None
    shape: str | None
    dtype: Dtype
    far: int | None  # tokens before an answer at a long context, at least LONG


@dataclass(slots=True)
class DeviceLine:
    """Some weights in some stages on the device. None was not measured, and `why` says why.

    `peak_bytes` is each process's peak; `device_bytes` what the stages took of a device with a memory of its own.
    """

    weights: str
    stages: int
    prefill_tok_s: float | None = None
    long_prefill_tok_s: float | None = None
    decode_tok_s: float | None = None
    together_tok_s: float | None = None  # of all people
    far_tok_s: float | None = None
    peak_bytes: tuple[int, ...] = ()
    device_bytes: int | None = None
    computing: tuple[Computing, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """All lines; `read_bytes_per_s` is of plain reads by the processor, which say nothing about a GPU's memory."""

    device: Device
    shape: str
    far: int
    read_bytes_per_s: float | None
    lines: tuple[DeviceLine, ...]


async def bench_device(asked: DeviceRequest, home: Path, within: float = WITHIN) -> DeviceReport:
    """Plain weights, 4 bit and 8 bit in one stage, then plain weights in two; each gets its share of the time left.

    `home` exists. Raises BadSetting for a backend, a device or a shape that is not there.
    """
    ends = asyncio.get_running_loop().time() + within
    device = await _device(asked, home)
    processor = device.name == "cpu"
    small = "smollm2-135m" if device.backend == "mlx" else "qwen2.5-0.5b"  # MLX makes 1 to 3 GFLOP/s on a CPU
    shape = asked.shape or (small if processor else "llama-3.2-1b")
    far = asked.far or (2048 if processor else 8192)
    await asyncio.to_thread(random_checkpoint, shape, asked.dtype, home)
    reads = await asyncio.to_thread(MemoryReader().bytes_per_s) if processor else None
    lines = []
    for place, (quantize, stages) in enumerate(SETUPS):
        form = asked_form(quantize) or PUBLISHED
        request = BenchRequest(shape, asked.dtype, device.backend, device.name, stages, new=NEW, form=form)
        left = max(0.0, ends - asyncio.get_running_loop().time())
        lines.append(await _measured(request, device, far, home, left / (len(SETUPS) - place)))
    return DeviceReport(device, shape, far, reads, tuple(lines))


async def _device(asked: DeviceRequest, home: Path) -> Device:
    devices = await find_devices(asked.backend or default_backend(), home)
    names = [device.name for device in devices]
    if asked.device is not None and asked.device not in names:
        raise BadSetting(
            "there is no device {name!r} here; choose one of {names}", name=asked.device, names=tuple(names)
        )
    return devices[names.index(asked.device)] if asked.device else devices[0]


async def _measured(request: BenchRequest, device: Device, far: int, home: Path, seconds: float) -> DeviceLine:
    line = DeviceLine(form_title(request.form) if request.form else request.dtype, request.stages)
    try:
        async with asyncio.timeout(seconds):
            await bench_folder(request, home)
            before = await _free(device, home)
            users = max(2, -(-PEOPLE * ROOM // (far + NEW)))
            async with bench_ring(request, home, far + NEW, users) as ring:
                await ring.generate(8, 3)  # touches all weights
                line.computing = tuple(dict.fromkeys(stage.computing for stage in ring.stages))
                for measure in MEASURES:
                    await measure(line, ring, far)
                    line.peak_bytes = tuple(peak_memory(stage.status.pid) for stage in ring.stages)
                if before is not None:
                    line.device_bytes = before - (await _free(device, home) or 0)
    except TimeoutError:
        if line.far_tok_s is None:
            line.why = f"the rest takes longer than the {seconds:.0f} s that it had; try a smaller --shape"
    except TogetherError as error:
        line.why = str(error)
    return line


async def _free(device: Device, home: Path) -> int | None:
    """Bytes of the device's own memory; None where it is the processes'."""
    if device.name == "cpu":
        return None
    return next(each.free_bytes for each in await find_devices(device.backend, home) if each.name == device.name)


async def _alone(line: DeviceLine, ring: BenchRing, far: int) -> None:
    prefill, decode = await ring.timed(SHORT, NEW)
    line.prefill_tok_s, line.decode_tok_s = _faster(line.prefill_tok_s, prefill), _faster(line.decode_tok_s, decode)


async def _long_prompt(line: DeviceLine, ring: BenchRing, far: int) -> None:
    prefill, _ = await ring.timed(LONG, 2)
    line.long_prefill_tok_s = _faster(line.long_prefill_tok_s, prefill)


async def _everybody(line: DeviceLine, ring: BenchRing, far: int) -> None:
    answers = await asyncio.gather(*(ring.generate(PROMPT, NEW) for _ in range(PEOPLE)))
    line.together_tok_s = _faster(line.together_tok_s, joint_speed(answers))


async def _far(line: DeviceLine, ring: BenchRing, far: int) -> None:
    _, line.far_tok_s = await ring.timed(far, NEW)


def _faster(before: float | None, now: float) -> float:
    """What other programs do only ever adds, so the faster of two counts."""
    return max(before or 0.0, now)


ONCE = (_alone, _long_prompt, _everybody)
MEASURES = (*ONCE, _far, *ONCE)  # every figure once before any a second time
