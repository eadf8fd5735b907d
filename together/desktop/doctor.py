"""`doctor`: what is wrong with this machine and its cluster and how to fix it, decided from facts, and its display."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from backends.measuring import LIFE
from together.cluster.claims import NodeHere, SharedOut
from together.cluster_types import DeviceProfile, NodeState
from together.commands import as_typed
from together.desktop.doctor_facts import App, Facts, Measured, facts_json, gather, shape_of
from together.desktop.show import GB, print_line, print_lines, print_table, threads_text, working
from together.errors import BadSetting
from together.settings import Settings
from together.view import NoteKind
from together.weights.find import resolve_model
from together.wording import size_text, sizes_text, times_text

LEAST_MEMORY = 2 * 10**9  # bytes that a stage of even a small model needs
LEAST_DISK = 5 * 10**9
WRONG = (NoteKind.MEMORY, NoteKind.VERSION)  # what the app says of machines that needs fixing
OLDEST_DRIVER = 525  # NVIDIA's first for CUDA 12


def run_doctor(settings: Settings, model: str | None, as_json: bool, report: Path | None = None) -> int:
    """Look, judge, print; the exit code: 1 if something needs fixing. Raises BadInput for a model that is not here.

    `report` is a file that is written instead, of which nobody sees whose machine this is.
    """
    folder = None if model is None else resolve_model(model, settings.home_path)
    if folder is not None and not isinstance(folder, Path):
        raise BadSetting(
            "{model} is not on this machine; give a folder or a name that python3 launch.py list shows", model=folder
        )
    shape = shape_of(folder, settings)
    with working("looking at this machine") as note:
        facts = asyncio.run(gather(settings, shape, note))
    found = problems(facts)
    if report is not None:
        from together.desktop.report import write_report

        write_report(report, facts, settings)
        print_line(
            f"wrote {report}: figures, versions and kinds of failures, without names, addresses, paths and texts; "
            "look at it before you send it"
        )
        return 0
    if as_json:
        print(doctor_json(facts, found))
    else:
        show(facts, found, Console())
    return 1 if found else 0


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong and how to fix it; what another one found out says both."""

    what: str
    fix: str = ""

    def __str__(self) -> str:
        return as_typed(f"{self.what}: {self.fix}" if self.fix else self.what)


def problems(facts: Facts) -> tuple[Diagnosis, ...]:
    """Everything that needs fixing, the most fundamental first."""
    checks = (_python, _nvidia, _room, _measuring, _ports, _multicast, _cluster, _links)
    return tuple(problem for check in checks for problem in check(facts))


def _python(facts: Facts) -> Iterator[Diagnosis]:
    again = "run python3 launch.py again"
    if facts.emulated:
        yield Diagnosis(
            f"this Python is built for {facts.processor} and runs under emulation, at a fraction of the speed",
            "install Python for ARM (arm64), delete the folder .venv and run python3 launch.py with it",
        )
    if facts.system == "Darwin" and facts.processor == "arm64" and "mlx" not in facts.libraries:
        yield Diagnosis("this is Apple Silicon and MLX, which uses its GPU best, is not installed", again)
    if facts.backend_trouble:
        yield Diagnosis(f"no device can be used ({facts.backend_trouble})", again)


def _nvidia(facts: Facts) -> Iterator[Diagnosis]:
    """A GPU that torch does not see; other backends do not use it."""
    if facts.nvidia is None or facts.backend != "torch" or any(d.name.startswith("cuda") for d in facts.devices):
        return
    gpus, torch = ", ".join(facts.nvidia.gpus) or "an NVIDIA GPU", facts.libraries.get("torch", "")
    major, update = facts.nvidia.driver.partition(".")[0], f"update the NVIDIA driver, which is {facts.nvidia.driver}"
    if major.isdecimal() and int(major) < OLDEST_DRIVER:
        what = f"{gpus} is not used, as the driver is too old for torch {torch}"
        yield Diagnosis(what, f"{update}, and run python3 launch.py again")
    elif "+cpu" in torch or (facts.system == "Windows" and "+cu" not in torch):
        what = f"{gpus} is not used, as torch {torch} is a build for CPUs alone"
        yield Diagnosis(what, "run python3 launch.py again, which installs the build for this GPU")
    else:
        what = f"{gpus} is there and torch {torch} cannot use it"
        yield Diagnosis(what, f"{update}, restart the machine and run this again")


