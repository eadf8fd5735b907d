"""`launch.py tools`: servers of tools for the chats. Programs come in here alone; the running app sees them at once."""

from __future__ import annotations

import json
import os
import shutil
from typing import Annotated

import typer

from together.api.keys import KeyFile
from together.commands import USUAL
from together.desktop.keys import owner_of
from together.desktop.show import print_line, print_table
from together.errors import BadSetting
from together.requests import LOCAL, Owner
from together.settings import load_settings
from together.tools.servers import ServerFile, ToolServer
from together.wording import quoted

app = typer.Typer(
    add_completion=False, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
AsJson = Annotated[bool, typer.Option("--json", help="For programs")]
Whose = Annotated[
    str, typer.Option("--key", metavar="NAME", help="For the chats of that key, not of this machine's own page")
]


@app.callback()
def tools(context: typer.Context, as_json: AsJson = False) -> None:
    """Servers of tools (MCP) that the models of chats may call."""
    if context.invoked_subcommand is None:
        list_command(as_json)


@app.command("list", help="The servers by name.")
def list_command(as_json: AsJson = False, key: Whose = LOCAL) -> None:
    servers, owner = _servers(key)
    found = servers.of(owner)
    rows = [(server.name, "program" if server.command else "address", server.shown) for server in found]
    if as_json:
        names = ("name", "kind", "at")
        print(json.dumps({"servers": [dict(zip(names, row, strict=True)) for row in rows]}, indent=2))
    elif not found:
        print_line(f"there is no server of tools; add one: {USUAL} tools add NAME http://127.0.0.1:3001/mcp")
        print_line(f"  or a program:              {USUAL} tools add NAME -- PROGRAM ARGUMENTS")
    else:
        print_table(("name", "kind", "at"), rows)


@app.command("add", help="An address (streamable HTTP), or after -- a program that this machine starts.")
def add_command(
    name: Annotated[str, typer.Argument(help="What the chats call it, as files")],
    what: Annotated[list[str], typer.Argument(metavar="ADDRESS|-- PROGRAM", help="http://…, or a command line")],
    secret: Annotated[bool, typer.Option("--secret", help="Ask for the key that the server wants to see")] = False,
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="A variable of the program; may be repeated")
    ] = None,
    key: Whose = LOCAL,
) -> None:
    servers, owner = _servers(key)
    address = what[0] if len(what) == 1 and what[0].startswith(("http://", "https://")) else ""
    servers.add(
        ToolServer(
            name,
            owner,
            url=address,
            command=() if address else (_program(what[0]), *what[1:]),
            folder="" if address else os.getcwd(),
            key=typer.prompt("Key of the server", hide_input=True) if secret else "",
            environment=dict(_variable(each) for each in env or ()),
            anywhere=True,
        )
    )
    print_line(f"the server {name} is added; choose it in the settings of a chat")


@app.command("remove", help="Chats call it no more.")
def remove_command(name: Annotated[str, typer.Argument(help="Its name")], key: Whose = LOCAL) -> None:
    servers, owner = _servers(key)
    servers.remove(owner, name)
    print_line(f"the server {name} is removed")


def _servers(key: str) -> tuple[ServerFile, Owner]:
    """All servers of this user, and whose the command is about. Raises BadSetting."""
    settings = load_settings()
    return ServerFile(settings.config_path), owner_of(key, KeyFile.of(settings))


def _program(name: str) -> str:
    """Where it is. Raises BadSetting for one that is not there."""
    found = shutil.which(name)
    if found is None:
        text = "there is no program {name} here; install it, or give its whole path"
        raise BadSetting(text, name=quoted(name))
    return os.path.abspath(found)


def _variable(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not name or not equals:
        raise BadSetting("{given} is no variable; write it as NAME=VALUE", given=quoted(given))
    return name, value
