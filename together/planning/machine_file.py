"""The cluster file that a person writes: machines by kind or by their figures, and the network between them. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Protocol

from together.errors import BadSetting
from together.planning.cluster_file import distinct_names, ends_of
from together.planning.fields import Fields, shown
from together.planning.kinds import Kind, NamedKind, find_kind, no_such_kind
from together.planning.kinds_table import KINDS
from together.planning.machines import Machine
from together.planning.network import USUAL, Way, Wire, wire_of
from together.planning.problem import CONTEXT, TOLERANCE
from together.planning.units import GB_PER_S, GIGABYTES, MS, TFLOPS

HERE = "this machine"
TOP = ("model", "weights", "context", "users", "network", "head", "machines", "links", "measured", "tolerance")
MACHINE = ("name", "kind", "memory", "usable", "bandwidth", "tflops", "network", "inside")
FIGURES = ("memory", "bandwidth", "tflops")
LINK = ("a", "b", "network", "ms")
_BITS = re.compile(r"([0-9]{1,2})[ -]?bits?")


class OwnMachines(Protocol):
    """One's own machines, measured. Raise TogetherError where they cannot be."""

    def here(self) -> Machine:
        """The machine that plans."""

    def names(self) -> Collection[str]:
        """Those that a running app or a measured file knows; empty where there is neither."""

    def named(self, name: str) -> Machine:
        """One of these."""

    def way(self, a: str, b: str) -> Way | None:
        """Between two of these, or to HERE; None where nobody measured it."""


@dataclass(frozen=True, slots=True)
class MachineEntry:
    """A machine as the file has it, at `path`; None for figures that its kind says."""

    path: str
    name: str
    kind: str | None
    memory_gb: float | None
    usable_gb: float | None
    gb_per_s: float | None
    tflops: float | None
    wire: Wire
    inside: str


@dataclass(frozen=True, slots=True)
class MachineFile:
    """A file of machines. `model` is a name, a config.json, or not given; so are `bits` of its weights."""

    entries: tuple[MachineEntry, ...]
    links: tuple[Way, ...]
    head: str
    model: str | dict[str, Any] | None
    bits: int | None
    context: int
    users: int
    tolerance: float
    measured: str | None  # a file that status --save wrote

    def machines(self, own: OwnMachines) -> tuple[Machine, ...]:
        """By their kinds and figures; one's own as measured. Raises BadSetting for a kind that there is not."""
        return tuple(_machine(entry, own) for entry in self.entries)

    def ways(self, own: OwnMachines) -> tuple[Way, ...]:
        """The file's links, and between one's own machines those that were measured."""
        given = {frozenset((way.a, way.b)) for way in self.links}
        mine = [(entry.name, entry.kind) for entry in self.entries if entry.kind is not None and _is_own(entry, own)]
        measured = [
            replace(way, a=a, b=b)
            for (a, kind), (b, other) in combinations(mine, 2)
            if frozenset((a, b)) not in given and kind != other and (way := own.way(kind, other)) is not None
        ]
        return (*self.links, *measured)


def parse_machines(data: Any) -> MachineFile:
    """Raises BadSetting, with the place, for anything but a whole, consistent file."""
    top = Fields("", data, TOP)
    usual = wire_of("network", top.take("network", USUAL))
    items = [_fields(i, item) for i, item in enumerate(top.items("machines", required=True))]
    names = distinct_names("machines", [item.text("name") for item in items])
    homes = {name: _inside(item, names) for name, item in zip(names, items, strict=True)}
    entries = tuple(_entry(item, usual) for item in items)
    for entry in entries:
        if entry.inside and homes[entry.inside]:
            raise BadSetting(
                "{path}.inside: {name} is inside another machine itself; name that one",
                path=entry.path,
                name=entry.inside,
            )
    seen: set[frozenset[str]] = set()
    links = [_link(f"links[{i}]", item, names, seen) for i, item in enumerate(top.items("links"))]
    model = data.get("model")
    if model is not None and not isinstance(model, dict):
        model = top.text("model")
    return MachineFile(
        entries,
        tuple(links),
        top.one_of("head", names, "machine") if "head" in top else names[0],
        model,
        _bits(top) if "weights" in top else None,
        top.whole("context", CONTEXT, least=1),
        top.whole("users", 1, least=1),
        top.number("tolerance", TOLERANCE),
        top.text("measured") if "measured" in top else None,
    )


def _fields(index: int, data: Any) -> Fields:
    return Fields(f"machines[{index}]", data, MACHINE)


def _inside(item: Fields, names: tuple[str, ...]) -> str:
    if "inside" not in item:
        return ""
    home = item.one_of("inside", names, "machine")
    if home == item.text("name"):
        raise BadSetting("{key} is the machine itself; leave it out", key=item.name("inside"))
    return home


