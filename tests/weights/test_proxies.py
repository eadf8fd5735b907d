"""Which proxy a download goes through, and what a person reads of one that is dead or of no known kind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment_for
from tests.support.hub import HubServer
from tests.support.pieces import random_model
from together.errors import Unreachable
from together.weights.hub_ranges import proxy_hint, proxy_of, require_usable_proxy

HUB = "https://hub.example"
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that names no proxy."""
    for name in list(os.environ):
        if name.lower() in VARIABLES:
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
def test_a_hint_names_proxy_and_variable_without_credentials(bare: pytest.MonkeyPatch, name: str) -> None:
    bare.setenv(name, "http://me:secret@127.0.0.1:9")
    hint = str(proxy_hint(HUB))
    assert "http://127.0.0.1:9" in hint
    assert f"unset {name}" in hint
    assert "secret" not in hint


def test_a_hint_is_empty_where_the_connection_is_direct(bare: pytest.MonkeyPatch) -> None:
    assert not proxy_hint(HUB)
    bare.setenv("http_proxy", "http://127.0.0.1:9")  # of the other scheme
    assert proxy_of(HUB) is None
    bare.setenv("https_proxy", "http://127.0.0.1:9")
    bare.setenv("no_proxy", "hub.example")
    assert proxy_of(HUB) is None


@pytest.mark.parametrize("url", ["ftp://127.0.0.1:9", "socks9://127.0.0.1:9", "://"])
def test_a_proxy_of_no_known_kind_is_refused_by_name(bare: pytest.MonkeyPatch, url: str) -> None:
    bare.setenv("ALL_PROXY", url)
    with pytest.raises(Unreachable, match="ALL_PROXY"):
        require_usable_proxy(HUB)


@pytest.mark.parametrize("url", ["127.0.0.1:9", "http://127.0.0.1:9", "socks5://127.0.0.1:9", "socks5h://127.0.0.1:9"])
def test_proxies_that_the_library_knows_are_let_through(bare: pytest.MonkeyPatch, url: str) -> None:
    bare.setenv("all_proxy", url)
    require_usable_proxy(HUB)


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "gopher://127.0.0.1:9"])
def test_a_pull_through_a_proxy_that_fails_names_it(hub: HubServer, tmp_path: Path, proxy: str) -> None:
    hub.add("acme/tiny", random_model(tmp_path / "tiny"))
    done = pull(tmp_path, hub, {"ALL_PROXY": proxy, "HTTP_PROXY": proxy})
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{proxy} (HTTP_PROXY)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not hub.requests


def test_a_host_that_no_proxy_names_is_reached_past_a_dead_proxy(hub: HubServer, tmp_path: Path) -> None:
    hub.add("acme/tiny", random_model(tmp_path / "tiny"))
    done = pull(tmp_path, hub, {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"})
    assert done.returncode == 0, done.stderr


def pull(folder: Path, hub: HubServer, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`pull` as a person types it, in an environment that names no other proxies."""
    own = environment_for(folder / "home") | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    clean = {name: value for name, value in own.items() if name.lower() not in VARIABLES}
    command = [sys.executable, "-m", "together", "pull", "acme/tiny"]
    return subprocess.run(
        command, cwd=ROOT, env=clean | variables, capture_output=True, text=True, timeout=60, check=False
    )
