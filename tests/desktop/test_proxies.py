"""Proxies in the environment: local work never goes through them, dead or alive, of a known kind or not."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.ask import ask
from tests.conftest import start_app
from tests.support.patience import PATIENCE

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


@contextlib.contextmanager
def counting_port() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a listener that closes what it accepts, and what callers began with so far.

    Who takes it for a proxy speaks first. A gRPC client of another test, whose server had this port before, does too.
    """
    callers: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.settimeout(PATIENCE)
                        said = connection.recv(64)
                        if said and not said.startswith(b"PRI * HTTP/2"):
                            callers.append(said)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", callers
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(PATIENCE)


@pytest.mark.parametrize("scheme", ["http", pytest.param("gopher", marks=pytest.mark.full)])
def test_an_app_and_its_commands_pass_by_every_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    with counting_port() as (address, callers):
        proxies = dict.fromkeys(NAMES, f"{scheme}://{address}") | {"NO_PROXY": "", "no_proxy": ""}
        with start_app(tmp_path, **proxies) as app:
            for words in (("status",), ("chat", "Hello", "--max-tokens", "3"), ("unload",)):
                done = app.command(*words)
                assert done.returncode == 0, (words, done.stderr)
            app.post("/control/load", {"model": str(tmp_path / "toy"), "layers": "0:2,2:4"}).raise_for_status()
            for name, value in proxies.items():
                monkeypatch.setenv(name, value)  # for the example, which runs in this process
            pieces = ask("hello", app.url + "/v1/chat/completions")
            next(pieces)
            pieces.close()  # type: ignore[attr-defined]  # a generator: leaving ends the answer
        assert callers == []
