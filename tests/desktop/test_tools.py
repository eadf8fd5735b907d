"""`launch.py tools`: addresses and programs come in, are listed, and go; whose they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from together.api.keys import KeyFile
from together.desktop.cli import main
from together.requests import LOCAL
from together.tools.servers import ServerFile

ADDRESS = "http://127.0.0.1:3001/mcp"


def test_servers_come_and_go_in_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOGETHER_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    key, _ = KeyFile(tmp_path).make("phone")
    servers = ServerFile(tmp_path)
    assert main(["tools"]) == 0
    assert "tools add NAME" in capsys.readouterr().out
    assert main(["tools", "add", "calendar", ADDRESS]) == 0
    assert main(["tools", "add", "files", "--env", "A=b=c", "--", "python3", "-m", "x", "--y"]) == 0
    calendar, files = servers.of(LOCAL)
    assert (calendar.url, calendar.command, calendar.anywhere) == (ADDRESS, (), True)
    assert (files.command, files.folder) == ((shutil.which("python3"), "-m", "x", "--y"), str(tmp_path))
    assert files.environment == {"A": "b=c"}
    assert main(["tools", "add", "lan", ADDRESS, "--key", "phone"]) == 0
    assert [server.name for server in servers.of(key.id)] == ["lan"]
    capsys.readouterr()
    assert main(["tools", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["servers"]
    assert [(server["name"], server["kind"]) for server in listed] == [("calendar", "address"), ("files", "program")]
    assert main(["tools", "remove", "calendar"]) == 0
    assert [server.name for server in servers.of(LOCAL)] == ["files"]
    for wrong, said in (
        (["add", "files", ADDRESS], "there is a server"),
        (["add", "x", "no-such-program-here"], "there is no program"),
        (["add", "x", "--env", "A", "--", "python3"], "is no variable"),
        (["add", "x", "--key", "phone", "--", "python3"], "belongs to this machine's user alone"),
        (["add", "x", ADDRESS, "--key", "nobody"], "there is no key"),
        (["remove", "gone"], "there is no server"),
    ):
        assert main(["tools", *wrong]) == 2
        assert said in capsys.readouterr().err
