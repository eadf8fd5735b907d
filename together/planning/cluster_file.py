"""The cluster file: JSON to a problem and back. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
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
        raise BadSetting(f"the cluster file is not JSON: {error}") from None
    top = _Fields("", data, ("model", "nodes", "links", "hop_ms", "head", "users", "context", "tolerance"))
    model = _model(top.take("model"))
    nodes = tuple(_node(f"nodes[{i}]", item) for i, item in enumerate(top.items("nodes", required=True)))
    names = _names(nodes)
    return Problem(
        model,
        nodes,
        _links([_link(f"links[{i}]", item, names) for i, item in enumerate(top.items("links"))]),
        top.number("hop_ms", HOP_MS),
        _head(top, names),
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
    """An object of the file, its path for sentences, and the keys it may have."""

    path: str
    data: Any
    known: tuple[str, ...]

    def __post_init__(self) -> None:
        where = self.path or "the cluster file"
        if not isinstance(self.data, dict):
            raise BadSetting(f"{where} must be an object with {', '.join(self.known)}")
        for key in self.data:
            if key not in self.known:
                raise BadSetting(f"{self.name(key)} is not known; {where} may have {', '.join(self.known)}")

    def name(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def has(self, key: str) -> bool:
        return key in self.data

    def take(self, key: str) -> Any:
        if key not in self.data:
            raise BadSetting(f"{self.name(key)} is missing")
        return self.data[key]

    def text(self, key: str) -> str:
        value = self.take(key)
        if not isinstance(value, str) or not value.strip():
            raise BadSetting(f"{self.name(key)} must be a name, not {_shown(value)}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.take(key) if default is None else self.data.get(key, default)
        return _number(self.name(key), value)

    def whole(self, key: str, default: int | None = None, least: int = 0) -> int:
        value = self.take(key) if default is None else self.data.get(key, default)
        number = _number(self.name(key), value)
        if number != int(number) or number < least:
            raise BadSetting(f"{self.name(key)} must be a whole number, at least {least}, not {_shown(value)}")
        return int(number)

    def items(self, key: str, required: bool = False) -> list[Any]:
        value = self.take(key) if required else self.data.get(key, [])
        if not isinstance(value, list):
            raise BadSetting(f"{self.name(key)} must be a list, not {_shown(value)}")
        return value


def _number(name: str, value: object) -> float:
    """A finite number, at least 0; whole ones stay exact."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value) or value < 0:
        raise BadSetting(f"{name} must be a number, at least 0, not {_shown(value)}")
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
    fields = _Fields(
        "model",
        data,
        ("layers", "layer_bytes", "embed_bytes", "head_bytes", "kv_bytes_per_token_per_layer", "tied_bytes"),
    )
    layers = fields.whole("layers", least=1)
    if layers > MOST_LAYERS:
        raise BadSetting(f"model.layers must be at most {MOST_LAYERS}, not {layers}")
    return ModelSize(
        _layer_bytes(fields, layers),
        fields.number("embed_bytes", 0),
        fields.number("head_bytes", 0),
        fields.number("kv_bytes_per_token_per_layer", 0),
        _tied_bytes(fields),
    )


def _tied_bytes(fields: _Fields) -> float:
    tied = fields.number("tied_bytes", 0)
    for key in ("embed_bytes", "head_bytes"):
        if tied > fields.number(key, 0):
            raise BadSetting(f"{fields.name('tied_bytes')} is in both ends: it must be at most {fields.name(key)}")
    return tied


def _layer_bytes(fields: _Fields, layers: int) -> tuple[float, ...]:
    value = fields.data.get("layer_bytes", 0)
    if not isinstance(value, list):
        return (fields.number("layer_bytes", 0),) * layers
    if len(value) != layers:
        raise BadSetting(f"model.layer_bytes has {len(value)} numbers, and model.layers is {layers}")
    return tuple(_number(f"model.layer_bytes[{i}]", item) for i, item in enumerate(value))


