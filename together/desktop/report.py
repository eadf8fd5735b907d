"""`doctor --report`: what the doctor finds and what the logs complain of, without whose machine it is, for a stranger.

Nothing is left out by looking for what might be private: what is written is a number, a word of a list that stands in
this program, or a text of its own without what it was filled with. All else becomes OTHER, or "machine 1" for a name.
"""

from __future__ import annotations

import builtins
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

from backends.base import BACKENDS
from together import errors
from together.checkout import ROOT
from together.cluster.claims import NodeHere
from together.cluster_types import LOOPBACK, Device, Endpoint, NodeStatus
from together.commands import as_typed
from together.desktop.app_status import AppNote
from together.desktop.bench.shapes import SHAPES
from together.desktop.doctor import judged_json, problems
from together.desktop.doctor_facts import LIBRARIES, App, Disk, Facts, Measured, Nvidia
from together.desktop.logs import last_lines
from together.errors import BadSetting
from together.sentences import english_texts
from together.settings import PREFIX, Settings
from together.types import Dtype
from together.wording import reason_of

ABOUT = (
    "Made by: launch.py doctor --report. It has figures, versions and kinds of failures. It has no names, addresses, "
    "paths, prompts or answers: machines are numbered, and a text in braces stands where one was."
)
OTHER = "…"
SYSTEMS = ("Linux", "Darwin", "Windows")
PROCESSORS = ("x86_64", "AMD64", "arm64", "aarch64", "ARM64", "x86")
DEVICE = re.compile(r"cpu|mps|gpu|(cuda|xpu|gpu):\d{1,2}")
VERSION = re.compile(r"\d+(\.\d+){0,2}((a|b|rc|\.post|\.dev)\d{1,4})?")  # an address has four numbers
LOCAL = re.compile(r"cpu|cu\d{2,3}|[0-9a-f]{7}")  # of a version, after its "+": a build of torch, or our commit
# Words of makers of processors and graphics cards; beside them only what looks like a model's number is kept.
MAKERS = frozenset(
    "nvidia geforce rtx gtx tesla quadro amd radeon ryzen epyc threadripper pro instinct intel(r) intel core(tm) core "
    "ultra xeon(r) xeon gold silver platinum arc apple max mini graphics laptop gpu cpu processor @ ti super".split()
)
MODEL_NUMBER = re.compile(r"[A-Za-z]{0,2}\d{4}[A-Za-z]{0,3}|[A-Za-z]\d{1,3}[A-Za-z]?|i\d-\d{4,5}[A-Z]{0,2}|\d\.\d\dGHz")
TELLING = 6  # letters outside of its fields that a text of ours has at least
LINES = 20_000  # of the logs
RECORD = re.compile(r"[\d-]{10} [\d:,]{12} (DEBUG|INFO|WARNING|ERROR|CRITICAL) ([\w.]+): ")
WORTH = ("WARNING", "ERROR", "CRITICAL")
FRAME = re.compile(r'\s+File "(?:[^"]*[\\/])?((?:together|backends|webui)[\\/][\w\\/]+\.py)", line (\d{1,4})\b')
RAISED = re.compile(r"\s+([A-Za-z_][\w.]*)(:|$)")
EXCEPTIONS = frozenset(
    name
    for module in (builtins, errors)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, BaseException)
)


def write_report(file: Path, facts: Facts, settings: Settings) -> None:
    """Raises BadSetting where the file cannot be written, or is there."""
    text = json.dumps(report(facts, settings.logs_path), indent=2, ensure_ascii=False) + "\n"
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise BadSetting("{file} is there already; name another file, or delete that one", file=str(file)) from None
    except OSError as error:
        raise BadSetting("{file} cannot be written: {why}", file=str(file), why=reason_of(error)) from None


def report(facts: Facts, logs: Path) -> dict[str, Any]:
    told = anonymous(facts)
    known = {f"{PREFIX}{name.upper()}" for name in asdict(Settings())}
    return {
        "about": ABOUT,
        **judged_json(told, problems(told)),
        "settings": sorted(known & set(os.environ)),
        "log": [asdict(kind) for kind in complaints(last_lines(logs, LINES))],
    }


# --- facts ------------------------------------------------------------------------------------------------------------


