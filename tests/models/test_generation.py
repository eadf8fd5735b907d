"""What generation_config.json says of sampling, as requests get it where they are silent."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from together.errors import BadSetting
from together.models.generation import (
    PLAIN,
    USUAL,
    SamplingDefaults,
    read_sampling_defaults,
    sampling_defaults,
    sampling_mode,
)
from together.types import Sampling


def test_a_silent_author_leaves_our_defaults() -> None:
    assert sampling_defaults({"eos_token_id": 2}, "m") == SamplingDefaults(USUAL, ())
    assert (USUAL.temperature, USUAL.top_p) == (0.7, 0.95)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        # as Qwen2.5-Instruct, Llama-3.2-Instruct and Gemma 3 are published
        (
            {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05},
            Sampling(0.7, 20, 0.8, 0.0, 1.05),
        ),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, Sampling(0.6, 0, 0.9)),
        ({"do_sample": True, "top_k": 64, "top_p": 0.95}, Sampling(1.0, 64, 0.95)),
        ({"temperature": 0.3}, Sampling(0.3)),  # do_sample is often left out
        ({"do_sample": True}, PLAIN),
        ({"do_sample": True, "temperature": None, "top_k": 0, "top_p": 1.0}, PLAIN),
        ({"top_k": -1, "min_p": 0.1}, Sampling(1.0, 0, 1.0, 0.1)),
    ],
)
def test_the_authors_values_hold(config: dict[str, object], wanted: Sampling) -> None:
    assert sampling_defaults(config, "m").sampling == wanted


def test_do_sample_false_is_greedy_and_keeps_the_penalty_alone() -> None:
    found = sampling_defaults({"do_sample": False, "temperature": 0.6, "top_k": 5, "repetition_penalty": 1.1}, "m")
    assert found.sampling == Sampling(0.0, repetition_penalty=1.1)
    assert found.by_author == ("temperature", "repetition_penalty")


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -1), ("temperature", "0.5"), ("temperature", True), ("top_p", 0), ("top_k", 1.5), ("min_p", 2)],
)
def test_a_value_out_of_range_is_warned_about_and_silent(
    field: str, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert sampling_defaults({field: value}, "m") == SamplingDefaults()
    assert field in caplog.text


def test_plain_ignores_the_author(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.1}))
    assert read_sampling_defaults(tmp_path).sampling.temperature == 0.1
    assert read_sampling_defaults(tmp_path, "plain") == SamplingDefaults(PLAIN)
    assert sampling_mode("plain") == "plain"
    with pytest.raises(BadSetting, match="default or plain"):
        sampling_mode("hot")


@pytest.mark.parametrize("text", ["", '{"temperature": 0.1,}', "[]"])
def test_a_broken_file_is_warned_about(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert read_sampling_defaults(tmp_path) == SamplingDefaults()
    assert "it is passed over" in caplog.text


def test_no_file_is_a_silent_author(tmp_path: Path) -> None:
    assert read_sampling_defaults(tmp_path) == SamplingDefaults()
