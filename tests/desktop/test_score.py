"""`score` in a terminal: a text, a file or standard input, and what cannot be scored."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from math import exp
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, RealApp, until
from tests.support.checksum import expected_scores
from tests.support.patience import PATIENCE
from together.desktop.scoring import score_lines, text_of
from together.errors import BadSetting

TEXT = "The last stage samples, and everybody else passes it on."
IMAGE = "asserts/chat-wide-light.png"


def figures(text: str) -> tuple[float, float]:
    """The mean log-probability and the perplexity that were printed."""
    found = re.search(r"^mean log-probability: (-[\d.]+)\nperplexity: ([\d.]+)$", text, re.MULTILINE)
    assert found, text
    return float(found[1]), float(found[2])


def test_a_text_a_file_and_standard_input_have_the_scores_of_the_plain_loop(real_app: RealApp, tmp_path: Path) -> None:
    wanted = expected_scores(real_app.home.parent / "toy", list(TEXT.encode()))
    mean = sum(wanted) / len(wanted)
    file = tmp_path / "notes.txt"
    file.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    for words, given in ((TEXT, ""), (str(file), ""), ("-", TEXT)):
        said = real_app.command("score", words, input=given)
        assert (said.returncode, said.stderr) == (0, "")
        first = f"tokens: {len(TEXT)}; {len(TEXT) - 1} are scored, as nothing comes before the first\n"
        assert said.stdout.startswith(first)
        assert figures(said.stdout) == pytest.approx((mean, exp(-mean)), rel=1e-5)


def test_every_token_and_windows_are_shown_where_asked_for(real_app: RealApp) -> None:
    said = real_app.command("score", TEXT, "--tokens", "--window", "20", "--stride", "5").stdout.splitlines()
    assert said[0].split() == ["'T'"]
    assert re.fullmatch(r" *-\d+\.\d{4}  'h'", said[1])
    assert said[-1] == "windows: 9 of 20 tokens, 5 apart"
    found = json.loads(real_app.command("score", TEXT, "--json").stdout)
    assert "".join(token["text"] for token in found["tokens"]) == TEXT
    assert [token["logprob"] for token in found["tokens"]][1:] == pytest.approx(
        expected_scores(real_app.home.parent / "toy", list(TEXT.encode())), abs=1e-5
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("",), "together: the text is empty; give some words"),
        (("a",), "together: the text is a single token; give more words"),
        (("notes.txt",), "together: there is no file notes.txt; name a file, - for standard input, or give a text of"),
        (("tests",), "together: tests is a folder; name one of the files in it"),
        (("tests/__init__.py/x",), "together: there is no file tests/__init__.py/x; name a file"),
        ((IMAGE,), f"together: {IMAGE} is no text in UTF-8 (byte 0); save it in UTF-8"),
        ((TEXT, "--window", "9999"), "together: window must be from 2 to "),
        ((TEXT, "--window", "9", "--stride", "9"), "together: stride must be from 1 to 8 tokens, not 9"),
    ],
)
def test_what_cannot_be_scored_is_a_sentence(real_app: RealApp, arguments: tuple[str, ...], words: str) -> None:
    said = real_app.command("score", *arguments)
    assert said.returncode in (1, 2)
    assert said.stdout == ""
    assert said.stderr.startswith(words)


def test_a_text_without_end_is_a_sentence(real_app: RealApp) -> None:
    said = real_app.command("score", "-", input="a " * 1_000_001)
    assert said.returncode == 2
    assert said.stderr.startswith("together: the text has 2,000,002 letters, and at most 2,000,000 are scored at once")


@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
def test_ctrl_c_ends_it_on_every_stage(real_app: RealApp) -> None:
    command = [sys.executable, "-m", "together", "score", TEXT * 1000, "--window", "60", "--stride", "1"]
    with subprocess.Popen(command, cwd=ROOT, env=real_app.environment, stderr=subprocess.PIPE) as scoring:
        until(lambda: real_app.serving()["running"], PATIENCE, "the text is scored")
        scoring.send_signal(signal.SIGINT)
        assert scoring.communicate(timeout=PATIENCE)[1] == b""
        assert scoring.returncode == 130
    until(lambda: not real_app.serving()["running"], PATIENCE, "the app has forgotten it")


def test_a_stage_that_dies_meanwhile_changes_no_score(lent_app: RealApp) -> None:
    arguments = ("score", TEXT * 3, "--window", "60", "--stride", "1", "--tokens")
    undisturbed = lent_app.command(*arguments)
    assert undisturbed.stdout.endswith("windows: 109 of 60 tokens, 1 apart\n")
    command = [sys.executable, "-m", "together", *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=lent_app.environment, stdout=subprocess.PIPE, text=True) as scoring:
        until(lambda: lent_app.serving()["running"], PATIENCE, "the text is scored")
        pid = lent_app.stage_pids()[1]
        psutil.Process(pid).kill()
        assert scoring.communicate(timeout=PATIENCE)[0] == undisturbed.stdout
    assert pid not in lent_app.stage_pids(), "it was killed while the text was scored"


def test_a_word_with_a_stop_is_a_text() -> None:
    for text in ("Hello.", "No. 5 is alive", "see a/b or c", "1.5", "x" * 10_000, "nul\0"):
        assert text_of(text) == text


def test_what_no_one_may_read_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "secret.txt"
    file.symlink_to(file)
    with pytest.raises(BadSetting, match="there is no file"):
        text_of(str(file))


def test_infinite_figures_have_a_word() -> None:
    token = {"text": "a", "logprob": -9999.0}
    score = {"tokens": [token], "scored": 1, "mean_logprob": -9999.0, "perplexity": None, "windows": 1}
    assert list(score_lines(score, each=False))[-1] == "perplexity: infinite"
