"""The manners of the command line: help, words that are no commands, ports, and what list, ps, run and rm do."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import LAYERS, ROOT, RealApp, environment_for, until
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.patience import PATIENCE
from together import __version__, commands
from together.desktop.cli import app, main
from together.errors import BadPlan
from together.sentences import say

# --- without an app ---------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOGETHER_HOME", str(tmp_path))
    monkeypatch.delenv(commands.TYPED, raising=False)
    return tmp_path


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """The one sentence with which a command line is refused."""
    assert main(arguments) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"together: [^\n]+\n", said.err), said.err
    return said.err


def test_the_list_of_commands_is_what_the_program_has() -> None:
    apps = [app, *(group.typer_instance for group in app.registered_groups if group.typer_instance)]
    found = {one.name: one.help for each in apps for one in each.registered_commands}
    assert found == {name: line for name, line in commands.LINES.items() if name not in commands.OWN}


@pytest.mark.parametrize(
    "name", [name for name in commands.LINES if name not in (*commands.OWN, "models", "bench", "keys", "tools")]
)
def test_help_of_a_command(name: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", name]) == 0
    said = capsys.readouterr().out
    assert f"Usage: {commands.launch(name)} " in said
    assert commands.LINES[name] in re.sub(r"\s+", " ", said)
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(("name", "part"), [("models", "export"), ("bench", "hop"), ("keys", "revoke")])
def test_help_of_a_command_with_parts(name: str, part: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"Usage: {commands.launch(name)} [OPTIONS]" in said
    assert part in said
    assert main([name, part, "--help"]) == 0
    assert f"Usage: {commands.launch(f'{name} {part}')} " in capsys.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
@pytest.mark.parametrize("arguments", [("help",), ("cluster-file", "--kinds"), ("up", "--help")], ids=" ".join)
def test_a_reader_that_leaves_sees_no_traceback(arguments: tuple[str, ...], home: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-u", "-m", "together", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_help_and_version_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main(["help"]) == 0
    assert capsys.readouterr().out == 2 * (commands.overview() + "\n")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"together {__version__}\n"


MISREAD = [
    (["staus"], "there is no command staus; did you mean python3 launch.py status?"),
    (["up", "--nonsense"], "no such option: --nonsense; see: python3 launch.py up --help"),
    (["--nonsense"], "no such option: --nonsense; see: python3 launch.py up --help"),
    (["up", "--users", "many"], "invalid value for '--users'"),
    (["up", "--model"], "option '--model' requires an argument; see: python3 launch.py up --help"),
    (["inspect"], "missing argument 'model'; see: python3 launch.py inspect --help"),
    (["rm"], "missing argument 'name'; see: python3 launch.py rm --help"),
    (["bench", "hop", "--x"], "no such option: --x; see: python3 launch.py bench hop --help"),
    (["status", "--port", "9000"], "--port is for up and node; every other command finds the running app by itself"),
    (["up", "--port", "80801"], "--port 80801 cannot be a port; give a number from 1 to 65535; 0 takes any"),
    (["up", "--port", "-3"], "--port -3 cannot be a port"),
    (["up", "--port", "abc"], "--port abc cannot be a port"),
    (["--port", "99999999999999999999"], "--port 99999999999999999999 cannot be a port"),
    (["node", "--port", "65530"], "--port 65530 cannot be a port; give a number from 1100 to 65520\n"),
    (["node", "--port", "0"], "--port 0 cannot be a port"),
]


@pytest.mark.skipif(sys.platform == "win32", reason="the words of POSIX")
@pytest.mark.parametrize(("arguments", "sentence"), MISREAD)
def test_a_command_line_that_cannot_be_read(
    arguments: list[str], sentence: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(arguments, capsys).startswith(f"together: {sentence}")


@pytest.mark.parametrize(("name", "text"), [("PORT", "80801"), ("PORT", "x"), ("NODE_PORT", "65530")])
def test_a_port_of_the_environment(
    name: str, text: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"TOGETHER_{name}", text)
    assert f"TOGETHER_{name}={text} cannot be a port" in refused(["status"], capsys)


@pytest.mark.parametrize("command", ["status", "ps", "stop", "unload", "balance", "load", "score text"])
def test_without_an_app_it_is_a_sentence(command: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = f"together: together is not running; start it with: {commands.launch()}\n"
    assert refused(command.split(), capsys, 1) == said


def test_messages_name_the_command_as_it_was_typed(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(commands.TYPED, "py tools/launch.py")
    assert refused(["status"], capsys, 1).endswith("start it with: py tools/launch.py\n")
    assert "see: py tools/launch.py up --help" in refused(["up", "--nonsense"], capsys)
    assert str(say("no_model")).endswith("with: py tools/launch.py up --model FOLDER")
    foreign = BadPlan("see {text}", text="python3 launch.py of another machine")
    assert str(foreign) == "see python3 launch.py of another machine"


def test_rm_and_list(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checksum_model(home / "models" / "mine", layers=2)
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "none"))
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert "demo_model" in listed
    assert "mine" in listed
    assert "launch.py list" in refused(["rm", "others"], capsys)
    assert main(["rm", "mine", "--yes"]) == 0
    assert str(folder) in capsys.readouterr().out
    assert not folder.exists()
    assert main(["list", "--json"]) == 0
    assert [model["name"] for model in json.loads(capsys.readouterr().out)["models"]] == ["demo_model"]


def test_pull_wants_a_name_of_the_hub(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "write it as org/name" in refused(["pull", "nonsense"], capsys)


# --- nodes alone ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def node(environment: dict[str, str], log: Path) -> Iterator[str]:
    """A node of its own, and what it says once it is there."""
    command = [sys.executable, "-m", "together", "node", "--backend", "checksum"]
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
    try:
        until(lambda: "Ctrl-C stops it" in log.read_text() or process.poll(), PATIENCE, "the node is there")
        yield log.read_text()
    finally:
        process.terminate()
        process.wait(PATIENCE)


def main_of(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "together", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )


def test_nodes_without_an_app(tmp_path: Path) -> None:
    environment = environment_for(tmp_path / "home")
    first = int(environment["TOGETHER_NODE_PORT"])
    with node(environment, tmp_path / "one") as one, node(environment, tmp_path / "two") as two:
        assert "taken" not in one
        line = f"ports {first} to {first + 15} are taken by .*; this node uses {first + 16} to {first + 31}\n"
        assert re.match(line, two)
        if sys.platform == "linux":
            assert "are taken by another together (process " in two
        noted = main_of(environment, "logs").stdout
        assert noted.count(" INFO said: node ") == 2  # a file for each of them
        assert len(list((tmp_path / "home" / "logs").glob("node-*.log"))) == 2
        for command in ("stop", "status"):
            said = main_of(environment, command)
            assert said.returncode == 1
            assert said.stderr.startswith("together: a node runs here, and no app: Ctrl-C in its terminal ends it")


def test_the_page_s_port_is_taken(tmp_path: Path) -> None:
    environment, log = environment_for(tmp_path / "home"), tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as held, log.open("w") as out:
        port = held.getsockname()[1]
        command = [sys.executable, "-m", "together", "up", "--no-browser", "--local-nodes", "0", "--port", str(port)]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
        try:
            until(lambda: "page and API" in log.read_text() or process.poll(), PATIENCE, "the page is there")
        finally:
            process.terminate()
            process.wait(PATIENCE)
    said = log.read_text()
    holder = rf"\S+ \(process {os.getpid()}\)" if sys.platform == "linux" else ".*"
    moved = re.search(rf"^port {port} is taken by {holder}; the page uses (\d+)\n", said, re.MULTILINE)
    assert moved, said
    assert f"page and API: http://127.0.0.1:{moved.group(1)} " in said


# --- with an app ------------------------------------------------------------------------------------------------------


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A model that the app does not serve; its answers end where its context does."""
    return make_checksum_model(tmp_path / "other", layers=LAYERS, context=128, quiet_ids=(*QUIET, EOS))


