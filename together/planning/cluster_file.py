"""The measured cluster file: what each node was measured to do, to a problem and back. Pure.

`machine_file.py` reads the other form, which names kinds of machines.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, fields
from typing import Any

from together.errors import BadSetting
from together.planning.fields import Fields, shown
from together.planning.problem import CONTEXT, HOP_MS, TOLERANCE, Link, ModelSize, NodeProfile, Problem
from together.planning.units import BYTES, MS
from together.wording import quoted

MOST_LAYERS = 1_000  # far above any model and any cluster: a wrong number must not take all memory
MOST_NODES = 128
_OPTIONAL = ("processor", "size", "ms_per_step", "shared")  # of a node: not written where they say nothing
_SILENT = ("bytes_per_sequence_per_layer", "joined")  # the same of a model


def parse_cluster(text: str) -> Problem:
    """A measured file, as JSON or TOML. Raises BadSetting for anything but a whole, consistent problem."""
    return problem_of_data(read_data(text))


def read_data(text: str) -> Any:
    """What the text holds: JSON where it begins with a brace or is an empty list, else TOML. Raises BadSetting."""
    json_text = text.lstrip().startswith(("{", "[]"))
    try:
        return json.loads(text, object_pairs_hook=_no_repeats) if json_text else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        form = "JSON" if json_text else "TOML"
        raise BadSetting("the cluster file is not {form}: {error}", form=form, error=str(error)) from None


def problem_of_data(data: Any) -> Problem:
    """Raises BadSetting for anything but a whole, consistent problem."""
    top = Fields("", data, tuple(key for key in _keys(Problem) if key != "smaller"))
    model = _model("model", top.take("model"))
    items = top.items("nodes", required=True)
    nodes = tuple(_node(f"nodes[{i}]", item, model.layers) for i, item in enumerate(items))
    names = distinct_names("nodes", [node.name for node in nodes])
    return Problem(
        model,
        nodes,
        _links(top.items("links"), names),
        top.number("hop_ms", HOP_MS, MS),
        top.one_of("head", names, "node") if data.get("head") is not None else None,
        top.whole("users", 1, least=1),
        top.whole("context", CONTEXT, least=1),
        top.number("tolerance", TOLERANCE),
        head_step_ms=top.number("head_step_ms", 0, MS),
        head_row_ms=top.number("head_row_ms", 0, MS),
    )


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {quoted(key)} stands twice in one object")
        found[key] = value
    return found


def _keys(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _model(path: str, data: Any, layers: int | None = None) -> ModelSize:
    """A model's sizes; those that a node has of its own are of as many `layers` as the model."""
    found = Fields(path, data, (*(() if layers else ("layers",)), *_keys(ModelSize)[:-1]))
    layers, tied = layers or found.whole("layers", least=1), found.number("tied_bytes", 0, BYTES)
    if layers > MOST_LAYERS:
        raise BadSetting("model.layers must be at most {most}, not {layers}", most=MOST_LAYERS, layers=layers)
    for key in ("embed_bytes", "head_bytes"):
        if tied > found.number(key, 0, BYTES):
            raise BadSetting("{path}.tied_bytes is in both ends: it must be at most {path}.{key}", path=path, key=key)
    size = found.each("layer_bytes", layers, 0, BYTES)
    return ModelSize(
        size if isinstance(size, tuple) else (size,) * layers,
        found.number("embed_bytes", 0, BYTES),
        found.number("head_bytes", 0, BYTES),
        found.number("kv_bytes_per_token_per_layer", 0, BYTES),
        tied,
        found.number("bytes_per_sequence_per_layer", 0, BYTES),
        _joined(found, layers),
    )


def _joined(found: Fields, layers: int) -> tuple[int, ...]:
    """Layers that no stage may begin with. Raises BadSetting."""
    given = found.items("joined")
    for layer in given:
        if type(layer) is not int or not 0 < layer < layers:
            raise BadSetting(
                "{key} must list layers behind the first one, up to {last}, not {layer}",
                key=found.name("joined"),
                last=layers - 1,
                layer=shown(layer),
            )
    return tuple(sorted(set(given)))


