"""A partitioned model at work: real stage processes of the checksum toy, asked by threads, ended in every way.

What the toy says is known without shards, so every answer is compared to the last letter.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from math import exp
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ROOT, until
from tests.support.checksum import EOS, QUIET, expected_scores, expected_text, make_checksum_model
from tests.support.hub_home import own_home, own_hub
from tests.support.lightest import LIGHTEST
from tests.support.patience import PATIENCE
from tests.support.pieces import exported
from together.cluster.claims import all_nodes
from together.cluster_types import LetGo
from together.errors import BadRequest, BrokenModel, ContextTooLong, LoadFailed, NotServing, RingBroken
from together.requests import Message
from together.scripting import Options, PartitionedModel, PartitionStrategy, partition
from together.settings import load_settings
from together.types import LayerRange, Sampling
from together.weights.part import DiskFull
from together.weights.room import CacheRoom

LAYERS = 4
BY_HAND = PartitionStrategy(
    strategy_type="custom", custom_boundaries=[(0, 0), (1, 3)], context=1024, users=4, backend="checksum"
)
GREEDY = Sampling(temperature=0.0)
ENDLESS: dict[str, Any] = {"max_tokens": 900, "ignore_eos": True}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOGETHER_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def toy(home: Path) -> Path:
    return make_checksum_model(home / "toy", layers=LAYERS, quiet_ids=(*QUIET, EOS), step_ms=0.5)


@pytest.fixture(scope="module")
def model(toy: Path) -> Iterator[PartitionedModel]:
    """For tests that leave it as they found it."""
    with partition(toy, BY_HAND) as model:
        yield model


def stages(parent: int | None = None) -> list[psutil.Process]:
    """Stage processes of a process (None: this one), alive now."""
    found = []
    for child in psutil.Process(parent).children(recursive=True):
        try:
            if "together.ring.stage" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def expected(model: PartitionedModel, toy: Path, question: str, tokens: int, sampling: Sampling = GREEDY) -> str:
    return expected_text(toy, model.text.prompt_ids([Message("user", question)]), tokens, sampling)


# --- asking -----------------------------------------------------------------------------------------------------------


def test_it_says_who_holds_what(model: PartitionedModel) -> None:
    assert [str(item) for item in model.plan.ranges] == ["0:1", "1:4"]
    assert "partition 0: layers 0:1 on cpu (checksum)" in str(model)
    assert "partition 1: layers 1:4 on cpu (checksum)" in str(model)


def test_nodes_of_this_machine_know_what_a_script_uses(model: PartitionedModel) -> None:
    (own,) = (node for node in all_nodes(load_settings()) if node.pid == os.getpid())
    assert [claim.size for claim in own.claims] == [part.memory_bytes for part in model.plan.partitions]
    assert {claim.pid for claim in own.claims} <= {stage.pid for stage in stages()}


def test_an_answer_is_the_whole_models(model: PartitionedModel, toy: Path) -> None:
    assert model.generate("hello", max_tokens=12, temperature=0) == expected(model, toy, "hello", 12)


def test_sampling_settings_reach_the_last_stage(model: PartitionedModel, toy: Path) -> None:
    drawn = Sampling(temperature=0.8, top_k=40, top_p=0.9, repetition_penalty=1.2, seed=7)
    options: Options = {
        "max_tokens": 12,
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.9,
        "repetition_penalty": 1.2,
        "seed": 7,
    }
    answer = model.generate("hello", **options)
    assert answer == expected(model, toy, "hello", 12, drawn)
    other: Options = {**options, "seed": 8}
    assert answer != model.generate("hello", **other)


def test_a_conversation_streams(model: PartitionedModel, toy: Path) -> None:
    turns: list[Message | dict[str, str]] = [
        {"role": "user", "content": "one"},
        Message("assistant", "two"),
        {"role": "user", "content": "three"},
    ]
    pieces = list(model.stream(turns, max_tokens=12, temperature=0))
    same = [Message("user", "one"), Message("assistant", "two"), Message("user", "three")]
    assert len(pieces) > 1
    assert "".join(pieces) == expected_text(toy, model.text.prompt_ids(same), 12, GREEDY)


def test_a_text_is_scored_whole_and_in_windows(model: PartitionedModel, toy: Path) -> None:
    text = "hidden states travel, and tokens come back"
    wanted = expected_scores(toy, list(text.encode()))
    score = model.score(text)
    assert [token.logprob for token in score.tokens] == pytest.approx(wanted, abs=1e-5)
    assert score.perplexity == pytest.approx(exp(-sum(wanted) / len(wanted)), rel=1e-5)
    assert model.score(text, window=16, stride=4).windows == 8
    with pytest.raises(BadRequest, match="the text is empty"):
        model.score("")


def test_bits_per_weight_are_those_that_are_stored(model: PartitionedModel) -> None:
    assert model.plan.bits_per_weight == 32


def test_the_last_piece_has_counts_and_times(model: PartitionedModel) -> None:
    pieces = list(model.pieces("hello", max_tokens=5, temperature=0))
    last = pieces[-1]
    assert last.finish == "length"
    assert last.usage is not None
    assert last.usage.completion_tokens == sum(len(piece.token_ids) for piece in pieces) == 5
    assert last.timings is not None
    assert len(last.timings.compute) == 2


def test_a_stop_text_ends_an_answer(model: PartitionedModel, toy: Path) -> None:
    whole = expected(model, toy, "hello", 12)
    stop = whole[5:7]
    assert model.generate("hello", max_tokens=12, temperature=0, stop=stop) == whole[: whole.index(stop)]


def test_several_threads_ask_at_once(model: PartitionedModel, toy: Path) -> None:
    questions = [f"question {number}" for number in range(6)]
    gate = threading.Barrier(len(questions))

    def ask(question: str) -> str:
        gate.wait()
        return model.generate(question, max_tokens=16, temperature=0)

    with ThreadPoolExecutor(len(questions)) as pool:
        answers = list(pool.map(ask, questions))
    assert answers == [expected(model, toy, question, 16) for question in questions]


def test_leaving_a_stream_ends_its_answer(model: PartitionedModel) -> None:
    before = model.stats().generated_tokens
    for _ in range(3):
        stream = model.stream("hello", temperature=0, **ENDLESS)
        assert len(list(islice(stream, 2))) == 2
        del stream
    until(lambda: model.stats().running + model.stats().waiting == 0, PATIENCE, "nobody is answered any more")
    assert model.stats().generated_tokens - before < 3 * ENDLESS["max_tokens"] / 2


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"temprature": 1}, "temprature", "no option 'temprature'; choose among max_tokens, stop"),
    ({"temperature": "hot"}, "temperature", "temperature must be a number, not 'hot'"),
    ({"temperature": 3}, "temperature", "temperature must be from 0 to 2, not 3"),
    ({"top_k": 1.5}, "top_k", "top_k must be a whole number"),
    ({"max_tokens": 0}, "max_tokens", "ask for at least 1"),
    ({"max_tokens": True}, "max_tokens", "max_tokens must be a whole number"),
    ({"seed": -1}, "seed", "seed must be from 0"),
    ({"stop": ""}, "stop", "stop must be a text or several, none of them empty"),
    ({"stop": ["a", 1]}, "stop", "stop must be a text"),
    ({"logit_bias": [1]}, "logit_bias", "logit_bias maps token ids to numbers"),
    ({"logit_bias": {10**6: 1.0}}, "logit_bias", "a token id of logit_bias"),
]


@pytest.mark.parametrize(("options", "param", "sentence"), WRONG)
def test_a_wrong_option_is_named(model: PartitionedModel, options: dict[str, Any], param: str, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence) as caught:
        model.generate("hello", **options)
    assert caught.value.param == param


@pytest.mark.parametrize("prompt", [[{"role": "user"}], ["hello"], [{"role": "user", "content": 1}]])
def test_a_conversation_of_something_else_is_refused(model: PartitionedModel, prompt: Any) -> None:
    with pytest.raises(BadRequest, match=r"messages\.0 must have a role and a content"):
        model.generate(prompt)


def test_a_prompt_longer_than_the_context_is_refused(model: PartitionedModel) -> None:
    with pytest.raises(ContextTooLong, match="maximum context length is 1024"):
        model.generate("word " * 1000)


# --- ending -----------------------------------------------------------------------------------------------------------


def test_the_block_ends_its_processes_and_open_answers(toy: Path) -> None:
    before = {process.pid for process in stages()}
    with partition(toy, BY_HAND) as model:
        own = [process for process in stages() if process.pid not in before]
        assert len(own) == 2
        answer = model.stream("hello", **ENDLESS)
        next(answer)
    assert not any(process.is_running() for process in own)
    with pytest.raises(NotServing, match="was closed; call partition again"):
        list(answer)
    with pytest.raises(NotServing, match="was closed; call partition again"):
        model.generate("hello")
    model.close()


def test_closing_while_a_thread_waits_for_its_answer_says_so_there(toy: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        with partition(toy, BY_HAND) as model:
            asked = pool.submit(model.generate, "hello", **ENDLESS)
            until(lambda: model.stats().generated_tokens > 0, PATIENCE, "it answers")
        with pytest.raises(NotServing, match="was closed; call partition again"):
            asked.result(PATIENCE)


def test_an_exception_in_the_block_ends_its_processes(toy: Path) -> None:
    before = {process.pid for process in stages()}
    with pytest.raises(ZeroDivisionError, match=f"^{len(before) + 2}$"), partition(toy, BY_HAND):
        raise ZeroDivisionError(len(stages()))
    assert {process.pid for process in stages()} == before


def test_a_stage_that_cannot_load_says_why_and_leaves_nothing(tmp_path: Path, home: Path) -> None:
    toy = make_checksum_model(tmp_path / "toy", layers=LAYERS)
    before = {process.pid for process in stages()}
    text = (toy / "config.json").read_text().replace('"hidden_size": 8', '"hidden_size": 8, "block": "many"')
    (toy / "config.json").write_text(text)
    with pytest.raises(LoadFailed, match="block = 'many'"):
        partition(toy, BY_HAND)
    assert {process.pid for process in stages()} == before


def test_a_folder_with_a_part_of_a_model_is_refused(toy: Path, tmp_path: Path) -> None:
    exported(toy, LayerRange(0, 2), tmp_path / "part")
    with pytest.raises(BrokenModel, match=r"part has only .*layers 0:2 of .*; copy the rest"):
        partition(tmp_path / "part", BY_HAND)


def test_a_model_of_the_hub_is_split_without_its_weights_and_fetched_to_run(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_home(tmp_path, monkeypatch)
    with own_hub(monkeypatch) as hub:
        hub.add("acme/toy", toy)
        assert [str(item) for item in BY_HAND.ranges("acme/toy")] == ["0:1", "1:4"]
        planned = hub.weights_served()
        monkeypatch.setenv("TOGETHER_CACHE", "0.000001GB")
        with pytest.raises(DiskFull, match="--cache 1GB"):
            partition("acme/toy", BY_HAND)
        monkeypatch.delenv("TOGETHER_CACHE")
        assert hub.weights_served() == planned
        with partition("acme/toy", BY_HAND) as model:
            assert model.generate("hello", max_tokens=8, temperature=0) == expected(model, toy, "hello", 8)
        assert hub.weights_served() > planned


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_answers_with_its_name(toy: Path, victim: int) -> None:
    before = {process.pid for process in stages()}
    with partition(toy, BY_HAND) as model:
        own = sorted((process for process in stages() if process.pid not in before), key=lambda item: item.pid)
        answer = model.stream("hello", **ENDLESS)
        next(answer)
        own[victim].kill()
        with pytest.raises(RingBroken, match=r"stage \d on checksum/cpu: its process"):
            list(answer)
        until(lambda: not any(process.is_running() for process in own), PATIENCE, "the other one ends as well")
        with pytest.raises(RingBroken):
            model.generate("hello")


SCRIPT = """
import sys
import psutil
from together.scripting import PartitionStrategy, partition
strategy = PartitionStrategy(num_partitions=2, strategy_type="uniform", backend="checksum")
model = partition(sys.argv[1], strategy)
for index, piece in enumerate(model.stream("hello", max_tokens=900, ignore_eos=True)):
    if index == 0:
        print([child.pid for child in psutil.Process().children(recursive=True)], flush=True)
    if sys.argv[2] == "leave":
        break