class Pseudonyms:
    """Machines by number, each the same wherever it is named."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, name: str) -> str:
        return self._known.setdefault(name, f"machine {len(self._known) + 1}")

    def place(self, place: str) -> str:
        """Of a node, or of one of its devices."""
        node, slash, device = place.rpartition("/")
        if slash and place not in self._known and DEVICE.fullmatch(device):
            return f"{self.of(node)}/{device}"
        return self.of(place)


def anonymous(facts: Facts) -> Facts:
    """The same findings of nobody."""
    names, shape = Pseudonyms(), facts.shape
    return Facts(
        version=_version(facts.version),
        system=_of(facts.system, SYSTEMS),
        processor=_of(facts.processor, PROCESSORS),
        emulated=facts.emulated,
        libraries={name: _version(text) for name, text in facts.libraries.items() if name in ("Python", *LIBRARIES)},
        backend=_of(facts.backend, ("", *BACKENDS)),
        backend_trouble=_told(facts.backend_trouble),
        nvidia=None if facts.nvidia is None else _nvidia(facts.nvidia),
        devices=tuple(map(_device, facts.devices)),
        memory=replace(
            facts.memory, nodes=tuple(NodeHere(names.of(node.name), node.granted) for node in facts.memory.nodes)
        ),
        busy_percent=facts.busy_percent,
        shape=replace(shape, model=_of(shape.model, tuple(SHAPES)), dtype=_dtype(shape.dtype), config=b""),
        measured=tuple(map(_measured, facts.measured)),
        disk=Disk("the app", facts.disk.total_bytes, facts.disk.free_bytes),
        ports=replace(facts.ports, host="this machine alone" if facts.ports.host in LOOPBACK else "the network"),
        multicast=replace(facts.multicast, trouble=_told(facts.multicast.trouble)),
        app=None if facts.app is None else _app(facts.app, names),
    )


def _app(app: App, names: Pseudonyms) -> App:
    nodes = tuple(_node(node, names) for node in app.nodes)
    known = {node.id: names.of(node.name) for node in app.nodes}
    return App(
        url="(here)",
        nodes=nodes,
        links=tuple(replace(link, a=names.place(link.a), b=names.place(link.b)) for link in app.links),
        ring=tuple(replace(stage, place=names.place(stage.place)) for stage in app.ring),
        place=names.place(app.place),
        trouble=_told(app.trouble),
        notes=tuple(AppNote(known.get(note.node, OTHER), note.kind, _told(note.text)) for note in app.notes),
    )


def _node(node: NodeStatus, names: Pseudonyms) -> NodeStatus:
    name = names.of(node.name)
    return NodeStatus(
        name, name, "", Endpoint((), 0), node.protocol, node.state, _told(node.cause), version=_version(node.version)
    )


def _device(device: Device) -> Device:
    name = device.name if DEVICE.fullmatch(device.name) else OTHER
    return replace(
        device, backend=_of(device.backend, tuple(BACKENDS)), name=name, description=_hardware(device.description)
    )


def _measured(measured: Measured) -> Measured:
    backend, _, name = measured.device.partition("/")
    known = backend in BACKENDS and DEVICE.fullmatch(name)
    return replace(measured, device=measured.device if known else OTHER, trouble=_told(measured.trouble))


def _nvidia(nvidia: Nvidia) -> Nvidia:
    return Nvidia(tuple(map(_hardware, nvidia.gpus)), _version(nvidia.driver))


def _of(text: str, known: tuple[str, ...]) -> str:
    return text if text in known else OTHER


def _dtype(text: str) -> Dtype:
    return "fp32" if text == "fp32" else "fp16" if text == "fp16" else "bf16"


def _version(text: str) -> str:
    number, plus, local = text.partition("+")
    if not VERSION.fullmatch(number):
        return OTHER
    return f"{number}{plus}{local if LOCAL.fullmatch(local) else OTHER}" if plus else number


def _hardware(text: str) -> str:
    """`"NVIDIA GeForce RTX 4090"` stays as it is; a word that is no maker's is left out."""
    kept = [word for word in text.split() if word.lower() in MAKERS or MODEL_NUMBER.fullmatch(word)]
    return " ".join(kept) if any(word.lower() in MAKERS for word in kept) else OTHER


def _told(text: str) -> str:
    """The text of this program that it is, with its fields in braces; nothing where nothing was said."""
    fitting = (pieces for pieces in _templates() if _fits(pieces, text))
    best = max(fitting, key=lambda pieces: sum(map(len, pieces.literal)), default=None)
    return "" if not text else best.shown if best else OTHER


@dataclass(frozen=True, slots=True)
class _Template:
    """A text of the table: what stands between its fields, and how it is shown."""

    literal: tuple[str, ...]
    shown: str


@cache
def _templates() -> tuple[_Template, ...]:
    """Those that say enough to be told by."""
    found = []
    for text in english_texts():
        parts = [(literal, name) for literal, name, _, _ in Formatter().parse(text)]
        literal = tuple(part for part, _ in parts) + (("",) if parts and parts[-1][1] is not None else ())
        if sum(map(len, literal)) >= TELLING:
            shown = "".join(f"{part}{{{name}}}" if name is not None else part for part, name in parts)
            found.append(_Template(tuple(map(as_typed, literal)), shown))
    return tuple(found)


def _fits(template: _Template, text: str) -> bool:
    """Whether the literal parts stand in `text` in their order, from its beginning to its end."""
    first, *middle = template.literal
    if not middle:
        return text == first
    last = middle.pop()
    if not text.startswith(first) or not text.endswith(last):
        return False
    at = len(first)
    for part in middle:
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return at <= len(text) - len(last)


# --- logs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Complaint:
    """What was noted several times alike: by which module, and where in this program an error came by."""

    level: str
    module: str
    count: int
    error: str = ""
    places: tuple[str, ...] = ()


def complaints(lines: list[str]) -> list[Complaint]:
    """The most frequent first."""
    found = Counter(_records(lines))
    return [replace(complaint, count=count) for complaint, count in found.most_common()]


def _records(lines: list[str]) -> Iterator[Complaint]:
    record: Complaint | None = None
    for line in lines:
        if begun := RECORD.match(line):
            if record is not None:
                yield record
            level, module = begun.groups()
            record = Complaint(level, _module(module), 0) if level in WORTH else None
        elif record is not None:
            record = _with(record, line)
    if record is not None:
        yield record


def _with(record: Complaint, line: str) -> Complaint:
    """A record with one more of its lines: of a traceback its frames in this program, and the kind of the error."""
    if frame := FRAME.match(line):
        name = frame.group(1).replace("\\", "/")
        return replace(record, places=(*record.places, f"{name}:{frame.group(2)}")) if _is_ours(name) else record
    if (raised := RAISED.match(line)) and (kind := raised.group(1).rpartition(".")[2]) in EXCEPTIONS:
        return replace(record, error=kind)
    return record


def _module(name: str) -> str:
    path = name.replace(".", "/")
    return name if _is_ours(f"{path}.py") or _is_ours(f"{path}/__init__.py") else OTHER


def _is_ours(name: str) -> bool:
    return ".." not in name and (ROOT / name).is_file() and name.partition("/")[0] in ("together", "backends", "webui")
