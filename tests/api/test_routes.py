"""Health, status, events, control and the guard, over HTTP on a really started app."""

from __future__ import annotations

import json
from dataclasses import fields

import httpx
import pytest

from tests.conftest import NODE_NAMES, RealApp
from tests.support.patience import PATIENCE
from together.view import ClusterView


def test_health_models_and_version(real_app: RealApp) -> None:
    assert real_app.get("/health").json() == {"status": "ok", "state": "READY", "model": "toy"}
    listed = real_app.get("/v1/models").json()
    assert listed["object"] == "list"
    assert {"id", "object", "created", "owned_by"} < set(listed["data"][0])
    assert real_app.get("/v1/models/toy").json() == listed["data"][0]
    assert real_app.get("/models").json() == listed
    assert real_app.get("/v1/models/toy").json() == listed["data"][0]
    assert real_app.get("/v1/models/a/b").json()["error"]["code"] == "model_not_found"
    assert real_app.get("/version").json()["pid"] == real_app.process.pid


def test_status_shows_nodes_stages_and_plan(real_app: RealApp) -> None:
    status = real_app.status()
    assert sorted(node["name"] for node in status["nodes"]) == NODE_NAMES
    held = sorted((s["layers"]["start"], s["layers"]["stop"]) for node in status["nodes"] for s in node["stages"])
    assert held == [(0, 2), (2, 4)]
    assert [stage["layers"] for stage in status["serving"]["plan"]["stages"]] == [
        {"start": 0, "stop": 2},
        {"start": 2, "stop": 4},
    ]
    assert status["reason"] == ""


def test_events_repeat_the_status_at_least_every_second(real_app: RealApp) -> None:
    with httpx.stream("GET", real_app.url + "/events", timeout=PATIENCE) as reply:
        lines = (line for line in reply.iter_lines() if line.startswith("data: "))
        views = [json.loads(next(lines).removeprefix("data: ")) for _ in range(2)]
    known = {field.name for field in fields(ClusterView)} | {"reason"}
    assert all(set(view) == known for view in views)


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/control/shutdown", 405),
        ("POST", "/control/nothing", 404),
    ],
)
def test_wrong_paths_and_methods_have_openais_shape(real_app: RealApp, method: str, path: str, code: int) -> None:
    reply = httpx.request(method, real_app.url + path, timeout=PATIENCE)
    assert reply.status_code == code
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


FOREIGN = [
    {"Host": "evil.example"},
    {"Host": "evil.example:80", "Origin": "http://evil.example:80"},
    {"Host": "127.0.0.1.evil.example"},
    {"Host": "10.0.0.1"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:1"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
]


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/health", "/v1/chat/completions", "/control/unload", "/gradio_api/queue/join"])
def test_foreign_pages_are_refused(real_app: RealApp, headers: dict[str, str], method: str, path: str) -> None:
    reply = httpx.request(method, real_app.url + path, headers=headers, timeout=PATIENCE)
    assert reply.status_code == 403
    assert not any(name.startswith("access-control-allow") for name in reply.headers)


def test_our_own_page_is_served_without_cors(real_app: RealApp) -> None:
    for path in ("/", "/split", "/config", "/health"):
        reply = httpx.get(real_app.url + path, headers={"Origin": real_app.url}, timeout=PATIENCE)
        assert reply.status_code == 200
        assert "access-control-allow-origin" not in reply.headers
        own = "'none'" if path == "/" else "'self'"
        assert f"default-src {own};" in reply.headers["content-security-policy"].replace(" data: blob:", "")


def test_the_page_tells_nothing_of_its_users(real_app: RealApp) -> None:
    for path in ("/monitoring/summary", "/gradio_api/info"):
        assert real_app.get(path).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("nodes", {"action": "explode"}, "action"),
        ("nodes", {}, "action"),
        ("load", {"model": 5}, "model"),
        ("load", {"users": 0}, "users"),
        ("plan", {"context": "long"}, "context"),
        ("load", {"unknown": 1}, "unknown"),
    ],
)
def test_control_refuses_what_it_does_not_know(real_app: RealApp, path: str, body: object, param: str) -> None:
    reply = real_app.post(f"/control/{path}", body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
