"""A plan's options as text: who takes which layers, a ratio, a dtype. Read once, where the text comes in."""

from __future__ import annotations

import re

from together.errors import BadPlan, BadSetting
from together.planning.problem import Assignment
from together.planning.request import PlanRequest
from together.planning.strategies import NEEDS_LAYERS
from together.settings import parse_bytes
from together.types import DTYPES, Dtype, LayerRange
from together.wording import quoted


def parse_request(
    usual: str,
    strategy: str | None = None,
    *,
    users: int | None = None,
    context: int | None = None,
    ratio: str | None = None,
    layers: str | None = None,
    max_memory: str | None = None,
    tolerance: float | None = None,
) -> PlanRequest:
    """A request as people and programs write it; without a strategy, layers are a custom split, else it is the usual.

    Raises BadSetting or BadPlan for text that cannot be read.
    """
    return PlanRequest(
        strategy=strategy or ("custom" if layers else usual),
        users=users,
        context=context,
        ratio=() if ratio is None else parse_ratio(ratio),
        assignments=() if layers is None else parse_layers(layers),
        max_bytes=None if max_memory is None else parse_bytes(max_memory),
        tolerance=tolerance,
    )


def parse_dtype(text: str) -> Dtype:
    """Raises BadSetting."""
    for dtype in DTYPES:
        if dtype == text:
            return dtype
    raise BadSetting(f"there is no dtype {quoted(text)}; choose one of {', '.join(DTYPES)}")


def parse_ratio(text: str) -> tuple[float, ...]:
    """`"3:1"` → (3, 1). Raises BadSetting."""
    try:
        return tuple(float(part) for part in text.split(":"))
    except ValueError:
        raise BadSetting(f"--ratio {quoted(text)} is not numbers with colons between, as 3:1") from None


# The number ends a part, not the comma: node names may contain commas.
_RANGE = re.compile(r"\s*(?:(?P<node>.+?)=)?(?P<start>[0-9]{1,9})(?P<kind>[:-])(?P<end>[0-9]{1,9})\s*(?:,|$)")


def parse_layers(text: str) -> tuple[Assignment, ...]:
    """`"studio=0:12,mini=12:16"`, or `"0:12,12:16"` without names; `"0-11,12-15"` names each range's last layer.

    Raises BadSetting for anything else, BadPlan for an empty range.
    """
    parts: list[re.Match[str]] = []
    while (place := parts[-1].end() if parts else 0) < len(text) and (part := _RANGE.match(text, place)):
        parts.append(part)
    if place < len(text) or text.endswith(",") or len({part["kind"] for part in parts}) != 1:
        raise BadSetting(f"--layers {quoted(text)} is not {NEEDS_LAYERS}")
    if len({part["node"] is None for part in parts}) != 1:
        raise BadSetting("--layers must name the node of every range, or of none")
    return tuple(Assignment(part["node"] or "", _layers(part)) for part in parts)


def _layers(part: re.Match[str]) -> LayerRange:
    start, end = int(part["start"]), int(part["end"])
    try:
        return LayerRange(start, end + 1 if part["kind"] == "-" else end)
    except ValueError as error:
        raise BadPlan(f"--layers: {error}") from None
