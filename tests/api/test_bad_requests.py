"""Whatever is sent, the answer is a documented one in the error shape, and the app goes on as before."""

from __future__ import annotations

import json
from typing import Any

import httpx
import hypothesis
import pytest
from hypothesis import strategies as st

from tests.api.bad_requests import CHAT, Bad, all_of_them
from tests.conftest import RealApp
from tests.support.patience import PATIENCE

BAD = list(all_of_them())
CONTROL = {"messages": [{"role": "user", "content": "Are you the same?"}], "max_tokens": 12, "temperature": 0}
FORBIDDEN = range(500, 600)
DOCUMENTED_5XX = (503,)


def control_answer(app: RealApp) -> object:
    return app.post(CHAT, CONTROL).json()["choices"]


def assert_error_shape(body: object) -> None:
    assert isinstance(body, dict)
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str)
    assert body["error"]["message"]


def assert_shape_of(path: str, body: object) -> None:
    """The error shape of the API that the path belongs to."""
    if not path.startswith("/v1/messages"):
        assert_error_shape(body)
        return
    assert isinstance(body, dict)
    assert (set(body), body["type"], set(body["error"])) == ({"type", "error"}, "error", {"type", "message"})


def test_there_are_200_of_them() -> None:
    assert len({(bad.method, bad.path, bad.body) for bad in BAD}) > 200


def test_bad_requests_are_refused_in_the_error_shape(real_app: RealApp) -> None:
    before = control_answer(real_app)
    wrong = []
    with httpx.Client(base_url=real_app.url, timeout=PATIENCE) as client:
        for bad in BAD:
            reply = client.request(bad.method, bad.path, content=bad.body)
            if not _as_expected(bad, reply):
                wrong.append(f"{bad.name}: {reply.status_code} {reply.text[:200]}")
    assert not wrong, "\n".join(wrong)
    assert control_answer(real_app) == before


def _as_expected(bad: Bad, reply: httpx.Response) -> bool:
    try:
        assert_error_shape(reply.json())
    except (AssertionError, ValueError):
        return False
    param = reply.json()["error"]["param"]
    named = bad.param == "*" or param == bad.param or str(param).startswith(f"{bad.param}.")
    return reply.status_code == bad.status and named


# --- generated from the server's own document -------------------------------------------------------------------------


MOST = {
    "max_tokens": 8,
    "max_output_tokens": 8,
    "max_completion_tokens": 8,
    "n": 4,
}  # of what takes time; other tests go to the limits


def test_generated_requests(real_app: RealApp) -> None:
    _throw(real_app, 60)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_a_thousand_generated_requests(real_app: RealApp) -> None:
    _throw(real_app, 1000)


def _throw(app: RealApp, count: int) -> None:
    """Requests that fit the document and such that do not, in turn over all routes that end."""
    import schemathesis  # here: it takes 1.5 s of a processor, and every worker collects this file
    from schemathesis.core.result import Ok
    from schemathesis.specs.openapi import checks

    told = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]
    before = control_answer(app)
    schema = schemathesis.openapi.from_url(app.url + "/openapi.json").exclude(path="/events")
    operations = [operation.ok() for operation in schema.get_all_operations() if isinstance(operation, Ok)]
    assert len(operations) == 18
    strategies = [
        operation.as_strategy(generation_mode=mode)
        for operation in operations
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
        if mode is schemathesis.GenerationMode.POSITIVE or operation.body or operation.path_parameters
    ]

    @hypothesis.settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(case=st.one_of(strategies))
    def one(case: Any) -> None:
        if isinstance(case.body, dict):
            limit = "max_output_tokens" if case.path.startswith("/v1/responses") else "max_tokens"
            case.body.setdefault(limit, 2)  # the toy would go on to the end of its context
            for key, most in MOST.items():
                value = case.body.get(key)
                if isinstance(value, int) and not isinstance(value, bool):
                    case.body[key] = min(value, most)
        reply = case.call(base_url=app.url, timeout=PATIENCE)
        case.validate_response(reply, checks=told)
        assert reply.status_code not in FORBIDDEN or reply.status_code in DOCUMENTED_5XX
        if reply.status_code >= 400 and case.path != "/health":  # whose 503 says what the ring is about
            assert_shape_of(case.path, json.loads(reply.content))

    one()
    assert control_answer(app) == before


def test_the_document_is_true_about_control(real_app: RealApp) -> None:
    """Control routes are for this machine's own programs; everything else of ours is in it."""
    document = real_app.get("/openapi.json").json()
    assert not any(path.startswith("/control") for path in document["paths"])
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/models/{name}"} <= set(
        document["paths"]
    )
    assert {"/health", "/metrics", "/version", "/status", "/events"} <= set(document["paths"])
    assert "422" not in json.dumps(document)
