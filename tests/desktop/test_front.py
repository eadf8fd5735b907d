"""What a start that is opened to the network shows, and what it asks others for."""

from __future__ import annotations

import re
from pathlib import Path

import httpx

from tests.conftest import run_up, until
from tests.support.lightest import LIGHTEST
from tests.support.patience import PATIENCE


def test_an_open_start_asks_for_a_key_and_writes_none_into_its_log(tmp_path: Path) -> None:
    with run_up(tmp_path, "--host", "0.0.0.0", "--backend", LIGHTEST) as app:
        log = tmp_path / "log"
        until(lambda: "keys make NAME" in log.read_text(), PATIENCE, "how to make a key is shown")
        assert not (tmp_path / "home" / "keys.json").exists()  # nobody sees it who has no terminal
        found = re.search(r"(http://\S+)/\?key=(tg-\S+)", app.command("keys", "make", "phone").stdout)
        assert found is not None
        page, key = found.groups()
        elsewhere = {"X-Forwarded-For": "203.0.113.9"}
        with httpx.Client(base_url=page, timeout=PATIENCE, headers=elsewhere, trust_env=False) as client:
            assert client.get("/status").status_code == 401
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert "tg-" not in log.read_text()
        assert key not in "".join(file.read_text() for file in (tmp_path / "home" / "logs").iterdir())
        assert app.get("/status").status_code == 200  # from this machine
        port_file = tmp_path / "home" / "app.json"
        assert port_file.stat().st_mode & 0o077 == 0
        assert "node" in app.command("status").stdout