def _room(facts: Facts) -> Iterator[Diagnosis]:
    memory = facts.memory
    if memory.granted + memory.left < LEAST_MEMORY:
        usable, total = sizes_text(memory.granted + memory.left, memory.total)
        yield Diagnosis(f"only {usable} of {total} memory can be used for layers", "close other programs")
    if facts.disk.free_bytes < LEAST_DISK:
        yield Diagnosis(
            f"only {size_text(facts.disk.free_bytes)} are free on the disk of {facts.disk.folder}",
            "delete what you do not need, models with python3 launch.py rm, or set TOGETHER_HOME to another disk",
        )


def _measuring(facts: Facts) -> Iterator[Diagnosis]:
    for item in facts.measured:
        if item.trouble:
            yield Diagnosis(f"{item.device} was not measured ({item.trouble})", "remedy that and run this again")


def _ports(facts: Facts) -> Iterator[Diagnosis]:
    if facts.ports.nodes is None:
        yield Diagnosis(
            f"no block of ports for a node is free on {facts.ports.host}",
            "stop nodes that you do not need, or set TOGETHER_NODE_PORT to another first port",
        )


def _multicast(facts: Facts) -> Iterator[Diagnosis]:
    if facts.multicast.heard:
        return
    where = "on this network" if facts.multicast.network else "on loopback"
    why = f" ({facts.multicast.trouble})" if facts.multicast.trouble else ""
    fix = "allow UDP port 5353 in the firewall and leave VPNs, or name machines with --peer host:port"
    yield Diagnosis(f"multicast is silent {where}{why}, so machines do not find each other by themselves", fix)


def _cluster(facts: Facts) -> Iterator[Diagnosis]:
    if facts.app is None:
        return
    if facts.app.trouble:
        yield Diagnosis(f"the links of the running app were not measured ({facts.app.trouble})", "run this again")
    for node in facts.app.nodes:
        if node.state is NodeState.FAILED:
            yield Diagnosis(f"node {node.name} has failed", node.cause or "see its log")
    yield from (Diagnosis(note.text) for note in facts.app.notes if note.kind in WRONG)


def _links(facts: Facts) -> Iterator[Diagnosis]:
    """Links that cannot be used, and those of the ring that are slower than the stage they feed."""
    if facts.app is None:
        return
    for way in facts.app.links:
        if way.ms is None:
            fix = "open the ports that python3 launch.py status shows in both firewalls, and put both on one network"
            yield Diagnosis(f"{way.a} and {way.b} do not reach each other", fix)
    times = {frozenset((way.a, way.b)): way.ms for way in facts.app.links}
    before = facts.app.place
    for stage in facts.app.ring:
        ms = times.get(frozenset((before, stage.place)))
        if before != stage.place and ms is not None and 0 < stage.ms < ms:
            hop, compute = times_text(ms, stage.ms)
            yield Diagnosis(
                f"the link from {before} to {stage.place} takes {hop} for each token, longer than the "
                f"{compute} of the layers {stage.layers} that it feeds",
                "use a cable instead of Wi-Fi there, or give these layers to another machine",
            )
        before = stage.place


# --- display ----------------------------------------------------------------------------------------------------------


def doctor_json(facts: Facts, found: tuple[Diagnosis, ...]) -> str:
    return json.dumps(judged_json(facts, found), indent=2)


def judged_json(facts: Facts, found: tuple[Diagnosis, ...]) -> dict[str, Any]:
    return {"ok": not found, "facts": facts_json(facts), "problems": [asdict(item) for item in found]}


def show(facts: Facts, found: tuple[Diagnosis, ...], console: Console) -> None:
    print_table(("", ""), _machine(facts), console)
    names = {device.key: device.description for device in facts.devices}
    devices = [f"{item.device} {names.get(item.device, '')}" for item in facts.measured]
    shape = f"one token of {facts.shape.model} ({facts.shape.layers} layers, {facts.shape.dtype})"
    columns = (f"{shape}, processor {facts.busy_percent:.0f} % busy", *devices)
    print_table(columns, _speeds([item.profile for item in facts.measured]), console)
    print_lines((_disturbed(item) for item in facts.measured if item.busy), console)
    if facts.app:
        _show_app(facts.app, console)
    print_lines(["to fix:" if found else "nothing is wrong", *(f"- {problem}" for problem in found)], console)


