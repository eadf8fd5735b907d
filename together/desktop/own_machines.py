"""One's own machines for a cluster file: measured by the running app, by a saved file, or here and now."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from together.cluster.claims import left_over
from together.cluster.identity import machine_id, node_name
from together.cluster.measure import Finding
from together.cluster.profiling import Profiler, default_backend, find_devices
from together.cluster_types import Device, DeviceProfile, MeasureOrder
from together.desktop.bench.shapes import SHAPES
from together.desktop.client import RunningApp, find_running, require_running
from together.desktop.doctor_facts import USUAL_SHAPE
from together.desktop.planned import ModelToPlan
from together.desktop.show import print_aside
from together.errors import BadSetting
from together.jsonfile import decode_json
from together.models.summary import summarize_config
from together.planning.cluster_file import parse_cluster
from together.planning.demand import demand_of
from together.planning.machine_file import HERE
from together.planning.machines import Machine, machines_of
from together.planning.network import Way
from together.planning.problem import Link, Problem
from together.settings import Settings
from together.types import DTYPES, Dtype
from together.wording import reason_of

SOON = 1.0  # seconds that pass in silence
LARGEST_LAYER = 512 * 2**20  # bytes; larger ones are not made up to be measured beside what else runs


@dataclass(frozen=True, slots=True)
class ShapeToMeasure:
    """A config.json, the bytes that a token reads of each of its layers, and those that it sends over a hop."""

    config: dict[str, Any]
    dtype: Dtype
    layer_bytes: float
    state_bytes: int


def shape_to_measure(planned: ModelToPlan) -> ShapeToMeasure:
    """The planned model's own shape; a well-known small one where it cannot run here, or its layers are too large."""
    summary = planned.summary
    own = demand_of(planned.name, summary)
    if planned.config is not None and summary.quantization is None and max(own.size.layer_bytes) <= LARGEST_LAYER:
        return ShapeToMeasure(planned.config, _dtype(summary.dtype), own.read_bytes, own.state_bytes)
    usual: dict[str, Any] = SHAPES[USUAL_SHAPE].config("bf16")
    known = demand_of(USUAL_SHAPE, summarize_config(USUAL_SHAPE, usual))
    return ShapeToMeasure(usual, "bf16", known.read_bytes, own.state_bytes)


def _dtype(name: str) -> Dtype:
    return next((dtype for dtype in DTYPES if dtype == name), "bf16")


@dataclass(frozen=True, slots=True)
class AppMachine:
    """A device of the running app's nodes, as `/control/machines` gives it."""

    name: str
    here: bool
    device: str  # its key
    free_bytes: int
    profile: DeviceProfile


@dataclass(frozen=True, slots=True)
class AppMachines:
    """All devices, and the links between them by their names."""

    machines: tuple[AppMachine, ...]
    links: tuple[Link, ...]


