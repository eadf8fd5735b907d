"""What a person hears in a terminal while a ring is mended, and what `ps` shows of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydantic import TypeAdapter

from together.cluster_types import Device, Endpoint, NodeState, NodeStatus, StageState, StageStatus
from together.desktop.app_status import AppServing, AppStatus
from together.desktop.cli_run import served_now
from together.desktop.client import RunningApp, wait_until_ready
from together.types import LayerRange
from together.view import ServingState

STATUS = TypeAdapter(AppStatus)
DEVICES = (Device("torch", "cpu", "", 10**9, 10**9),)


def app_status(state: ServingState, sentence: str, *nodes: NodeStatus) -> AppStatus:
    return AppStatus(nodes, AppServing(state, "tiny", None, "ring", sentence), "", "", (), sentence)


@contextmanager
def app_that_says(*statuses: AppStatus) -> Iterator[RunningApp]:
    """An HTTP server that shows one status after another, the last one for good."""
    left = [STATUS.dump_json(status) for status in statuses]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(left.pop(0) if len(left) > 1 else left[0])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield RunningApp(f"http://127.0.0.1:{server.server_port}", 0)
        server.shutdown()


def test_a_mend_is_said_once_and_not_with_every_percent(capsys: pytest.CaptureFixture[str]) -> None:
    mending = [app_status(ServingState.RECOVERING, f"tiny is being mended, {done}%") for done in (10, 10, 60, 90)]
    with app_that_says(*mending, app_status(ServingState.READY, "ready")) as app:
        wait_until_ready(app)
    assert capsys.readouterr().err == "tiny is being mended, 10%\n"


def node_with(name: str, state: NodeState, slot: int) -> NodeStatus:
    stage = StageStatus(
        "ring", slot, "head", "tiny", 4, LayerRange(0, 4), "torch/cpu", StageState.READY, memory_bytes=7
    )
    return NodeStatus(name, name, name, Endpoint(("127.0.0.1",), 1), 1, state, "", DEVICES, (stage,))


def test_ps_shows_no_layers_of_a_lost_node() -> None:
    lost, living = node_with("anna", NodeState.FAILED, 0), node_with("berta", NodeState.READY, 0)
    status = app_status(ServingState.READY, "ready", lost, living)
    served = served_now(status, status.serving)
    assert served["layers"] == {"berta": "0:4"}
    assert served["bytes"] == 7
