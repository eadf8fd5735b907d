"""Options that several commands share, and what they stand for: settings, models, plans, the running app."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from together.cluster_types import Endpoint
from together.desktop.show import Formatter
from together.errors import BadPlan, BadSetting
from together.settings import Settings, load_settings

if TYPE_CHECKING:
    from together.desktop.client import RunningApp
    from together.planning.request import PlanRequest

DEFAULTS = Settings()

LogLevel = Annotated[str | None, typer.Option(help=f"DEBUG, INFO, WARNING or ERROR  [default: {DEFAULTS.log_level}]")]
Host = Annotated[str | None, typer.Option(help=f"Where to listen; 0.0.0.0 is the network  [default: {DEFAULTS.host}]")]
Peers = Annotated[list[str] | None, typer.Option("--peer", help="host:port of a node, where machines do not find it")]
WithParent = Annotated[bool, typer.Option("--with-parent", hidden=True)]
Backend = Annotated[str | None, typer.Option(help="torch, mlx or checksum  [default: what fits this machine]")]
Memory = Annotated[str | None, typer.Option(help="What a node may use, as 8GB  [default: all that is free]")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs")]
Strategy = Annotated[
    str | None, typer.Option(help="recommend, uniform, memory, compute, mixed, ratio or custom  [default: recommend]")
]
Users = Annotated[int | None, typer.Option(min=1, help=f"People at once  [default: {DEFAULTS.users}, or what fits]")]
SamplingDefault = Annotated[
    str | None,
    typer.Option("--sampling", help="Where a request is silent: default is the author's values, plain cuts nothing"),
]
Context = Annotated[
    int | None, typer.Option(min=1, help=f"Tokens of each conversation  [default: {DEFAULTS.context}, or what fits]")
]
Layers = Annotated[
    str | None, typer.Option(help="Layers of each stage, as studio=0:8,mini=8:16 or 0:8,8:16  [default: recommended]")
]


def settings_with(**given: object) -> Settings:
    """Settings with a command's options over them, and the log at their level. Raises BadSetting."""
    settings = load_settings(None, **given)
    level = settings.log_level.upper()
    if level not in logging.getLevelNamesMapping():
        raise BadSetting(f"there is no log level {settings.log_level!r}; choose DEBUG, INFO, WARNING or ERROR")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they log a line per request
    return settings


def running_app(log_level: str | None = None) -> RunningApp:
    """This user's app. Raises AppError where none runs."""
    from together.desktop.client import require_running

    return require_running(settings_with(log_level=log_level).home_path)


def given(**options: object) -> dict[str, object]:
    """The options that have a value, as the body of a request to the running app."""
    return {name: value for name, value in options.items() if value is not None}


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
    from together.weights.find import resolve_model

    found = resolve_model(text, settings.home_path)
    return str(found.resolve()) if isinstance(found, Path) else text


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
    from together.models.spec import read_spec
    from together.planning.request import parse_request
    from together.planning.score import range_violations
    from together.weights.find import BUNDLED

    request = parse_request(usual, strategy, layers=layers, users=users, context=context)
    folder = BUNDLED if model is None else Path(model)
    if request.assignments and folder.is_dir():
        wrong = range_violations([item.layers for item in request.assignments], read_spec(folder).layers)
        if wrong:
            raise BadPlan(f"--layers: {wrong[0]}")
    return request
