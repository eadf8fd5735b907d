"""The page's doors: by HTTPS for other machines, in the clear for this one; and in the clear for a proxy."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from pathlib import Path

import httpx
import pytest

from tests.conftest import RealApp, free_ports, run_up
from tests.support.checksum import make_checksum_model
from tests.support.patience import PATIENCE
from tests.support.proxy import proxy
from together.api.keys import KeyFile
from together.desktop.front import PageCertificates, PageDoors
from together.settings import Settings
from together.trust.page import page_authority
from together.trust.secret import SecretFile

SECRET = "what nobody on the way may read"
ELSEWHERE = {"X-Forwarded-For": "203.0.113.9"}


def open_settings(home: Path, **more: object) -> Settings:
    return Settings(home=str(home), host="0.0.0.0", port=free_ports(4), **more)  # type: ignore[arg-type]  # its fields


def announced(app: RealApp) -> dict[str, object]:
    found: dict[str, object] = json.loads((app.home / "app.json").read_text())
    return found


def shown_by(context: ssl.SSLContext) -> bytes:
    """The certificate that a door shows now."""
    here, there = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(here, there, server_side=True)
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.check_hostname, asking.verify_mode = False, ssl.CERT_NONE  # it only looks
    client = asking.wrap_bio(there, here, server_side=False)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    found = client.getpeercert(binary_form=True)
    assert found is not None
    return found


def looked(url: str) -> httpx.Response:
    return httpx.get(url, timeout=PATIENCE, trust_env=False)


async def test_the_network_s_door_is_encrypted_and_this_machine_s_is_not(tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "toy")
    with run_up(tmp_path, "--host", "0.0.0.0", "--model", str(toy), "--backend", "checksum") as app:
        port = announced(app)["network"]
        page, heard = f"https://127.0.0.1:{port}", bytearray()
        authority = app.get("/ca.crt")
        assert authority.headers["content-type"] == "application/x-x509-ca-cert"
        known = ssl.create_default_context(cadata=authority.text)
        key = KeyFile(app.home).make("phone")[1]
        async with (
            proxy(int(str(port)), heard=heard) as link,
            httpx.AsyncClient(verify=known, timeout=PATIENCE, headers=ELSEWHERE, trust_env=False) as client,
        ):
            way = f"https://127.0.0.1:{link.port}"
            assert (await client.get(f"{way}/ca.crt")).content == authority.content  # nobody needs a key for it
            assert (await client.get(f"{way}/status")).status_code == 401
            entered = await client.get(way, params={"key": key})
            assert "Secure" in entered.headers["set-cookie"]
            answer = await client.post(f"{way}/v1/completions", json={"prompt": SECRET, "max_tokens": 3})
            assert answer.json()["usage"]["completion_tokens"] == 3  # by its cookie
        assert len(heard) > 1000
        assert not [text for text in (SECRET, key, key[-20:], "/v1/completions") if text.encode() in heard]
        with pytest.raises(httpx.HTTPError):  # in the clear nobody is heard there
            await asyncio.to_thread(looked, f"http://127.0.0.1:{port}/health")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):  # for who does not know it
            await asyncio.to_thread(looked, f"{page}/health")
        said = app.command("status").stdout
        assert f"other machines: {json.loads(app.command('status', '--json').stdout)['network']}, with a key" in said
        assert app.command("keys", "make", "tablet").stdout.count(f":{port}/?key=tg-") == 1


def test_a_page_in_the_clear_says_so_and_takes_nobody_for_local(tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "toy")
    settings = {"TOGETHER_HOST": "0.0.0.0", "TOGETHER_PLAIN_HTTP": "yes", "TOGETHER_HOSTS": "chat.example.org"}
    command = ("--model", str(toy), "--backend", "checksum")
    with run_up(tmp_path, *command, **settings) as app:
        assert app.get("/status").status_code == 401  # it may come from the proxy
        key = {"x-api-key": KeyFile(app.home).make("phone")[1]}
        proxied = {**key, "Host": "chat.example.org", "Origin": "https://chat.example.org"}
        with httpx.Client(base_url=app.url, timeout=PATIENCE, trust_env=False) as client:
            assert client.get("/status", headers=proxied).status_code == 200
            assert client.post("/control/unload", json={}, headers=key).status_code == 403
            assert client.get("/ca.crt").status_code == 404
        said = app.command("status").stdout
        assert "in the clear (--plain-http): let nobody reach it but a proxy of yours that encrypts" in said
        assert "the page is in the clear (--plain-http)" in (tmp_path / "log").read_text()


def test_a_certificate_follows_the_join_code_and_the_days(tmp_path: Path) -> None:
    settings = open_settings(tmp_path)
    made = PageCertificates.of(settings)
    first = shown_by(made.context)
    made.renew(0)
    assert shown_by(made.context) == first
    made.renew(1)
    assert shown_by(made.context) != first
    SecretFile(settings.config_path).rotate()
    second = shown_by(made.context)
    made.renew(1)
    assert shown_by(made.context) != second
    assert page_authority(SecretFile(settings.config_path).get())


def test_doors_of_an_app_lie_side_by_side(tmp_path: Path) -> None:
    settings = open_settings(tmp_path)
    doors = PageDoors.open(settings)
    try:
        assert (doors.port, doors.shown) == (settings.port, settings.port + 1)
        assert doors.home.getsockname()[0] == "127.0.0.1"
    finally:
        doors.close()
    alone = PageDoors.open(Settings(home=str(tmp_path / "alone"), port=0))
    try:
        assert alone.network is None
        assert not (tmp_path / "alone").exists()  # one machine alone has no secret
    finally:
        alone.close()
    with socket.create_server(("127.0.0.1", settings.port)):
        moved = PageDoors.open(settings)
        try:
            assert moved.shown == moved.port + 1 > settings.port + 1
        finally:
            moved.close()
