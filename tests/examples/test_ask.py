"""The example program, against a real app."""

from __future__ import annotations

from examples.ask import ask
from tests.conftest import RealApp


def test_the_example_streams_an_answer(real_app: RealApp) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 12}
    whole = real_app.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    pieces = ask("hello", real_app.url + "/v1/chat/completions")
    assert (next(pieces) + next(pieces) + next(pieces) + next(pieces)) in whole
    pieces.close()  # type: ignore[attr-defined]  # a generator: leaving ends the answer


def test_the_address_is_the_default_one() -> None:
    from examples.ask import URL
    from together.settings import Settings

    assert f":{Settings().port}/" in URL
