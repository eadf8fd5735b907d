"""What stands behind an option, as our types: layers, peers, a saved plan. Knows no command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from together.cluster_types import Endpoint
from together.errors import BadPlan, BadSetting
from together.models.spec import read_spec
from together.planning.parse import parse_request
from together.planning.request import PlanRequest
from together.planning.score import range_violations
from together.settings import Settings
from together.weights.find import BUNDLED, resolve_model


def endpoint_of(text: str) -> Endpoint:
    """`"10.0.0.5:47600"` or `"[::1]:47600"` → Endpoint. Raises BadSetting."""
    host, colon, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise BadSetting(f"--peer {text!r} is not host:port, as 192.168.1.20:47600")
    return Endpoint((host,), int(port))


def model_of(text: str | None, settings: Settings) -> str | None:
    """`--model` as any process of ours understands it. Raises BadSetting where no model can be."""
    if text is None:
        return None
    found = resolve_model(text, settings.home_path)
    return str(found.resolve()) if isinstance(found, Path) else text


def order_of(**options: object) -> dict[str, object]:
    """The options that were given, as an order to the running app."""
    return {name: value for name, value in options.items() if value is not None}


def request_of(
    model: str | None,
    usual: str,
    strategy: str | None = None,
    layers: str | None = None,
    users: int | None = None,
    context: int | None = None,
) -> PlanRequest:
    """How a model is to be split; `layers` are checked against the model where it is on this machine.

    Raises BadPlan or BadSetting.
    """
    request = parse_request(usual, strategy, layers=layers, users=users, context=context)
    folder = BUNDLED if model is None else Path(model)
    if request.assignments and folder.is_dir():
        wrong = range_violations([item.layers for item in request.assignments], read_spec(folder).layers)
        if wrong:
            raise BadPlan(f"--layers: {wrong[0]}")
    return request


def saved_plan(path: Path) -> tuple[str, int | None, int | None]:
    """A file of `plan --json` as what `--layers` takes, with the context and users it was made for.

    Raises BadSetting for anything else.
    """
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8-sig"))
        stages = [(str(stage["node"]), int(stage["start"]), int(stage["stop"])) for stage in data["stages"]]
        sizing = [data[key] if isinstance(data.get(key), int) else None for key in ("context", "users")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadSetting(f"--plan {path} is not what together plan --json writes ({error})") from None
    return ",".join(f"{node}={start}:{stop}" for node, start, stop in stages), sizing[0], sizing[1]
