"""README and docs: every command runs, every example works, every link leads somewhere.

The commands run in the order of the documents, as one person would type them: against a small hub on loopback that
serves tiny models under the names of the documents, with a home of their own.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import httpx
import pytest
import typer
import yaml  # type: ignore[import-untyped]
from typer.core import TyperGroup

from tests.conftest import ROOT, environment_for
from tests.support.documents import DOCUMENTS, LAUNCH, Block, anchors, block_with, blocks, links, spans
from tests.support.gguf_models import make_gguf
from tests.support.hub import HubServer, serve_hub
from tests.support.hub_words import make_folder
from tests.support.lightest import LIGHTEST
from tests.support.other_programs import LIBRARY, OllamaFolder
from tests.support.patience import PATIENCE
from together.desktop.bench.cli import app as bench_commands
from together.desktop.cli import app as command_line
from together.desktop.keys import app as key_commands
from together.desktop.models import app as model_commands
from together.desktop.tools import app as tool_commands

RUN = ("sh", "python")
READ = ("yaml", "ini", "xml", "toml", "json", "text")
HUB_MODEL = "Qwen/Qwen3-0.6B"
GGUF_MODEL, GGUF_FILE = "bartowski/Llama-3.2-1B-Instruct-GGUF", "Llama-3.2-1B-Instruct-Q4_K_M"
LONG = 3 * PATIENCE  # its stand-in has random weights and writes 2,048 tokens, on a machine that may be busy


# --- what is only read ------------------------------------------------------------------------------------------------


def test_every_block_says_what_it_is() -> None:
    assert {block.language for block in blocks()} <= {*RUN, *READ}


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_links_lead_somewhere(file: Path) -> None:
    for link in links(file):
        if not link.startswith("https://"):
            name, _, anchor = link.partition("#")
            target = (file.parent / name).resolve() if name else file
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@cache
def _commands() -> TyperGroup:
    group = typer.main.get_command(command_line)
    assert isinstance(group, TyperGroup)
    return group


def _parse(words: list[str]) -> None:
    """Raises an error of typer's where the command line would not take these words."""
    group = _commands()
    if not words or words[0].startswith("-"):
        words = ["up", *words]
    everything = group.make_context("launch.py", words, resilient_parsing=True)
    name, command, rest = group.resolve_command(everything, words)
    assert command is not None, words
    command.make_context(name, list(rest))


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_commands_in_sentences_are_commands(file: Path) -> None:
    for span in spans(file):
        if span.startswith(("python3 launch.py", "launch.py")):
            words = span.removeprefix("python3 ").removeprefix("launch.py").split()
            if words[:1] not in (["audit"], ["test"], ["help"]):
                _parse(words)


PARTED = {
    "bench": bench_commands,
    "models": model_commands,
    "keys": key_commands,
    "tools": tool_commands,
}  # commands with commands of their own


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_options_that_are_named_with_a_command_are_its_own(file: Path) -> None:
    for span in spans(file):
        words = span.split()
        if words[0] in _commands().commands and any(word.startswith("-") for word in words):
            parted = words[0] in PARTED and not words[1].startswith("-")
            group = typer.main.get_command(PARTED[words[0]]) if parted else _commands()
            assert isinstance(group, TyperGroup)
            parameters = group.commands[words[1 if parted else 0]].params
            known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
            assert {word for word in words if word.startswith("-")} <= known, span


def test_the_table_of_commands_is_whole() -> None:
    lines = (ROOT / "docs/machine.md").read_text(encoding="utf-8").partition("## When")[0].splitlines()
    cells = [line.split("|")[1] for line in lines if line.startswith("| `")]
    named = {span.split()[0] for cell in cells for span in re.findall("`([^`]+)`", cell)}
    there = {name for name, command in _commands().commands.items() if not command.hidden}
    assert named == there | {"audit", "test"}


def test_settings_for_other_programs_are_right() -> None:
    assert yaml.safe_load(block_with("docs/programs.md", "model_list").text)["model_list"]


# --- what is run ------------------------------------------------------------------------------------------------------


