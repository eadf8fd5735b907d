"""The cluster file: JSON to a problem and back. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any

from together.errors import BadSetting
from together.planning.problem import CONTEXT, HOP_MS, TOLERANCE, Link, ModelSize, NodeProfile, Problem
from together.wording import quoted

MOST_LAYERS = 1_000  # far above any model and any cluster: a wrong number must not take all memory
MOST_NODES = 128


def parse_cluster(text: str) -> Problem:
    """Raises BadSetting for anything but a whole, consistent problem."""
    try:
        data = json.loads(text, object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise BadSetting("the cluster file is not JSON: {error}", error=str(error)) from None
    top = _Fields("", data, Problem)
    model = _model(top.take("model"))
    nodes = tuple(_node(f"nodes[{i}]", item) for i, item in enumerate(top.items("nodes", required=True)))
    names = _names(nodes)
    return Problem(
        model,
        nodes,
        _links(top.items("links"), names),
        top.number("hop_ms", HOP_MS),
        top.one_of("head", names) if data.get("head") is not None else None,
        top.whole("users", 1, least=1),
        top.whole("context", CONTEXT, least=1),
        top.number("tolerance", TOLERANCE),
    )


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"the key {quoted(key)} stands twice in one object")
    return dict(pairs)


@dataclass(frozen=True, slots=True)
class _Fields:
    """An object of the file, its path for sentences, and what it becomes: that has the keys it may have."""

    path: str
    data: Any
    kind: type

    def __post_init__(self) -> None:
        where = self.path or "the cluster file"
        own = tuple(field.name for field in fields(self.kind))
        known = ("layers", *own) if self.kind is ModelSize else own
        if not isinstance(self.data, dict):
            raise BadSetting("{where} must be an object with {known}", where=where, known=known)
        for key in self.data:
            if key not in known:
                name = self.name(key)
                raise BadSetting("{key} is not known; {where} may have {known}", key=name, where=where, known=known)

    def name(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def take(self, key: str, default: Any = None) -> Any:
        """`default` None: the key must be there."""
        if key not in self.data and default is None:
            raise BadSetting("{key} is missing", key=self.name(key))
        return self.data.get(key, default)

    def text(self, key: str) -> str:
        value = self.take(key)
        if not isinstance(value, str) or not value.strip():
            raise BadSetting("{key} must be a name, not {value}", key=self.name(key), value=_shown(value))
        return value

    def one_of(self, key: str, names: set[str]) -> str:
        name = self.text(key)
        if name not in names:
            raise BadSetting("{key}: there is no node {name}", key=self.name(key), name=name)
        return name

    def number(self, key: str, default: float | None = None) -> float:
        return _number(self.name(key), self.take(key, default))

    def whole(self, key: str, default: int | None = None, least: int = 0) -> int:
        value = self.take(key, default)
        number, name = _number(self.name(key), value), self.name(key)
        if number != int(number) or number < least:
            wrong = "{key} must be a whole number, at least {least}, not {value}"
            raise BadSetting(wrong, key=name, least=least, value=_shown(value))
        return int(number)

    def items(self, key: str, required: bool = False) -> list[Any]:
        value = self.take(key, None if required else [])
        if not isinstance(value, list):
            raise BadSetting("{key} must be a list, not {value}", key=self.name(key), value=_shown(value))
        return value


def _number(name: str, value: object) -> float:
    """A finite number, at least 0; whole ones stay exact."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value) or value < 0:
        raise BadSetting("{name} must be a number, at least 0, not {value}", name=name, value=_shown(value))
    return int(value) if value == int(value) else value


