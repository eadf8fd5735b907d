"""Starting at login: a LaunchAgent on macOS, a systemd user unit on Linux, a file in the startup folder on Windows.

Only what this program wrote is ever replaced or deleted: it names the file, and nobody else's lies there.
"""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from together.checkout import ROOT
from together.errors import AppError
from together.jsonfile import write_whole
from together.settings import PREFIX
from together.wording import reason_of

NAME = "together"
WITHIN = 20.0  # seconds for systemctl and launchctl


@dataclass(frozen=True, slots=True)
class LoginStart:
    """What is started: `command` is a whole command line, `settings` are variables of ours."""

    command: tuple[str, ...]
    settings: tuple[tuple[str, str], ...] = ()


class LoginWay(Protocol):
    """How one system starts something at login."""

    @property
    def file(self) -> Path: ...

    def text(self, start: LoginStart) -> bytes:
        """What the file says. Raises AppError for what cannot be said there."""

    def switch(self, on: bool) -> str:
        """Tell the system about the file, which is there now, or is to be deleted; what went wrong, else empty."""


def login_start(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> LoginStart:
    """launch.py with these arguments, by the Python that made .venv: launch.py repairs that by itself."""
    python = getattr(sys, "_base_executable", "") or sys.executable
    known = os.environ if environment is None else environment
    kept = tuple(sorted((name, value) for name, value in known.items() if name.startswith(PREFIX)))
    return LoginStart((python, str(ROOT / "launch.py"), *arguments), kept)


def way_here() -> LoginWay:
    home = Path.home()
    if sys.platform == "win32":
        return StartupFolder(Path(os.environ.get("APPDATA", str(home / "AppData/Roaming"))))
    if sys.platform == "darwin":
        return LaunchAgent(home)
    return UserUnit(Path(os.environ.get("XDG_CONFIG_HOME", str(home / ".config"))))


def is_on(way: LoginWay) -> bool:
    return way.file.is_file()


def switch_on(way: LoginWay, start: LoginStart) -> None:
    """Raises AppError where that cannot be."""
    text = way.text(start)
    try:
        write_whole(way.file, text)
    except OSError as error:
        raise AppError("{file} cannot be written: {why}", file=str(way.file), why=reason_of(error)) from None
    if trouble := way.switch(True):
        raise AppError(
            "{file} is written, and the system does not take it ({why}); delete it: python3 launch.py at-login off",
            file=str(way.file),
            why=trouble,
        )


def switch_off(way: LoginWay) -> bool:
    """Whether there was anything to end. What runs goes on. Raises AppError where the file stays."""
    if not is_on(way):
        return False
    way.switch(False)  # the system may have forgotten it; without its file it starts nothing
    try:
        way.file.unlink(missing_ok=True)
    except OSError as error:
        raise AppError("{file} cannot be deleted: {why}", file=str(way.file), why=reason_of(error)) from None
    return True


def _told(*command: str) -> str:
    """Run one of the system's programs; what it complains of."""
    program = shutil.which(command[0])
    if program is None:
        return f"{command[0]} is missing"
    try:
        done = subprocess.run(
            [program, *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, timeout=WITHIN, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return "" if done.returncode == 0 else said[-1] if said else f"{command[0]} ended with {done.returncode}"


def _plain(start: LoginStart) -> None:
    """Raises AppError where a line would end within a word."""
    for text in (*start.command, *(value for _, value in start.settings)):
        if not text.isprintable():
            raise AppError("{text} cannot be started at login: it is no plain text", text=ascii(text))


@dataclass(frozen=True, slots=True)
class UserUnit:
    """Linux: https://www.freedesktop.org/software/systemd/man/latest/systemd.service.html."""

    config: Path

    @property
    def file(self) -> Path:
        return self.config / "systemd/user" / f"{NAME}.service"

    def text(self, start: LoginStart) -> bytes:
        _plain(start)
        variables = "".join(f"Environment={_systemd(f'{name}={value}')}\n" for name, value in start.settings)
        # ":" before a command line says that "$" is a letter in it.
        return (
            "[Unit]\nDescription=together: one language model on several machines\n\n"
            f"[Service]\nExecStart=:{' '.join(map(_systemd, start.command))}\n{variables}"
            "Restart=on-failure\nRestartSec=5\n\n"
            "[Install]\nWantedBy=default.target\n"
        ).encode()

    def switch(self, on: bool) -> str:
        if not on:
            return _told("systemctl", "--user", "disable", f"{NAME}.service")
        return _told("systemctl", "--user", "daemon-reload") or _told(
            "systemctl", "--user", "enable", f"{NAME}.service"
        )


def _systemd(word: str) -> str:
    """In quotes; "%" begins a specifier of systemd's."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


@dataclass(frozen=True, slots=True)
class LaunchAgent:
    """macOS: `man launchd.plist`. The system reads the folder at each login."""

    home: Path

    @property
    def file(self) -> Path:
        return self.home / "Library/LaunchAgents" / f"{NAME}.plist"

    def text(self, start: LoginStart) -> bytes:
        agent = {
            "Label": NAME,
            "ProgramArguments": list(start.command),
            "RunAtLoad": True,
            "EnvironmentVariables": dict(start.settings),
            "ProcessType": "Interactive",  # else the system slows it down in favour of what has windows
        }
        return plistlib.dumps(agent)

    def switch(self, on: bool) -> str:
        """The system looks into the folder at the next login; what it is told of a label outlives the file."""
        return ""


@dataclass(frozen=True, slots=True)
class StartupFolder:
    """Windows runs what lies in this folder of its user."""

    roaming: Path

    @property
    def file(self) -> Path:
        return self.roaming / "Microsoft/Windows/Start Menu/Programs/Startup" / f"{NAME}.cmd"

    def text(self, start: LoginStart) -> bytes:
        _plain(start)
        words = (*start.command, *(value for _, value in start.settings))
        if any('"' in word for word in words):
            raise AppError("what starts at login on Windows cannot have a quote in it")
        lines = [f'set "{name}={_batch(value)}"' for name, value in start.settings]
        command = " ".join(f'"{_batch(word)}"' for word in start.command)
        # The code page first: names of folders may have any letters.
        return "\r\n".join(["@echo off", "chcp 65001 >nul", *lines, f'start "{NAME}" /min {command}', ""]).encode()

    def switch(self, on: bool) -> str:
        return ""


def _batch(word: str) -> str:
    return word.replace("%", "%%")
