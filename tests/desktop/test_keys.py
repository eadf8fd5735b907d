"""`launch.py keys`, and what a start that is opened to the network shows of its first key."""

from __future__ import annotations

import json
import re
import ssl
from pathlib import Path

import httpx
import pytest

from tests.conftest import run_up, until
from tests.support.lightest import LIGHTEST
from tests.support.patience import PATIENCE
from together.api.keys import KeyFile
from together.desktop.cli import main
from together.desktop.keys import first_key, key_lines, owner_of, qr_code
from together.errors import BadSetting


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOGETHER_HOME", str(tmp_path))
    return tmp_path


def test_a_key_is_made_listed_and_revoked(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys"]) == 0
    assert capsys.readouterr().out == "there is no key; make one: python3 launch.py keys make phone\n"
    assert main(["keys", "make", "phone"]) == 0
    said = capsys.readouterr().out
    text = said.split()[-1]
    (kept,) = KeyFile(home).kept()
    assert KeyFile(home).by_key(text) == kept
    assert main(["keys", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"keys": [{"id": kept.id, "name": "phone", "made": kept.made}]}
    assert main(["keys"]) == 0
    assert text not in (shown := capsys.readouterr().out)
    assert kept.id in shown
    assert main(["keys", "make", "phone"]) == 2
    assert main(["keys", "renew", "phone"]) == 0
    (renewed,) = KeyFile(home).kept()
    assert KeyFile(home).by_key(capsys.readouterr().out.split()[-1]) == renewed
    assert (renewed.id, KeyFile(home).by_key(text)) == (kept.id, None)
    assert main(["keys", "revoke", "phone"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("the key phone is revoked")
    assert f"forget --texts --key {kept.id}\n" in said
    assert main(["keys", "revoke", "phone"]) == 2
    assert KeyFile(home).kept() == ()
    assert owner_of(kept.id, KeyFile(home)) == kept.id  # what it owned is still to be deleted
    with pytest.raises(BadSetting, match="there is no key 'phone'"):
        owner_of("phone", KeyFile(home))


def test_a_key_that_cannot_be_kept_is_a_sentence(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "keys.json").mkdir()
    assert main(["keys", "make", "phone"]) == 1
    assert "keys.json cannot be read: Is a directory" in capsys.readouterr().err


def test_the_first_key_is_made_once(tmp_path: Path) -> None:
    assert first_key(KeyFile(tmp_path), seen=False) == ""
    assert KeyFile(tmp_path).kept() == ()
    text = first_key(KeyFile(tmp_path), seen=True)
    assert KeyFile(tmp_path).by_key(text) is not None
    assert first_key(KeyFile(tmp_path), seen=True) == ""


def test_a_link_is_drawn_where_a_terminal_can(capsys: pytest.CaptureFixture[str]) -> None:
    lines = list(key_lines("tg-x", "http://192.168.1.20:8765"))
    assert [line.split()[-1] for line in lines] == ["tg-x", "http://192.168.1.20:8765/?key=tg-x"]  # this is no terminal
    assert [line.split()[-1] for line in key_lines("tg-x", "")] == ["tg-x"]
    drawn = qr_code("http://192.168.1.20:8765/?key=tg-" + 43 * "x").splitlines()
    assert len({len(line) for line in drawn}) == 1
    assert len(drawn[0]) < 60
    assert set("".join(drawn)) <= set("█▀▄ ")


def test_an_open_start_asks_for_a_key_and_writes_none_into_its_log(tmp_path: Path) -> None:
    with run_up(tmp_path, "--host", "0.0.0.0", "--backend", LIGHTEST) as app:
        log = tmp_path / "log"
        until(lambda: "keys make NAME" in log.read_text(), PATIENCE, "how to make a key is shown")
        assert not (tmp_path / "home" / "keys.json").exists()  # nobody sees it who has no terminal
        found = re.search(r"(https://\S+)/\?key=(tg-\S+)", app.command("keys", "make", "phone").stdout)
        assert found is not None
        page, key = found.groups()
        elsewhere = {"X-Forwarded-For": "203.0.113.9"}
        known = ssl.create_default_context(cadata=app.get("/ca.crt").text)
        with httpx.Client(base_url=page, timeout=PATIENCE, headers=elsewhere, trust_env=False, verify=known) as client:
            assert client.get("/status").status_code == 401
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert "tg-" not in log.read_text()
        assert key not in "".join(file.read_text() for file in (tmp_path / "home" / "logs").iterdir())
        assert app.get("/status").status_code == 200  # from this machine
        port_file = tmp_path / "home" / "app.json"
        assert port_file.stat().st_mode & 0o077 == 0
        assert "node" in app.command("status").stdout
