"""The icon in the tray, on a screen of its own: it shows, it clicks, it says where there can be none."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT, RealApp, environment_for, start_app, until
from tests.support.desktop import MISSING, Desktop, virtual_desktop
from tests.support.patience import PATIENCE
from tests.support.stand_ins import program
from together.desktop.client import find_running
from together.desktop.entries import Entry
from together.desktop.tray import Icon, TrayView, run_tray, said_by

screened = pytest.mark.skipif(bool(MISSING), reason=f"missing here: {', '.join(MISSING)} (Debian: xvfb, trayer)")


@pytest.fixture(scope="module")
def desktop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desktop]:
    with virtual_desktop(tmp_path_factory.mktemp("desktop")) as shown:
        yield shown


def tray_command(environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "together", "tray"]
    with log.open("w") as out:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE)


@screened
def test_without_a_tray_it_says_so_and_the_app_goes_on(desktop: Desktop, tmp_path: Path) -> None:
    with start_app(tmp_path, DISPLAY=desktop.display) as app:
        log = tmp_path / "log"
        until(lambda: "no icon is shown: no tray is here (" in log.read_text(), PATIENCE, "it is said")
        assert app.get("/health").status_code == 200
        alone = app.command("tray")
        assert (alone.returncode, alone.stderr) == (
            1,
            "together: no tray is here (the desktop shows no icons of programs)\n",
        )
        assert log.read_text().count("no icon is shown") == 1


@screened
def test_a_click_on_the_app_s_icon_opens_its_chat(desktop: Desktop, tmp_path: Path) -> None:
    """The icon comes with the app, is the only one of its home, and ends with the app."""
    opened = tmp_path / "opened"
    browser = program(tmp_path, "browser", f"echo $1 > {opened}")
    with desktop.tray(tmp_path / "tray.log"):
        with start_app(tmp_path, DISPLAY=desktop.display, BROWSER=str(browser)) as app:
            until(desktop.icons, PATIENCE, "the icon shows")
            (icon,) = desktop.icons()
            until(lambda: "toy is ready on 2 stages" in str(icon.get_wm_name()), PATIENCE, "it says what runs")
            desktop.click(icon)
            until(lambda: opened.exists() and opened.read_text(), PATIENCE, "the chat is opened")
            assert opened.read_text() == f"{app.url}\n"
            second = app.command("tray")
            assert (second.returncode, second.stdout) == (0, "the icon is there already\n")
        until(lambda: not desktop.icons(), PATIENCE, "the icon is gone")
    assert "no icon is shown" not in (tmp_path / "log").read_text()


def test_without_a_screen_it_is_a_sentence(tmp_path: Path) -> None:
    with ended(tray_command(environment_for(tmp_path), tmp_path / "log")) as process:
        assert process.wait(PATIENCE) == 1
    assert (tmp_path / "log").read_text().startswith("together: no tray is here (")


class Written:
    """An icon of this test: what it is told, it keeps. Implements `Icon`."""

    def __init__(self) -> None:
        self.shown: list[TrayView] = []
        self.told: list[str] = []
        self.closed = threading.Event()

    def run(self, begun: Callable[[], None]) -> None:
        begun()
        assert self.closed.wait(PATIENCE)

    def show(self, shown: TrayView) -> None:
        self.shown.append(shown)

    def tell(self, text: str) -> None:
        self.told.append(text)

    def close(self) -> None:
        self.closed.set()


def test_the_menu_follows_what_runs_and_tells_what_was_done(real_app: RealApp, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in real_app.environment.items():
        monkeypatch.setenv(name, value)
    icon, acts = Written(), list[Callable[[Entry], None]]()

    def make(act: Callable[[Entry], None]) -> Icon:
        acts.append(act)
        return icon

    running = threading.Thread(target=run_tray, args=(real_app.home, make))
    running.start()
    try:
        until(lambda: icon.shown, PATIENCE, "the menu is shown")
        shown = icon.shown[-1]
        assert (shown.runs, shown.line) == (True, "toy is ready on 2 stages; 1 machine")
        found = {entry.name: entry for entry in shown.entries}
        acts[0](found["copy_address"])
        until(lambda: icon.told, PATIENCE, "it is told")
        assert icon.told == [f"{real_app.url}/v1"]
    finally:
        icon.close()
        running.join()


def test_what_fails_is_told_by_its_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOGETHER_HOME", str(tmp_path))
    assert said_by(Entry("x", "X", ("nodes", "start"))).startswith("together is not running; start it with: ")
    assert find_running(tmp_path) is None


MENU = """
import json, os
from together.desktop.entries import Entry, EntryState
from together.desktop.pystray_icon import PystrayIcon
from together.desktop.tray import TrayView
done = []
icon = PystrayIcon(lambda entry: done.append(entry.name))
entries = (
    Entry("chat", "Open\\x1b the chat", ("open",)),
    Entry("stop_node", "Stop", ("nodes", "stop"), EntryState.OFF),
    Entry("login", "At login", ("at-login", "off"), EntryState.TICKED),
)
icon.show(TrayView(True, "toy is ready", entries))
items = [item for item in icon._icon.menu.items if item is not icon._library.Menu.SEPARATOR]
items[0](icon._icon)
print(json.dumps([*([item.text, item.enabled, item.checked, item.default] for item in items), done]), flush=True)
os._exit(0)
"""


@screened
def test_the_menu_of_the_library_has_every_entry(desktop: Desktop, tmp_path: Path) -> None:
    """Plain X shows no menu; where one is shown, it is asked for as here."""
    environment = environment_for(tmp_path) | {"DISPLAY": desktop.display}
    with desktop.tray(tmp_path / "tray.log"):
        command = [sys.executable, "-c", MENU]
        said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout) == [
        ["Open\\x1b the chat", True, None, True],
        ["Stop", False, None, False],
        ["At login", True, True, False],
        ["Close this icon; the app goes on", True, None, False],
        ["chat"],
    ]