def _is_finite(value: float) -> bool:
    try:
        return isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _model(data: Any) -> ModelSize:
    found = _Fields("model", data, ModelSize)
    layers, tied = found.whole("layers", least=1), found.number("tied_bytes", 0)
    if layers > MOST_LAYERS:
        raise BadSetting("model.layers must be at most {most}, not {layers}", most=MOST_LAYERS, layers=layers)
    for key in ("embed_bytes", "head_bytes"):
        if tied > found.number(key, 0):
            raise BadSetting("model.tied_bytes is in both ends: it must be at most model.{key}", key=key)
    return ModelSize(
        _layer_bytes(found, layers),
        found.number("embed_bytes", 0),
        found.number("head_bytes", 0),
        found.number("kv_bytes_per_token_per_layer", 0),
        tied,
    )


def _layer_bytes(found: _Fields, layers: int) -> tuple[float, ...]:
    value = found.take("layer_bytes", 0)
    if not isinstance(value, list):
        return (found.number("layer_bytes", 0),) * layers
    if len(value) != layers:
        wrong = "model.layer_bytes has {count} numbers, and model.layers is {layers}"
        raise BadSetting(wrong, count=len(value), layers=layers)
    return tuple(_number(f"model.layer_bytes[{i}]", item) for i, item in enumerate(value))


def _node(path: str, data: Any) -> NodeProfile:
    found = _Fields(path, data, NodeProfile)
    name, by_count = found.text("name"), "max_layers" in data
    if by_count == ("free_bytes" in data):
        raise BadSetting("{entry} ({name}) must have either max_layers or free_bytes", entry=path, name=name)
    if by_count and found.number("reserve_bytes", 0):
        raise BadSetting("{entry}.reserve_bytes goes with free_bytes, not with max_layers", entry=path)
    return NodeProfile(
        name,
        found.number("ms_per_layer"),
        found.number("ms_per_stage", 0),
        found.whole("max_layers") if by_count else None,
        None if by_count else found.number("free_bytes"),
        found.number("reserve_bytes", 0),
        found.number("ms_per_head", 0),
        found.text("processor") if "processor" in data else "",
    )


def _names(nodes: tuple[NodeProfile, ...]) -> set[str]:
    if not nodes:
        raise BadSetting("nodes must name at least one node")
    if len(nodes) > MOST_NODES:
        raise BadSetting("nodes may have at most {most} entries, not {count}", most=MOST_NODES, count=len(nodes))
    seen: set[str] = set()
    for index, node in enumerate(nodes):
        if node.name in seen:
            twice = "nodes[{index}].name: {name} stands twice; every node needs its own name"
            raise BadSetting(twice, index=index, name=node.name)
        seen.add(node.name)
    return seen


def _links(items: list[Any], names: set[str]) -> tuple[Link, ...]:
    found: dict[frozenset[str], Link] = {}
    for index, data in enumerate(items):
        path = f"links[{index}]"
        link = _Fields(path, data, Link)
        a, b = link.one_of("a", names), link.one_of("b", names)
        if a == b:
            raise BadSetting("{link} links {name} with itself; a hop within a machine costs nothing", link=path, name=a)
        if frozenset((a, b)) in found:
            raise BadSetting("{link}: the link between {a} and {b} stands twice", link=path, a=a, b=b)
        ms = link.number("ms") if "ms" not in data or data["ms"] is not None else None
        found[frozenset((a, b))] = Link(a, b, ms)
    return tuple(found.values())


def problem_json(problem: Problem) -> dict[str, Any]:
    """The documented format; `parse_cluster` of its JSON text gives the same problem."""
    sizes = problem.model.layer_bytes
    size = sizes[0] if len(set(sizes)) == 1 else list(sizes)
    model = {"layers": len(sizes)} | asdict(problem.model) | {"layer_bytes": size}
    links = [asdict(link) for link in problem.links]
    return asdict(problem) | {"model": model, "nodes": [_node_json(node) for node in problem.nodes], "links": links}


def _node_json(node: NodeProfile) -> dict[str, Any]:
    """Without what does not count for it."""
    silent = {"free_bytes", "reserve_bytes"} if node.free_bytes is None else {"max_layers"}
    silent |= set() if node.processor else {"processor"}
    return {key: value for key, value in asdict(node).items() if key not in silent}
