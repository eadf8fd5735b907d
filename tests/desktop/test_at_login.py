"""Starting at login: what is written for each system, and that Linux takes it."""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stand_ins import program
from together.checkout import ROOT
from together.desktop.at_login import LaunchAgent, LoginStart, StartupFolder, UserUnit, is_on, login_start, way_here
from together.desktop.cli import main
from together.errors import AppError

ODD = LoginStart(
    ("/opt/my python/bin/python3", '/home/a "b" c/50% $HOME/launch.py', "up", "--no-browser"),
    (("TOGETHER_HOME", '/home/a b/\\x "y" 5% $Z'),),
)
PLAIN = LoginStart((sys.executable, str(ROOT / "launch.py"), "node", "--host", "0.0.0.0"))


def test_what_is_started() -> None:
    start = login_start(["up", "--no-browser"], {"TOGETHER_PORT": "1", "PATH": "/bin", "TOGETHER_HOME": "/x"})
    python, *rest = start.command
    assert Path(python).is_file()
    assert rest == [str(ROOT / "launch.py"), "up", "--no-browser"]
    assert start.settings == (("TOGETHER_HOME", "/x"), ("TOGETHER_PORT", "1"))


def test_the_agent_of_macos(tmp_path: Path) -> None:
    way = LaunchAgent(tmp_path)
    agent = plistlib.loads(way.text(ODD))
    assert agent["ProgramArguments"] == list(ODD.command)
    assert agent["EnvironmentVariables"] == dict(ODD.settings)
    assert agent["RunAtLoad"] is True
    assert way.file == tmp_path / "Library/LaunchAgents/together.plist"


def test_the_file_of_windows(tmp_path: Path) -> None:
    way = StartupFolder(tmp_path)
    start = LoginStart(("C:\\Program Files\\py.exe", "C:\\50%\\launch.py", "up"), (("TOGETHER_HOME", "D:\\ü & x"),))
    assert way.text(start).decode().split("\r\n") == [
        "@echo off",
        "chcp 65001 >nul",
        'set "TOGETHER_HOME=D:\\ü & x"',
        'start "together" /min "C:\\Program Files\\py.exe" "C:\\50%%\\launch.py" "up"',
        "",
    ]
    with pytest.raises(AppError, match="cannot have a quote in it"):
        way.text(ODD)


@pytest.mark.parametrize("way", [UserUnit(Path()), StartupFolder(Path())], ids=["systemd", "windows"])
def test_a_word_that_ends_a_line_is_refused(way: UserUnit | StartupFolder) -> None:
    with pytest.raises(AppError, match="it is no plain text"):
        way.text(LoginStart(("python3", "launch.py\nExecStartPre=rm")))


ANALYZE = shutil.which("systemd-analyze")


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze, which reads units, is not here")
@pytest.mark.parametrize("start", [PLAIN, ODD], ids=["usual", "odd"])
def test_systemd_reads_the_unit_as_it_is_meant(start: LoginStart, tmp_path: Path) -> None:
    python = tmp_path / "my python"
    python.symlink_to(sys.executable)
    start = LoginStart((str(python), *start.command[1:]), start.settings)
    unit = UserUnit(tmp_path)
    unit.file.parent.mkdir(parents=True)
    unit.file.write_bytes(unit.text(start))
    assert ANALYZE is not None
    folders = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    line = [ANALYZE, "--user", "--man=no", "verify", str(unit.file)]
    read = subprocess.run(line, capture_output=True, text=True, check=False, env=os.environ | folders)
    assert "together.service" not in read.stderr, read.stderr
    assert read.returncode == 0, read.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the way of Linux")
def test_on_and_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """By stand-ins of the system's program, which note what they are told."""
    program(tmp_path / "bin", "systemctl", f'echo "$@" >> {tmp_path}/told')
    for name, value in {"XDG_CONFIG_HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:/bin:/usr/bin"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TOGETHER_HOME", str(tmp_path / "home"))
    unit = tmp_path / "systemd/user/together.service"
    assert way_here().file == unit
    assert main(["at-login"]) == 0
    assert capsys.readouterr().out == "nothing of together starts at login\n"
    assert main(["at-login", "up", "--host", "0.0.0.0"]) == 0
    assert capsys.readouterr().out == f"from the next login on it starts: {unit} says up --no-browser --host 0.0.0.0\n"
    text = unit.read_text()
    assert f'"{ROOT}/launch.py" "up" "--no-browser" "--host" "0.0.0.0"\n' in text
    assert f'Environment="TOGETHER_HOME={tmp_path}/home"\n' in text
    assert is_on(way_here())
    assert main(["at-login"]) == 0
    assert capsys.readouterr().out == f"together starts at login, as {unit} says\n"
    assert main(["at-login", "off"]) == 0
    assert not unit.exists()
    assert main(["at-login", "off"]) == 0
    assert capsys.readouterr().out == "nothing starts at login any more\nnothing of together starts at login\n"
    told = (tmp_path / "told").read_text().splitlines()
    assert told == [
        f"--user {what}" for what in ("daemon-reload", "enable together.service", "disable together.service")
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="the way of Linux")
def test_what_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert main(["at-login", "down"]) == 2
    assert "'down' is nothing that starts at login; choose up, node or off" in capsys.readouterr().err
    assert main(["at-login", "up", "--nonsense"]) == 2
    assert "no such option: --nonsense" in capsys.readouterr().err
    assert not is_on(way_here())
    assert main(["at-login", "node"]) == 1
    assert "the system does not take it (systemctl is missing); delete it: " in capsys.readouterr().err
    assert main(["at-login", "off"]) == 0
    (tmp_path / "systemd/user").rmdir()
    (tmp_path / "systemd/user").write_text("a file")
    assert main(["at-login", "node"]) == 1
    assert "cannot be written: " in capsys.readouterr().err
