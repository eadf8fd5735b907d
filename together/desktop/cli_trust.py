"""The commands about which machines belong together: join-code, join and leave."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from together.commands import as_typed
from together.desktop.cli_models import command, settings_with
from together.desktop.show import print_aside, print_line
from together.trust.code import secret_of
from together.trust.secret import SecretFile

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer()


@command(app, "join-code")
def show_code(
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Make a new one: machines with the old one are out within seconds")
    ] = False,
) -> None:
    file = SecretFile(settings_with().config_path)
    if rotate:
        file.rotate()
    code = file.code()
    print_line(code)
    if rotate:
        print_aside("a new join code: machines with the old one are out of reach until they join with this one")
    print_aside(as_typed(f"on another machine, run:   python3 launch.py join {code} node --host 0.0.0.0"))


@command(app, "join", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def join(
    context: typer.Context,
    code: Annotated[str, typer.Argument(help="As join-code prints it on a machine that has it; then any command")],
) -> None:
    file = SecretFile(settings_with().config_path)
    secret = secret_of(code)
    if file.known() == secret:
        print_aside("this machine has that join code already")
    else:
        file.put(secret)
        print_aside("this machine now belongs to the machines with that join code; what runs here joins them by itself")
    if context.args:
        _go_on(context.args)


@command(app, "leave")
def leave() -> None:
    SecretFile(settings_with().config_path).rotate()
    print_aside("this machine belongs to no others any more; it has a join code of its own")


def _go_on(arguments: Sequence[str]) -> None:
    """Another command: in a process whose command line, which others on this machine see, does not have the code."""
    if os.name == "posix":
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", "together", *arguments])
    from together.desktop.cli import main

    raise typer.Exit(main(list(arguments)))