def _node(path: str, data: Any) -> NodeProfile:
    known = (
        "name",
        "ms_per_layer",
        "ms_per_stage",
        "ms_per_head",
        "max_layers",
        "free_bytes",
        "reserve_bytes",
        "processor",
    )
    fields = _Fields(path, data, known)
    name, speed = fields.text("name"), fields.number("ms_per_layer")
    overhead, reserve = fields.number("ms_per_stage", 0), fields.number("reserve_bytes", 0)
    head = fields.number("ms_per_head", 0)
    processor = fields.text("processor") if fields.has("processor") else ""
    if fields.has("max_layers") == fields.has("free_bytes"):
        raise BadSetting(f"{path} ({name}) must have either max_layers or free_bytes")
    if fields.has("max_layers"):
        if reserve:
            raise BadSetting(f"{path}.reserve_bytes goes with free_bytes, not with max_layers")
        return NodeProfile(name, speed, overhead, fields.whole("max_layers"), ms_per_head=head, processor=processor)
    free = fields.number("free_bytes")
    return NodeProfile(name, speed, overhead, None, free, reserve, head, processor)


def _names(nodes: tuple[NodeProfile, ...]) -> set[str]:
    if not nodes:
        raise BadSetting("nodes must name at least one node")
    if len(nodes) > MOST_NODES:
        raise BadSetting(f"nodes may have at most {MOST_NODES} entries, not {len(nodes)}")
    seen: set[str] = set()
    for index, node in enumerate(nodes):
        if node.name in seen:
            raise BadSetting(f"nodes[{index}].name: {node.name} stands twice; every node needs its own name")
        seen.add(node.name)
    return seen


def _link(path: str, data: Any, names: set[str]) -> tuple[str, Link]:
    fields = _Fields(path, data, ("a", "b", "ms"))
    ends = fields.text("a"), fields.text("b")
    for key, name in zip("ab", ends, strict=True):
        if name not in names:
            raise BadSetting(f"{path}.{key}: there is no node {name}")
    if ends[0] == ends[1]:
        raise BadSetting(f"{path} links {ends[0]} with itself; a hop within a machine costs nothing")
    ms = None if fields.take("ms") is None else fields.number("ms")
    return path, Link(*ends, ms)


def _links(found: list[tuple[str, Link]]) -> tuple[Link, ...]:
    seen: set[frozenset[str]] = set()
    for path, link in found:
        pair = frozenset((link.a, link.b))
        if pair in seen:
            raise BadSetting(f"{path}: the link between {link.a} and {link.b} stands twice")
        seen.add(pair)
    return tuple(link for _, link in found)


def _head(top: _Fields, names: set[str]) -> str | None:
    if top.data.get("head") is None:
        return None
    head = top.text("head")
    if head not in names:
        raise BadSetting(f"head: there is no node {head}")
    return head


def problem_json(problem: Problem) -> dict[str, Any]:
    """The documented format; `parse_cluster` of its JSON text gives the same problem."""
    return {
        "model": _model_json(problem.model),
        "nodes": [_node_json(node) for node in problem.nodes],
        "links": [{"a": link.a, "b": link.b, "ms": link.ms} for link in problem.links],
        "hop_ms": problem.hop_ms,
        "head": problem.head,
        "users": problem.users,
        "context": problem.context,
        "tolerance": problem.tolerance,
    }


def _model_json(model: ModelSize) -> dict[str, Any]:
    alike = len(set(model.layer_bytes)) == 1
    return {
        "layers": model.layers,
        "layer_bytes": model.layer_bytes[0] if alike else list(model.layer_bytes),
        "embed_bytes": model.embed_bytes,
        "head_bytes": model.head_bytes,
        "tied_bytes": model.tied_bytes,
        "kv_bytes_per_token_per_layer": model.kv_bytes_per_token_per_layer,
    }


def _node_json(node: NodeProfile) -> dict[str, Any]:
    times = {"ms_per_layer": node.ms_per_layer, "ms_per_stage": node.ms_per_stage, "ms_per_head": node.ms_per_head}
    shared = {"processor": node.processor} if node.processor else {}
    if node.free_bytes is None:
        return {"name": node.name, **times, **shared, "max_layers": node.max_layers}
    return {"name": node.name, **times, **shared, "free_bytes": node.free_bytes, "reserve_bytes": node.reserve_bytes}
