"""The `doctor` command, and what it found as text or JSON. Knows no measurement and no judgement.

Names of other machines are never markup.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from together.cluster.measure import LIFE
from together.desktop.doctor.checks import App, Diagnosis, Facts, Measured, problems
from together.desktop.doctor.facts import gather, subject_of
from together.desktop.show import one_line
from together.errors import BadSetting
from together.settings import Settings
from together.weights.find import resolve_model

GB = 1e9


def run_doctor(settings: Settings, model: str | None, as_json: bool) -> int:
    """Look, print, judge; the exit code: 1 if something needs fixing. Raises BadInput for a model that is not here."""
    folder = None if model is None else resolve_model(model, settings.home_path)
    if folder is not None and not isinstance(folder, Path):
        raise BadSetting(f"{model} is not on this machine; give a folder or a name that together models shows")
    facts = asyncio.run(gather(settings, subject_of(folder, settings)))
    found = problems(facts)
    if as_json:
        print(show_json(facts, found))
    else:
        show(facts, found, Console())
    return 1 if found else 0


def show_json(facts: Facts, found: tuple[Diagnosis, ...]) -> str:
    return json.dumps({"ok": not found, "facts": asdict(facts), "problems": [asdict(item) for item in found]}, indent=2)


def show(facts: Facts, found: tuple[Diagnosis, ...], console: Console) -> None:
    """For a person. A stranger's name is no markup, and no order to the terminal either."""
    for line in (*_machine(facts), *_devices(facts), *(_app(facts.app) if facts.app else ()), "", *_verdict(found)):
        console.print(Text(one_line(line)), soft_wrap=True)


def _machine(facts: Facts) -> Iterator[str]:
    libraries = ", ".join(f"{name} {version}" for name, version in facts.libraries.items())
    yield f"together {facts.version} on {facts.system} {facts.processor}; {libraries}"
    if facts.nvidia:
        yield f"NVIDIA driver {facts.nvidia.driver}: {', '.join(facts.nvidia.gpus)}"
    free, total, usable = (x / GB for x in (facts.memory_free, facts.memory_total, facts.memory_usable))
    yield f"memory     {free:.1f} of {total:.1f} GB free, {usable:.1f} GB of it for layers, the rest is a reserve"
    disk = facts.disk
    yield f"disk       {disk.free_bytes / GB:.1f} of {disk.total_bytes / GB:.1f} GB free for {disk.folder}"
    yield f"ports      {_ports(facts)}"
    scope = "on all networks" if facts.multicast.network else "on loopback alone, as the app listens there"
    yield f"multicast  {'heard its own record' if facts.multicast.heard else 'silent'}, {scope}"


def _ports(facts: Facts) -> str:
    nodes = f"nodes from {facts.ports.nodes[0]} to {facts.ports.nodes[1]}" if facts.ports.nodes else "none for nodes"
    page = "free" if facts.ports.page_is_free else "the running app's" if facts.app else "taken, so the next free one"
    return f"{nodes} (UDP 5353 as well), page {facts.ports.page} {page}, on {facts.ports.host}"


def _devices(facts: Facts) -> Iterator[str]:
    shape = facts.shape
    yield (
        f"speed      at the shape of {shape.model} ({shape.layers} layers, {shape.dtype}), one token; "
        f"the processor was {facts.busy_percent:.0f} % busy before"
    )
    names = {device.key: device.description for device in facts.devices}
    for item in facts.measured:
        yield f"  {item.device}  {names.get(item.device, '')}"
        yield from _measured(item)


def _measured(item: Measured) -> Iterator[str]:
    found = item.profile
    if found is None:
        yield "    not measured"
        return
    yield (
        f"    {found.ms_per_layer:.2f} ms a layer, {found.ms_per_stage:.2f} ms a stage, "
        f"{found.ms_per_head:.2f} ms for the LM head and drawing"
    )
    disk = f"disk {found.disk_bytes_per_s / GB:.2f} GB/s" if found.disk_bytes_per_s else "disk not known here"
    yield (
        f"    memory {found.memory_bytes_per_s / GB:.1f} GB/s, matrices {found.matrix_flops_per_s / 1e12:.2f} TFLOP/s, "
        f"{disk}, {found.overhead_bytes / GB:.2f} GB for a stage before its weights"
    )
    if item.busy:
        yield (
            f"    this may be too slow, even several times: other programs used {item.busy:.0%} of the processors "
            f"meanwhile; it is believed for {LIFE / 60:.0f} minutes, then measured again when it is needed"
        )


def _app(app: App) -> Iterator[str]:
    yield f"app        {app.url}, {len(app.nodes)} nodes" + ("" if app.ring else ", no model is loaded")
    for node in app.nodes:
        yield f"  node {node.name}: {node.state}" + (f", {node.cause}" if node.cause else "")
    for way in app.links:
        yield f"  link {way.a} – {way.b}: " + ("no way" if way.ms is None else f"{way.ms:.2f} ms for a token")
    for stage in app.ring:
        yield f"  layers {stage.layers} on {stage.place}" + (f": {stage.ms:.1f} ms for a token" if stage.ms else "")


def _verdict(found: tuple[Diagnosis, ...]) -> Iterator[str]:
    yield "to fix:" if found else "nothing is wrong"
    yield from (f"- {problem}" for problem in found)
