"""`launch.py keys`, and what the app's terminal shows of its first key. A key's text goes into no log."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import segno
import typer

from together.api.keys import ID, ApiKey, KeyFile
from together.cluster_types import address_text
from together.commands import USUAL
from together.desktop.client import RunningApp, find_running
from together.desktop.show import print_line, print_table
from together.errors import BadSetting, TogetherError
from together.head.reach import likely_first, network_scheme
from together.requests import LOCAL, Owner
from together.settings import load_settings
from together.wording import quoted

app = typer.Typer(
    add_completion=False, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
FIRST = "first"  # what the key is called that the first start makes
AsJson = Annotated[bool, typer.Option("--json", help="For programs")]


@app.callback()
def keys(context: typer.Context, as_json: AsJson = False) -> None:
    """Keys for browsers and programs of other machines: their names, never the keys themselves."""
    if context.invoked_subcommand is None:
        list_command(as_json)


@app.command("list", help="The keys by name and id.")
def list_command(as_json: AsJson = False) -> None:
    found = KeyFile.of(load_settings()).kept()
    if as_json:
        print(json.dumps({"keys": [{"id": key.id, "name": key.name, "made": key.made} for key in found]}, indent=2))
    elif not found:
        print_line(f"there is no key; make one: {USUAL} keys make phone")
    else:
        print_table(("name", "id", "made"), [(key.name, key.id, _day(key)) for key in found])


@app.command("make", help="A new key, which is shown once.")
def make_command(name: Annotated[str, typer.Argument(help="What it is for, as phone or open-webui")]) -> None:
    _show_once("made", KeyFile.make, name)


@app.command("renew", help="A new text for a key, which is shown once; what the key owns stays. The old one ends.")
def renew_command(name: Annotated[str, typer.Argument(help="Its name or id")]) -> None:
    _show_once("renewed", KeyFile.renew, name)


@app.command("revoke", help="End a key: what it has open, browsers too, ends within seconds. What it owns stays.")
def revoke_command(name: Annotated[str, typer.Argument(help="Its name or id")]) -> None:
    gone = KeyFile.of(load_settings()).revoke(name)
    print_line(f"the key {gone.name} is revoked; what the app keeps of its chats stays, and nobody finds it")
    print_line(f"  to delete that:            {USUAL} forget --texts --key {gone.id}")


def _show_once(done: str, order: Callable[[KeyFile, str], tuple[ApiKey, str]], name: str) -> None:
    settings = load_settings()
    key, text = order(KeyFile.of(settings), name)
    print_line(f"the key {key.name} is {done}; it is shown this once:")
    show_key(text, page_of(find_running(settings.home_path)))


def _day(key: ApiKey) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(key.made))


def owner_of(name: str, keys: KeyFile) -> Owner:
    """Whose what that key asks for is: `local` is what is asked without one. Raises BadSetting.

    An id may be that of a revoked key, which nothing but what it owns knows.
    """
    if name == LOCAL:
        return LOCAL
    found = next((key for key in keys.kept() if name in (key.name, key.id)), None)
    if found is None and not re.fullmatch(ID, name):
        raise BadSetting("there is no key {name}; see: python3 launch.py keys list", name=quoted(name))
    return Owner(found.id if found is not None else name)


# --- what is shown once -----------------------------------------------------------------------------------------------


def first_key(keys: KeyFile, *, seen: bool) -> str:
    """The text of a new key where there is none yet, else nothing. Raises AppError.

    `seen`: what is said goes to a terminal. In a file, as a service's journal, a key would be there for good, and none
    is made.
    """
    return "" if not seen or keys.kept() else keys.make(FIRST)[1]


def show_key(key: str, page: str) -> None:
    """`page` is its address for other machines; empty where none is known. Past the log."""
    for line in key_lines(key, page):
        print(line, flush=True)


def key_lines(key: str, page: str) -> Iterator[str]:
    yield f"  key for programs:          {key}"
    if not page:
        return
    link = f"{page}/?key={key}"
    yield f"  link that opens the page:  {link}"
    if _draws(drawing := qr_code(link)):
        yield drawing


def qr_code(text: str) -> str:
    """Of half blocks, for a terminal; light on dark, as most are."""
    drawn = io.StringIO()
    segno.make(text, error="l", micro=False).terminal(out=drawn, border=2, compact=True)
    return drawn.getvalue().rstrip("\n")


def _draws(drawing: str) -> bool:
    """Whether this is a terminal whose letters can draw it."""
    try:
        drawing.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return sys.stdout.isatty()


def reached_at(running: RunningApp) -> str:
    """How other machines reach the page, for a person; empty where they do not."""
    page = page_of(running)
    if not page:
        return ""
    clear = "in the clear (--plain-http): let nobody reach it but a proxy of yours that encrypts"
    return f"other machines: {page}, {clear if running.plain else 'with a key'}"


def page_of(running: RunningApp | None) -> str:
    """Where other machines find the page of the running app; empty where they do not."""
    try:
        at = running.status().endpoint if running is not None else None
    except TogetherError:
        return ""
    if running is None or at is None or not running.network:
        return ""
    return f"{network_scheme(running.plain)}://{address_text(likely_first(at.addresses)[0], running.network)}"