@dataclass
class Reader:
    """Somebody who types what the documents say, on two machines. The second one ends with the block that starts it."""

    folder: Path
    hub: HubServer
    environments: dict[str, dict[str, str]]
    started: list[tuple[subprocess.Popen[bytes], str]] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return Path(self.environments["first"]["TOGETHER_HOME"])

    def type(self, words: list[str]) -> None:
        """Run one command as it stands, on free ports and on loopback. Fails where its exit code is not 0."""
        words = [word.replace("0.0.0.0", "127.0.0.1") for word in words]
        if words[: len(LAUNCH)] == LAUNCH:
            self._launch(words[len(LAUNCH) :])
        else:
            self.app()
            command = [sys.executable if word == ".venv/bin/python" else self.here(word) for word in words]
            self._run(command, ROOT)

    def here(self, text: str) -> str:
        """Text of a document with the address of this reader's app."""
        return text.replace("http://127.0.0.1:8765", self.app())

    def app(self) -> str:
        """The address of the running app; it is started where none runs."""
        if not self._runs():
            self._start(["up"], "first")
        url: str = json.loads((self.home / "app.json").read_text())["url"]
        return url

    def _runs(self) -> bool:
        return (self.home / "app.json").exists()

    def _launch(self, words: list[str]) -> None:
        command = words[0] if words else "up"
        if command == "node":
            self._start(words, "second")
        elif command == "up" and not self._runs():
            self._start(words or ["up"], "first")
        else:
            if command not in ("up", "help", "inspect", "pull", "list", "doctor", "cluster-file", "test"):
                self.app()
            if words[:1] == ["rm"] and "--quantize" not in words:  # a form was made by the commands before
                self._run([sys.executable, "-m", "together", "pull", *words[1:]], self.folder)
            self._run([sys.executable, "-m", "together", *words], self.folder)

    def _run(self, command: list[str], where: Path) -> str:
        done = subprocess.run(
            command,
            cwd=where,
            env=self.environments["first"],
            input="y\n",  # rm asks
            capture_output=True,
            text=True,
            timeout=LONG,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def _start(self, words: list[str], machine: str) -> None:
        extra = ["--no-browser", "--port", "0"] if words[0] == "up" else []
        log = self.folder / f"{machine}-{len([*self.folder.glob('*.log')])}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "together", *words, *extra],
                cwd=self.folder,
                env=self.environments[machine],
                stdout=output,
                stderr=output,
            )
        self.started.append((process, machine))
        _wait_until_it_serves(process, log, "is ready on" if words[0] == "up" else "joined: http")

    def end(self, machine: str = "") -> None:
        """Stop what runs on one machine, or on all."""
        ending = [process for process, on in self.started if machine in ("", on)]
        self.started = [item for item in self.started if item[0] not in ending]
        for process in ending:
            process.send_signal(signal.SIGTERM)
        for process in ending:
            process.wait(PATIENCE)


def _wait_until_it_serves(process: subprocess.Popen[bytes], log: Path, sign: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while sign not in (said := log.read_text()):
        assert process.poll() is None, said
        assert time.monotonic() < deadline, said
        time.sleep(0.1)


@contextmanager
def _reader(folder: Path, **more: str) -> Iterator[Reader]:
    with serve_hub() as hub:
        hub.add(HUB_MODEL, make_folder(folder / "published", "qwen3"))
        shutil.copytree(ROOT / "examples/demo_model", folder / "user/models/my-model")
        file = make_gguf(folder / GGUF_MODEL, f"{GGUF_FILE}.gguf")
        hub.add(GGUF_MODEL, file.parent)
        shutil.copyfile(file, folder / "user/models/my-model.gguf")
        OllamaFolder(folder / "ollama").add(f"{LIBRARY}/llama3.2/3b", file.read_bytes())
        shared = {
            "HOME": str(folder / "user"),
            "HF_ENDPOINT": hub.url,
            "HF_HUB_CACHE": str(folder / "hub"),
            "OLLAMA_MODELS": str(folder / "ollama"),
            "PYTHONPATH": str(ROOT),
            "TOGETHER_NAME": "studio",
            **more,
        }
        first = environment_for(folder / "home") | shared
        second = first | {"TOGETHER_HOME": str(folder / "other"), "TOGETHER_NAME": "mini"}
        reader = Reader(folder, hub, {"first": first, "second": second})
        try:
            yield reader
        finally:
            reader.end()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    with _reader(tmp_path_factory.mktemp("reader")) as reader:
        yield reader


COMMANDS = [block for block in blocks() if block.language == "sh"]
FIRST = COMMANDS[:3]  # README's: the start, a first real model, and a question


@pytest.fixture(scope="module")
def quick_reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    with _reader(tmp_path_factory.mktemp("quick"), TOGETHER_BACKEND=LIGHTEST) as reader:
        yield reader


@pytest.mark.timeout(2 * LONG)
@pytest.mark.parametrize("block", FIRST, ids=str)
def test_the_first_five_minutes(quick_reader: Reader, block: Block) -> None:
    _type_all(quick_reader, block)


@pytest.mark.full
@pytest.mark.timeout(2 * LONG)
@pytest.mark.parametrize("block", FIRST, ids=str)
def test_the_first_five_minutes_on_the_default_backend(reader: Reader, block: Block) -> None:
    _type_all(reader, block)


@pytest.mark.full
@pytest.mark.parametrize("block", [block for block in COMMANDS if block not in FIRST], ids=str)
def test_other_commands(reader: Reader, block: Block) -> None:
    _type_all(reader, block)


def _type_all(reader: Reader, block: Block) -> None:
    before = next((b for b in blocks() if (b.document, b.number) == (block.document, block.number - 1)), None)
    if before is not None and before.language == "toml":
        (reader.folder / "cluster.toml").write_text(before.text)
    for words in block.lines:
        reader.type(words)
    reader.end("second")


PROGRAMS = [block for block in blocks() if block.language == "python" and "litellm" not in block.text]


@pytest.mark.full
@pytest.mark.parametrize("block", PROGRAMS, ids=str)
def test_programs_run(reader: Reader, block: Block) -> None:
    """LiteLLM's runs where it is installed: tests/api/test_litellm.py."""
    httpx.post(f"{reader.app()}/control/load", json={"model": "demo_model"}, timeout=PATIENCE).raise_for_status()
    said = reader._run([sys.executable, "-c", reader.here(block.text)], ROOT)
    assert "12" in said or "Paris" in said
