"""The example program, against a real app."""

from __future__ import annotations

import json
from pathlib import Path

from examples.ask import ask
from tests.conftest import RealApp, serving_instead
from tests.support.checksum import EOS, QUIET, make_checksum_model


def test_the_example_streams_an_answer_by_the_author_s_values(real_app: RealApp, tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "greedy", quiet_ids=(*QUIET, EOS))
    (toy / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    body = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 12}
    with serving_instead(real_app, toy):
        whole = real_app.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
        pieces = ask("hello", real_app.url + "/v1/chat/completions")
        assert (next(pieces) + next(pieces) + next(pieces) + next(pieces)) in whole
        pieces.close()  # type: ignore[attr-defined]  # a generator: leaving ends the answer


def test_the_address_is_the_default_one() -> None:
    from examples.ask import URL
    from together.settings import Settings

    assert f":{Settings().port}/" in URL