@pytest.fixture
def kept(real_app: RealApp) -> Iterator[RealApp]:
    """The app of all tests, which serves its own model again at the end."""
    yield real_app
    toy = real_app.home.parent / "toy"
    real_app.post("/control/load", {"model": str(toy), "layers": "0:2,2:4"}).raise_for_status()


def test_ps(real_app: RealApp) -> None:
    (served,) = json.loads(real_app.command("ps", "--json").stdout)["models"]
    assert served["model"] == "toy"
    assert list(served["layers"].values()) == ["0:2", "2:4"]
    assert served["bytes"] > 0
    assert served["since"] >= real_app.tree()[0].create_time()
    shown = real_app.command("ps").stdout
    assert "toy" in shown
    assert "0:2" in shown
    assert "since" in shown


def test_ps_without_a_model(kept: RealApp) -> None:
    kept.post("/control/unload", {}).raise_for_status()
    assert kept.command("ps").stdout.startswith("no model is loaded; ")
    assert kept.command("score", "A text of some words.").stderr.startswith("together: no model is loaded; load one ")
    assert json.loads(kept.command("ps", "--json").stdout) == {"models": []}


def test_up_loads_a_model_in_the_running_app(kept: RealApp, other: Path) -> None:
    said = kept.command("up", "--no-browser", "--model", str(other), "--layers", "0:3,3:4", "--port", "9000")
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    assert lines[0] == f"together is already running: {kept.url}"
    assert re.match(r"not used: --port; for a new start: .*launch\.py stop, then this command again$", lines[1])
    assert lines[2] == f"loading {other} there"
    assert lines[-1] == f"other is ready at {kept.url}"
    assert kept.serving()["model"] == "other"
    ring = kept.serving()["ring"]
    again = kept.command("up", "--no-browser", "--model", str(other))
    assert again.stdout.splitlines()[1:] == ["other is served there already"]
    assert kept.serving()["ring"] == ring
    layers = kept.command("up", "--no-browser", "--local-nodes", "3", "--layers", "0:8")
    assert "not used: --local-nodes, --layers; " in layers.stdout