"""


def run_script(toy: Path, how: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    command = [sys.executable, "-c", SCRIPT, str(toy), how]
    script = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert script.stdout is not None
    line = script.stdout.readline()
    assert line, script.communicate()[1]
    children = [psutil.Process(int(pid)) for pid in line.strip("[] \n").split(",")]
    assert len(children) == 3  # two stages, and the process that renders chat templates
    return script, children


def test_a_script_that_forgets_to_close_ends_and_leaves_nothing(toy: Path) -> None:
    script, children = run_script(toy, "leave")
    _, errors = script.communicate(timeout=PATIENCE)
    assert (script.returncode, errors) == (0, "")
    assert not any(child.is_running() for child in children)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("number", ["SIGINT", "SIGKILL"])
def test_a_script_that_is_interrupted_leaves_nothing(toy: Path, number: str) -> None:
    script, children = run_script(toy, "go on")
    script.send_signal(getattr(signal, number))
    _, errors = script.communicate(timeout=PATIENCE)
    assert script.returncode != 0
    assert ("KeyboardInterrupt" in errors) == (number == "SIGINT")
    until(lambda: not any(child.is_running() for child in children), PATIENCE, "the stages are gone")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_a_script_that_is_interrupted_while_it_loads_leaves_nothing(home: Path) -> None:
    slow = make_checksum_model(home / "slow", layers=LAYERS, load_ms=60_000)
    command = [sys.executable, "-c", SCRIPT, str(slow), "leave"]
    script = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: len(stages(script.pid)) == 2, PATIENCE, "both stages load")
    children = stages(script.pid)
    script.send_signal(signal.SIGINT)
    _, errors = script.communicate(timeout=PATIENCE)
    assert "KeyboardInterrupt" in errors
    assert not any(child.is_running() for child in children)


def test_nobody_lets_go_of_what_a_script_has_loaded(home: Path) -> None:
    """Nodes of the same machine keep its cache within a limit."""
    strategy = PartitionStrategy(num_partitions=1, quantize="4", context=256, backend=LIGHTEST)
    full = pytest.raises(DiskFull, match="nothing else in it can go")
    with partition(ROOT / "examples" / "demo_model", strategy), full:
        CacheRoom(home, 0).make("f" * 64, 1, "another model")
    gone = list[LetGo]()
    CacheRoom(home, 100, gone.append).make("f" * 64, 1, "another model")
    assert [(each.model, each.form) for each in gone] == [("demo_model", "4 bit")]
