"""The commands of the menu that no other group has: open, nodes, machines and copy."""

from __future__ import annotations

import shlex
import sys
import webbrowser
from typing import Annotated

import typer
from typer.core import TyperGroup

from together.commands import as_typed
from together.desktop.cli_models import LogLevel, WithParent, command, running_app, settings_with
from together.desktop.show import print_aside, print_line
from together.errors import AppError, BadSetting
from together.wording import quoted

app = typer.Typer()
PLACES = {"chat": "", "machines": "/machines", "models": "/models", "settings": "/settings"}


@command(app, "open")
def open_page(
    place: Annotated[str, typer.Argument(help="chat, machines, models or settings")] = "chat",
    log_level: LogLevel = None,
) -> None:
    if place not in PLACES:
        raise BadSetting("there is no page {place}; choose chat, machines, models or settings", place=quoted(place))
    running = running_app(log_level)
    shown = running.url + PLACES[place]
    print_line(shown)
    webbrowser.open(running.link if running.plain else shown)  # a key in a link is read at / alone


@command(app, "nodes")
def nodes(
    action: Annotated[str | None, typer.Argument(metavar="[start|stop]", help="Without it they are listed")] = None,
    node: Annotated[str | None, typer.Argument(help="Which one is stopped  [default: it asks]")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing before a node is stopped")] = False,
    log_level: LogLevel = None,
) -> None:
    from together.desktop.own_nodes import list_nodes_here, start_node_here, stop_node_here

    if action not in (None, "start", "stop"):
        raise BadSetting("{action} is nothing that nodes does; choose start or stop", action=quoted(action or ""))
    running = running_app(log_level)
    if action == "start":
        start_node_here(running)
    elif action == "stop":
        stop_node_here(running, input if sys.stdin.isatty() else None, node or "", yes)
    else:
        list_nodes_here(running)


@command(app, "machines")
def machines(log_level: LogLevel = None) -> None:
    from rich.console import Console

    from together.desktop.show import show_machines

    show_machines(running_app(log_level).status(), Console())


@command(app, "update")
def update(
    pulled: Annotated[str, typer.Option("--pulled", hidden=True, help="The commit that the checkout had")] = "",
) -> None:
    if not pulled:
        raise AppError("update begins in launch.py: python3 launch.py update")
    from together.desktop.updating import finish_update

    finish_update(settings_with().home_path, pulled)


@command(app, "at-login", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def at_login(
    context: typer.Context,
    what: Annotated[
        str | None, typer.Argument(metavar="[up|node|off] [OPTIONS]", help="Without it: whether something starts")
    ] = None,
) -> None:
    from together.desktop.at_login import is_on, login_start, switch_off, switch_on, way_here

    way, nothing = way_here(), "nothing of together starts at login"
    if what is None:
        print_line(f"together starts at login, as {way.file} says" if is_on(way) else nothing)
    elif what == "off":
        print_line("nothing starts at login any more" if switch_off(way) else nothing)
    elif what in ("up", "node"):
        usual = ["--no-browser"] if what == "up" and "--browser" not in context.args else []
        words = [what, *usual, *context.args]
        check_words(words)
        switch_on(way, login_start(words))
        print_line(f"from the next login on it starts: {way.file} says {shlex.join(words)}")
    else:
        raise BadSetting("{what} is nothing that starts at login; choose up, node or off", what=quoted(what))


def check_words(words: list[str]) -> None:
    """Raises an error of typer's, now and not at the next login, where the command line would not take these words."""
    from together.desktop.cli import app as line

    group = typer.main.get_command(line)
    assert isinstance(group, TyperGroup)
    name, found, rest = group.resolve_command(typer.Context(group), words)
    assert found is not None
    found.make_context(name, list(rest))


@command(app, "tray")
def tray(with_parent: WithParent = False, log_level: LogLevel = None) -> None:
    from together.desktop.pystray_icon import PystrayIcon
    from together.desktop.tray import run_tray
    from together.processes import leave_with_parent

    if with_parent:
        leave_with_parent()
    settings = settings_with(log_level=log_level)
    if not run_tray(settings.home_path, PystrayIcon):
        print_line("the icon is there already")


@command(app, "copy")
def copy_text(
    what: Annotated[str, typer.Argument(metavar="address|code", help="The API's address, or the join code")],
    log_level: LogLevel = None,
) -> None:
    from together.desktop.clipboard import copy

    if what == "address":
        text, named = f"{running_app(log_level).url}/v1", "the address of the API"
    elif what == "code":
        from together.trust.secret import SecretFile

        text, named = SecretFile(settings_with(log_level=log_level).config_path).code(), "the join code"
    else:
        raise BadSetting("{what} is nothing to copy; choose address or code", what=quoted(what))
    print_line(text)
    print_aside(as_typed(f"{named} is in the clipboard" if copy(text) else f"no clipboard is here: {named} is above"))
