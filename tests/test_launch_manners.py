"""What launch.py answers in a fresh checkout, where nothing is installed and nothing can be: no tool is in its PATH."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from together import __version__, commands

ROOT = Path(__file__).resolve().parent.parent
posix = pytest.mark.skipif(os.name != "posix", reason="paths and quotes of POSIX")


def start(checkout: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(checkout / "launch.py"), *arguments]
    return subprocess.run(command, env={**os.environ, "PATH": ""}, cwd=checkout, capture_output=True, text=True)


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    for name in ("installer", "together"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "launch.py", tmp_path)
    return tmp_path


def untouched(checkout: Path) -> bool:
    return not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], ["help"], ["help", "help"], ["help", "--help"], ["help", ""]]
)
def test_help_comes_before_everything(arguments: list[str], fresh: Path) -> None:
    answer = start(fresh, *arguments)
    assert (answer.returncode, answer.stderr) == (0, "")
    for name in commands.LINES:
        assert re.search(rf"^  {name} +\w", answer.stdout, re.MULTILINE), name
    assert "launch.py help COMMAND" in answer.stdout
    assert untouched(fresh)


@posix
def test_help_for_a_reader_that_leaves_is_no_error(fresh: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, str(fresh / "launch.py"), "help"]
    answer = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_the_version_comes_before_everything(fresh: Path) -> None:
    for word in ("--version", "-V"):
        answer = start(fresh, word)
        assert (answer.returncode, answer.stdout, answer.stderr) == (0, f"together {__version__}\n", "")
    assert untouched(fresh)


SHORT = ("up", "status", "bench", "check", "test")  # two starts of an interpreter each


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SHORT else pytest.mark.full) for name in commands.LINES]
)
def test_the_help_of_a_command_before_it_is_installed(name: str, fresh: Path) -> None:
    answer = start(fresh, "help", name)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert commands.LINES[name] in answer.stdout
    assert answer.stdout == start(fresh, name, "--help").stdout
    assert ("once together is installed" in answer.stdout) == (name not in commands.OWN)
    assert untouched(fresh)


def test_the_help_of_options_alone_is_that_of_up(fresh: Path) -> None:
    assert start(fresh, "--model", "x", "--help").stdout == start(fresh, "up", "--help").stdout


UNKNOWN = [
    (["staus"], "there is no command staus; did you mean {} status?"),
    (["help", "staus"], "there is no command staus; did you mean {} status?"),
    (["start", "--port", "1"], "did you mean {} up?"),
    (["ls"], "did you mean {} list?"),
    (["org/name"], "to load a model: {} run org/name."),
    (["xyzzy"], "there is no command xyzzy. The commands: up, node, "),
    (["\x1b[2J"], "there is no command '\\x1b[2J'. The commands: "),
]


@pytest.mark.parametrize(("arguments", "sentence"), UNKNOWN)
def test_a_word_that_is_no_command(arguments: list[str], sentence: str, fresh: Path) -> None:
    answer = start(fresh, *arguments)
    assert (answer.returncode, answer.stdout) == (2, "")
    words = f"{Path(sys.executable).name} {shlex.quote(str(fresh / 'launch.py'))}"
    assert sentence.format(words) in answer.stderr
    assert answer.stderr.startswith("together: ")
    assert answer.stderr.count("\n") == 1
    assert untouched(fresh)


TYPED = [
    (["python3", "launch.py", "up"], "launch.py", "python3 launch.py"),
    (["/opt/x/bin/python3.12", "launch.py"], "launch.py", "python3.12 launch.py"),
    ([".venv/bin/python", "-B", "launch.py"], "launch.py", ".venv/bin/python launch.py"),
    (["python3", "my tools/launch.py"], "my tools/launch.py", "python3 'my tools/launch.py'"),
    (["strange", "launch.py"], "launch.py", "python3 launch.py"),
    ([], "launch.py", "python3 launch.py"),
]


@posix
@pytest.mark.parametrize(("line", "script", "words"), TYPED)
def test_how_it_was_typed(line: list[str], script: str, words: str) -> None:
    assert commands.typed(line, script) == words


def test_a_checkout_without_its_installer(fresh: Path) -> None:
    shutil.rmtree(fresh / "installer")
    answer = start(fresh)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr == "together: installer is missing beside launch.py; get the whole checkout of together\n"
