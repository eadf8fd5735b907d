"""What commands share: options with their words, settings, the running app. Knows no command."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from together.desktop.show import Formatter
from together.errors import BadSetting
from together.settings import Settings, load_settings

if TYPE_CHECKING:
    from together.desktop.client import RunningApp

DEFAULTS = Settings()

LogLevel = Annotated[str | None, typer.Option(help=f"DEBUG, INFO, WARNING or ERROR  [default: {DEFAULTS.log_level}]")]
Host = Annotated[str | None, typer.Option(help=f"Where to listen; 0.0.0.0 is the network  [default: {DEFAULTS.host}]")]
Peers = Annotated[list[str] | None, typer.Option("--peer", help="host:port of a node, where machines do not find it")]
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
    """Settings with a command's options over them, and the log at their level."""
    import logging

    settings = load_settings(None, **given)
    level = settings.log_level.upper()
    if level not in logging.getLevelNamesMapping():
        raise BadSetting(f"there is no log level {settings.log_level!r}; choose DEBUG, INFO, WARNING or ERROR")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a line per request is no news
    return settings


def running_app(settings: Settings) -> RunningApp:
    from together.desktop.client import require_running

    return require_running(settings.home_path)