def _node(path: str, data: Any, layers: int) -> NodeProfile:
    """`ms_per_layer` is one number, or one for each layer where there are kinds of layers."""
    found = Fields(path, data, tuple(key for key in _keys(NodeProfile) if key != "layer_ms"))
    name, by_count = found.text("name"), "max_layers" in data
    if by_count == ("free_bytes" in data):
        raise BadSetting("{entry} ({name}) must have either max_layers or free_bytes", entry=path, name=name)
    if by_count and found.number("reserve_bytes", 0, BYTES):
        raise BadSetting("{entry}.reserve_bytes goes with free_bytes, not with max_layers", entry=path)
    ms = found.each("ms_per_layer", layers, unit=MS)
    return NodeProfile(
        name,
        sum(ms) / layers if isinstance(ms, tuple) else ms,
        found.number("ms_per_stage", 0, MS),
        found.whole("max_layers") if by_count else None,
        None if by_count else found.number("free_bytes", unit=BYTES),
        found.number("reserve_bytes", 0, BYTES),
        found.number("ms_per_head", 0, MS),
        found.text("processor") if "processor" in data else "",
        ms if isinstance(ms, tuple) else (),
        _model(f"{path}.size", data["size"], layers) if "size" in data else None,
        found.number("ms_per_step", 0, MS),
        found.share("shared"),
    )


def distinct_names(key: str, names: list[str]) -> tuple[str, ...]:
    """The names of the entries of a list. Raises BadSetting where there is none, too many, or one twice."""
    if not names:
        raise BadSetting("{key} must name at least one", key=key)
    if len(names) > MOST_NODES:
        raise BadSetting(
            "{key} may have at most {most} entries, not {count}", key=key, most=MOST_NODES, count=len(names)
        )
    for index, name in enumerate(names):
        if name in names[:index]:
            raise BadSetting(
                "{key}[{entry}].name: {name} stands twice; every one needs its own name",
                key=key,
                entry=index,
                name=name,
            )
    return tuple(names)


def _links(items: list[Any], names: tuple[str, ...]) -> tuple[Link, ...]:
    found: list[Link] = []
    seen: set[frozenset[str]] = set()
    for index, data in enumerate(items):
        link = Fields(f"links[{index}]", data, _keys(Link))
        a, b = ends_of(link, names, "node", seen)
        ms = link.number("ms", unit=MS) if "ms" not in data or data["ms"] is not None else None
        found.append(Link(a, b, ms))
    return tuple(found)


def ends_of(link: Fields, names: tuple[str, ...], what: str, seen: set[frozenset[str]]) -> tuple[str, str]:
    """What a link is between; `seen` has the pairs before it and learns this one. Raises BadSetting for no new pair.

    `what`: the kind of thing that has these names.
    """
    a, b = link.one_of("a", names, what), link.one_of("b", names, what)
    if a == b:
        message = "{link} links {name} with itself; a hop within a machine costs nothing"
        raise BadSetting(message, link=link.path, name=a)
    if frozenset((a, b)) in seen:
        raise BadSetting("{link}: the link between {a} and {b} stands twice", link=link.path, a=a, b=b)
    seen.add(frozenset((a, b)))
    return a, b


def problem_json(problem: Problem) -> dict[str, Any]:
    """The documented format; `parse_cluster` of its JSON text gives the same problem."""
    model = {"layers": problem.model.layers} | _size_json(problem.model)
    links = [asdict(link) for link in problem.links]
    whole = asdict(problem) | {"model": model, "nodes": [_node_json(node) for node in problem.nodes], "links": links}
    silent = {"smaller", *(key for key in ("head_step_ms", "head_row_ms") if not whole[key])}
    return {key: value for key, value in whole.items() if key not in silent}


def _node_json(node: NodeProfile) -> dict[str, Any]:
    """Without what does not count for it."""
    silent = {"free_bytes", "reserve_bytes"} if node.free_bytes is None else {"max_layers"}
    silent |= {key for key in _OPTIONAL if not getattr(node, key)} | {"layer_ms"}
    found = {key: value for key, value in asdict(node).items() if key not in silent}
    found |= {"ms_per_layer": list(node.layer_ms)} if node.layer_ms else {}
    return found | ({"size": _size_json(node.size)} if node.size else {})


def _size_json(size: ModelSize) -> dict[str, Any]:
    each = size.layer_bytes
    found = asdict(size) | {"layer_bytes": each[0] if len(set(each)) == 1 else list(each)}
    found |= {"joined": list(size.joined)}
    del found["caches"]  # a file has the largest for all layers
    return {key: value for key, value in found.items() if value or key not in _SILENT}