def _entry(item: Fields, usual: Wire) -> MachineEntry:
    name, kind = item.text("name"), item.text("kind") if "kind" in item else None
    memory, speed, work = (
        item.more_than_zero(key, unit) if key in item else None
        for key, unit in zip(FIGURES, (GIGABYTES, GB_PER_S, TFLOPS), strict=True)
    )
    missing = [key for key in FIGURES if key not in item]
    if kind is None and missing:
        raise BadSetting(
            "{entry} ({name}) has no kind, so it needs {missing:and} as well; kinds: python3 launch.py cluster-file "
            "--kinds",
            entry=item.path,
            name=name,
            missing=tuple(missing),
        )
    usable = item.number("usable", unit=GIGABYTES) if "usable" in item else None
    wire = wire_of(item.name("network"), item.take("network")) if "network" in item else usual
    inside = item.text("inside") if "inside" in item else ""
    if inside and "network" in item:
        raise BadSetting(
            "{entry} ({name}) is inside {home} and uses its network; leave network out",
            entry=item.path,
            name=name,
            home=inside,
        )
    return MachineEntry(item.path, name, kind, memory, usable, speed, work, wire, inside)


def _bits(top: Fields) -> int:
    """`4`, `"4 bit"` or `"4-bit"`."""
    value = top.take("weights")
    match = _BITS.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if match is None and (isinstance(value, bool) or not isinstance(value, int)):
        raise BadSetting(
            "{key} must be bits, as {example}, not {value}", key="weights", example='"4 bit"', value=shown(value)
        )
    return int(match[1]) if match else top.whole("weights", least=1)


def _link(path: str, data: Any, names: tuple[str, ...], seen: set[frozenset[str]]) -> Way:
    """With `ms`, or by its network; `none` is no way at all."""
    link = Fields(path, data, LINK)
    a, b = ends_of(link, names, "machine", seen)
    if ("ms" in link) == ("network" in link):
        raise BadSetting("{link} must have either network or ms", link=path)
    if "ms" in link:
        return Way(a, b, None if link.data["ms"] is None else link.number("ms", unit=MS))
    network = link.take("network")
    return Way(a, b, wire=None if network == "none" else wire_of(link.name("network"), network))


# --- from entries to machines -----------------------------------------------------------------------------------------


def _machine(entry: MachineEntry, own: OwnMachines) -> Machine:
    found = _own(entry, own)
    if found is None:
        found = _published(entry, _kind(entry, own) if entry.kind is not None else None)
    elif any(figure is not None for figure in (entry.memory_gb, entry.gb_per_s, entry.tflops)):
        raise BadSetting(
            "{entry} ({name}) is measured, so memory, bandwidth and tflops go without saying; usable may limit it",
            entry=entry.path,
            name=entry.name,
        )
    usable = found.usable_bytes if entry.usable_gb is None else entry.usable_gb * 1e9
    return replace(found, name=entry.name, usable_bytes=usable, wire=entry.wire, inside=entry.inside)


def _own(entry: MachineEntry, own: OwnMachines) -> Machine | None:
    """One's own machine, measured: the one that plans, or where no kind of that name is known, another."""
    if entry.kind is None or not _is_own(entry, own):
        return None
    return own.here() if entry.kind.casefold() == HERE else own.named(entry.kind)


def _is_own(entry: MachineEntry, own: OwnMachines) -> bool:
    kind = entry.kind or ""
    return kind.casefold() == HERE or (_found(entry) is None and kind in own.names())


def _found(entry: MachineEntry) -> NamedKind | None:
    try:
        return find_kind(entry.kind or "", KINDS, entry.memory_gb)
    except BadSetting as error:
        raise BadSetting("{path}.kind: {why}", path=entry.path, why=error.sentence) from None


def _kind(entry: MachineEntry, own: OwnMachines) -> NamedKind:
    found = _found(entry)
    if found is None:
        names = (HERE, *own.names(), *(kind.name for kind in KINDS))
        raise BadSetting(no_such_kind(f"{entry.path}.kind", entry.kind or "", names))
    if found.gb is None:
        size = next((f"{size:g} GB" for kind in KINDS if kind.name == found.kind.name for size in kind.sizes), "32 GB")
        raise BadSetting(
            "{path}.kind: how much memory has {name}? Write kind = {kind}, or beside it memory = {size}",
            path=entry.path,
            name=entry.name,
            kind=f'"{found.kind.name} {size}"',
            size=f'"{size}"',
        )
    return found


def _published(entry: MachineEntry, named: NamedKind | None) -> Machine:
    """By its kind's figures, or by those that stand in the file where they do."""
    kind: Kind | None = named.kind if named else None
    gb = entry.memory_gb if entry.memory_gb is not None else named.gb if named and named.gb is not None else 0.0
    usable = kind.memory.usable(gb) if kind else 0.75 * gb
    speed = entry.gb_per_s if entry.gb_per_s is not None else kind.gb_per_s if kind else 0.0
    work = entry.tflops if entry.tflops is not None else kind.tflops if kind else 0.0
    return Machine.published(entry.name, usable, speed, work)