@dataclass(slots=True)
class Measurements:
    """Implements `OwnMachines`. Each source is asked when a file first names a machine of one's own."""

    settings: Settings
    shape: ShapeToMeasure
    saved: Path | None = None  # a file of status --save
    _asked: AppMachines | None = None
    _here: Machine | None = None
    _saved: Problem | None = None

    def here(self) -> Machine:
        """Raises TogetherError where it cannot be measured."""
        if self._here is None:
            running = find_running(self.settings.home_path)
            own = [item for item in self._ask(running).machines if item.here] if running else []
            self._here = self._together(own) if own else asyncio.run(self._measure())
        return self._here

    def names(self) -> Collection[str]:
        """Of the saved file if there is one, else of the running app's nodes and their devices."""
        if self.saved is not None:
            return [node.name for node in self._read(self.saved).nodes if node.max_layers != 0]
        running = find_running(self.settings.home_path)
        nodes = running.status().nodes if running else ()
        devices = [f"{node.name}/{device.name}" for node in nodes for device in node.devices if len(node.devices) > 1]
        return [*(node.name for node in nodes), *devices]

    def named(self, name: str) -> Machine:
        """A node's name is its best device. Raises TogetherError where it was not measured."""
        if self.saved is not None:
            problem = self._read(self.saved)
            with in_file(self.saved):
                return machines_of(replace(problem, nodes=(problem.node(name),)))[0]
        running = require_running(self.settings.home_path)
        item = _device(self._ask(running), name)
        if item is None:
            raise not_measured(name)
        return self._machine(item)

    def way(self, a: str, b: str) -> Way | None:
        """As it was measured between the two devices."""
        if self.saved is not None:
            ends, links = {a, b}, self._read(self.saved).links
        else:
            running = find_running(self.settings.home_path)
            if running is None:
                return None
            asked = self._ask(running)
            ends, links = {item.name if (item := _device(asked, name)) else name for name in (a, b)}, asked.links
        return next((Way(link.a, link.b, link.ms) for link in links if {link.a, link.b} == ends), None)

    def _ask(self, running: RunningApp) -> AppMachines:
        """The running app's machines, which are measured first where they were not."""
        if self._asked is None:
            order: dict[str, object] = {
                "config": self.shape.config,
                "dtype": self.shape.dtype,
                "size": self.shape.state_bytes,
            }
            self._asked = decode_json(json.dumps(running.ask("machines", order)).encode(), AppMachines)
        return self._asked

    def _read(self, saved: Path) -> Problem:
        if self._saved is None:
            with in_file(saved):
                self._saved = parse_cluster(saved.read_text(encoding="utf-8-sig"))
        return self._saved

    def _together(self, own: Sequence[AppMachine]) -> Machine:
        """This machine's best device, with what all of its nodes have left there."""
        free = sum(item.free_bytes for item in own if item.device == own[0].device)
        return self._machine(replace(own[0], free_bytes=free))

    def _machine(self, item: AppMachine) -> Machine:
        """Raises BadSetting for one whose node says that it takes no time: there is nothing to reckon with."""
        if not (item.profile.ms_per_layer and item.profile.memory_bytes_per_s and item.profile.matrix_flops_per_s):
            raise not_measured(item.name)
        return Machine.of_profile(item.name, item.profile, item.free_bytes, self.shape.layer_bytes)

    async def _measure(self) -> Machine:
        """This machine's best device; what was measured before is read from the disk."""
        measuring = asyncio.create_task(self._find())
        if not (await asyncio.wait({measuring}, timeout=SOON))[0]:
            print_aside("measuring this machine, which takes some seconds the first time")
        device, found = await measuring
        if found.disturbed:
            print_aside(f"other programs use {found.busy:.0%} of this machine: it may be faster than measured now")
        free = device.free_bytes
        if device.name == "cpu":
            free = min(free, left_over(self.settings))
        return Machine.of_profile(HERE, found.profile, free, self.shape.layer_bytes)

    async def _find(self) -> tuple[Device, Finding]:
        home, backend = self.settings.home_path, self.settings.backend or default_backend()
        home.mkdir(parents=True, exist_ok=True)
        devices = await find_devices(backend, home)
        profiler = Profiler(node_name(self.settings), machine_id(home), home, devices)
        device, config = devices[0], json.dumps(self.shape.config).encode()
        return device, await profiler.find(MeasureOrder(device.backend, device.name, self.shape.dtype, config))


def not_measured(name: str) -> BadSetting:
    return BadSetting("{name} could not be measured; see: python3 launch.py status", name=name)


def _device(asked: AppMachines, name: str) -> AppMachine | None:
    """The device of that name, the best of the node, or of this machine."""
    here = name.casefold() == HERE
    return next(
        (item for item in asked.machines if name in (item.name, item.name.partition("/")[0]) or (here and item.here)),
        None,
    )


@contextmanager
def in_file(file: Path) -> Iterator[None]:
    """Errors of reading what `status --save` wrote say which file it is. Raises BadSetting."""
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting("measured: {file} cannot be read: {error}", file=str(file), error=reason_of(error)) from None
    except BadSetting as error:
        raise BadSetting("measured: {file}: {error}", file=str(file), error=error.sentence) from None
