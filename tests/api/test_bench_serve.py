"""`bench serve` against a running app: what it prints. Whether it is fast is for a person to judge."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.conftest import RealApp
from tests.support.checksum import EOS, QUIET, make_checksum_model
from together.desktop.bench.engine import percentiles
from together.desktop.bench.serve import Exchange, report


def bench(app: RealApp, *arguments: str) -> Any:
    done = app.command("bench", "serve", "--url", app.url, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_small_load(real_app: RealApp) -> None:
    found = bench(real_app, "-c", "3", "--requests", "7", "--new", "10")
    assert (found["model"], found["requests"], found["answered"], found["refused"]) == ("toy", 7, 7, {})
    assert found["generated_tokens"] == 70
    for name in ("first_token_ms", "per_token_ms", "request_ms"):
        assert 0 < found[name]["p50"] <= found[name]["p95"] <= found[name]["p99"]
    assert found["tokens_per_s"] == found["generated_tokens"] / found["seconds"]


@pytest.mark.full  # a smaller one is here
def test_what_the_server_adds_to_the_engine(real_app: RealApp) -> None:
    found = bench(real_app, "--overhead", "--rounds", "1", "--new", "10")
    assert min(found["first_ms"], found["per_token_ms"]) > 0
    assert all(math.isfinite(found[name]) for name in ("added_first_ms", "added_per_token_ms"))


def test_a_stream_alone_and_beside_another_model(lent_app: RealApp) -> None:
    """And a model by its name, where several are served."""
    other = make_checksum_model(lent_app.home.parent / "other", layers=3, seed=5, quiet_ids=(*QUIET, EOS))
    lent_app.post("/control/load", {"model": str(other), "beside": True}).raise_for_status()
    try:
        found = bench(lent_app, "--model", "other", "-c", "1", "--requests", "1", "--new", "10")
        assert (found["model"], found["answered"]) == ("other", 1)
        found = bench(lent_app, "--model", "toy", "--beside", "other", "-c", "2", "--rounds", "2", "--new", "40")
        assert (found["model"], found["beside"], found["streams"], found["rounds"]) == ("toy", "other", 2, 2)
        assert min(value for value in found.values() if isinstance(value, float)) > 0
        done = lent_app.command("bench", "serve", "--url", lent_app.url, "--model", "none-such", "--json")
        assert (done.returncode, "serves toy and other; none-such is none of them" in done.stderr) == (2, True)
    finally:
        lent_app.post("/control/unload", {"model": "other"}).raise_for_status()


def test_nobody_there_is_a_sentence(real_app: RealApp) -> None:
    done = real_app.command("bench", "serve", "--url", "http://127.0.0.1:9", "--json")
    assert done.returncode != 0
    assert "does not answer as an OpenAI-compatible server" in done.stderr


def test_what_was_refused_is_counted_and_not_measured() -> None:
    good = Exchange(asked=0.0, first=1.0, ended=3.0, prompt_tokens=4, tokens=5)
    found = report("toy", [good, Exchange(refusal="429"), Exchange(refusal="429"), Exchange()], seconds=2.0)
    assert (found.answered, found.refused) == (1, {"429": 2, "no text": 1})
    assert (found.first_token_ms.p50, found.per_token_ms.p99, found.tokens_per_s) == (1000.0, 500.0, 2.5)


def test_percentiles_are_between_the_measured() -> None:
    found = percentiles([float(value) for value in range(1, 102)])
    assert (found.p50, found.p95, found.p99) == (51.0, 96.0, 100.0)
    assert percentiles([]).p99 == 0.0