def test_up_with_a_model_that_cannot_be_loaded(real_app: RealApp, other: Path) -> None:
    (other / "model.safetensors").write_bytes(b"")
    for model in (str(other), "nowhere/at/all"):
        said = real_app.command("up", "--no-browser", "--model", model)
        assert said.returncode in (1, 2)
        assert re.fullmatch(r"together: [^\n]+\n", said.stderr)
    assert real_app.serving()["state"] == "READY"
    assert real_app.serving()["model"] == "toy"


def test_run_loads_what_is_not_served(kept: RealApp, other: Path) -> None:
    ring = kept.serving()["ring"]
    same = kept.command("run", str(kept.home.parent / "toy"), input="")
    assert same.returncode == 0, same.stderr
    assert kept.serving()["ring"] == ring
    said = kept.command("run", str(other), "Hello")
    assert said.returncode == 0, said.stderr
    assert f"loading {other}\n" in said.stderr
    assert kept.serving()["model"] == "other"
    assert said.stdout.strip()
    assert "ready" not in said.stdout  # a pipe gets the answer alone


def test_run_starts_an_app_for_the_time(tmp_path: Path, other: Path) -> None:
    environment = environment_for(tmp_path / "home") | {"TOGETHER_BACKEND": "checksum"}
    command = [sys.executable, "-m", "together", "run", str(other), "Hello"]
    said = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, input="", timeout=2 * PATIENCE, check=False
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip()
    assert not (tmp_path / "home" / "app.json").exists()
