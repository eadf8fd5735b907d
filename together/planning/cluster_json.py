"""A problem as the cluster file: the opposite of `cluster_file.parse_cluster`. Knows no disk and no search."""

from __future__ import annotations

from typing import Any

from together.planning.problem import ModelSize, NodeProfile, Problem


def problem_json(problem: Problem) -> dict[str, Any]:
    """The documented format; `parse_cluster` of its JSON text gives the same problem."""
    return {
        "model": _model(problem.model),
        "nodes": [_node(node) for node in problem.nodes],
        "links": [{"a": link.a, "b": link.b, "ms": link.ms} for link in problem.links],
        "hop_ms": problem.hop_ms,
        "head": problem.head,
        "users": problem.users,
        "context": problem.context,
        "tolerance": problem.tolerance,
    }


def _model(model: ModelSize) -> dict[str, Any]:
    alike = len(set(model.layer_bytes)) == 1
    return {
        "layers": model.layers,
        "layer_bytes": model.layer_bytes[0] if alike else list(model.layer_bytes),
        "embed_bytes": model.embed_bytes,
        "head_bytes": model.head_bytes,
        "tied_bytes": model.tied_bytes,
        "kv_bytes_per_token_per_layer": model.kv_bytes_per_token_per_layer,
    }


def _node(node: NodeProfile) -> dict[str, Any]:
    times = {"ms_per_layer": node.ms_per_layer, "ms_per_stage": node.ms_per_stage, "ms_per_head": node.ms_per_head}
    shared = {"processor": node.processor} if node.processor else {}
    if node.free_bytes is None:
        return {"name": node.name, **times, **shared, "max_layers": node.max_layers}
    return {"name": node.name, **times, **shared, "free_bytes": node.free_bytes, "reserve_bytes": node.reserve_bytes}