def _machine(facts: Facts) -> Iterator[tuple[str, str]]:
    libraries = ", ".join(f"{name} {version}" for name, version in facts.libraries.items())
    yield f"together {facts.version}", f"{facts.system} {facts.processor}, {libraries}"
    if facts.nvidia:
        yield "NVIDIA driver", f"{facts.nvidia.driver}, {', '.join(facts.nvidia.gpus)}"
    yield "memory", _memory(facts.memory)
    if facts.memory.nodes:
        yield "nodes here", ", ".join(map(_node_here, facts.memory.nodes))
    disk, ports = facts.disk, facts.ports
    yield "disk", f"{disk.free_bytes / GB:.1f} of {disk.total_bytes / GB:.1f} GB free for {disk.folder}"
    nodes = f"nodes from {ports.nodes[0]} to {ports.nodes[1]}" if ports.nodes else "none for nodes"
    page = "free" if ports.page_is_free else "the running app's" if facts.app else "taken, so the next free one"
    yield "ports", f"{nodes} (UDP 5353 as well), page {ports.page} {page}, on {ports.host}"
    scope = "on all networks" if facts.multicast.network else "on loopback alone, as the app listens there"
    if facts.kernels:
        yield "kernels by trial", ", ".join(f"{what}: {chosen}" for what, chosen in facts.kernels[0].chosen.items())
    yield "multicast", f"{'heard its own record' if facts.multicast.heard else 'silent'}, {scope}"


def _memory(memory: SharedOut) -> str:
    """What is written adds up, too: other programs' part takes what rounding makes or loses."""
    total, kept, granted, left = (
        round(10 * size / GB) for size in (memory.total, memory.kept, memory.granted, memory.left)
    )
    others = total - kept - granted - left
    given = f"{granted / 10} given to layers, " if granted else ""
    return (
        f"{total / 10} GB: {others / 10} used by other programs, {kept / 10} kept free for them, "
        f"{given}{left / 10} left for layers"
    )


def _node_here(node: NodeHere) -> str:
    return f"{node.name} {size_text(node.granted)}" if node.granted else f"{node.name} (no layers)"


def _speeds(profiles: list[DeviceProfile | None]) -> Iterator[tuple[object, ...]]:
    """A row for each figure, a column for each device."""
    if None in profiles:
        yield "", *("not measured" if found is None else "" for found in profiles)
    figures: dict[str, Callable[[DeviceProfile], object]] = {
        "ms a layer": lambda found: found.ms_per_layer,
        "ms a stage": lambda found: found.ms_per_stage,
        "ms for the LM head and drawing": lambda found: found.ms_per_head,
        "ms for a message": lambda found: found.ms_per_step,
        "shared by the rows of a step": lambda found: f"{found.shared:.0%}",
        "memory GB/s": lambda found: found.memory_bytes_per_s / GB,
        "matrices TFLOP/s": lambda found: found.matrix_flops_per_s / 1e12,
        "disk GB/s": lambda found: found.disk_bytes_per_s / GB or "unknown",
        "GB of a stage before its weights": lambda found: found.overhead_bytes / GB,
    }
    for name, figure in figures.items():
        yield name, *("" if found is None else figure(found) for found in profiles)


def _disturbed(item: Measured) -> str:
    return (
        f"{item.device} may be faster, even several times: other programs used {item.busy:.0%} of the processors; "
        f"its figures hold for {LIFE / 60:.0f} minutes, then it is measured again when needed"
    )


def _show_app(app: App, console: Console) -> None:
    print_lines([f"app {app.url}, {len(app.nodes)} nodes" + ("" if app.ring else ", no model is loaded")], console)
    print_lines((note.text for note in app.notes if note.kind not in WRONG), console)
    print_table(("node", "state", "cause"), ((node.name, node.state, node.cause) for node in app.nodes), console)
    links = ((f"{link.a} – {link.b}", "no way" if link.ms is None else link.ms) for link in app.links)
    print_table(("link", "ms for a token"), links, console)
    stages = (
        (str(stage.layers), stage.place, stage.ms or "unknown", threads_text(stage.threads)) for stage in app.ring
    )
    print_table(("layers", "on", "ms for a token", "threads"), stages, console)
