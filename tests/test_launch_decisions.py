"""What launch.py and installer/ decide, function by function: the machine, torch, the index, pip's words.

Knows nothing of installing and starting, which tests/test_launch.py does for real. Nothing leaves loopback.
"""

import ast
import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from installer import environment, machine
from installer.machine import Driver, Machine
from installer.packages import count_packages, pip_sentence
from installer.steps import last_words
from tests.support.patience import PATIENCE

ROOT = Path(__file__).resolve().parent.parent
posix = pytest.mark.skipif(os.name != "posix", reason="shell scripts")


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


OLD = Machine((3, 10, 13), "Linux", "x86_64", 64)
REFUSED = [
    (OLD, r"needs Python 3\.11 or newer, this is 3\.10\.13"),
    (OLD._replace(python=(3, 6, 15)), r"this is 3\.6\.15"),
    (Machine((3, 12, 1), "Darwin", "x86_64", 64), "Intel Macs"),
    (Machine((3, 12, 1), "Windows", "x86", 32), "32-bit"),
]


@pytest.mark.parametrize(("here", "sentence"), REFUSED)
def test_a_machine_that_cannot_run_it(here: Machine, sentence: str) -> None:
    said = machine.unsupported(here)
    assert said is not None
    assert re.search(sentence, said)
    assert "\n" not in said


@pytest.mark.parametrize(
    "system", [("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64"), ("Windows", "AMD64")]
)
def test_a_machine_that_can(system: tuple[str, str]) -> None:
    assert machine.unsupported(Machine((3, 11, 0), *system, 64)) is None


OLD_PYTHONS_READ = ["launch.py", "together/__init__.py", "together/commands.py"]
OLD_PYTHONS_READ += [path.relative_to(ROOT).as_posix() for path in (ROOT / "installer").glob("*.py")]


@pytest.mark.parametrize("name", OLD_PYTHONS_READ)
def test_an_old_python_can_read_it(name: str) -> None:
    source = (ROOT / name).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 6))
    future = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    assert future == []  # "annotations" is unknown to 3.6
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert {module.partition(".")[0] for module in modules} <= {*sys.stdlib_module_names, "installer", "together"}
    assert {module for module in modules if module.startswith("together")} <= {"together"}  # which imports nothing


def old_pythons() -> list[str]:
    """Real old interpreters, where this machine has any."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [str(path) for minor in range(6, 11) for path in pyenv.glob(f"3.{minor}.*/bin/python")]
    return found or [path for minor in range(6, 11) if (path := shutil.which(f"python3.{minor}"))]


@pytest.mark.parametrize("python", old_pythons())
def test_a_real_old_python_gets_one_sentence(python: str) -> None:
    answer = subprocess.run([python, "-B", str(ROOT / "launch.py"), "chat"], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert re.fullmatch(r"together: needs Python 3\.11 or newer, this is 3\.\d+\.\d+; .*\n", answer.stderr)
    helped = subprocess.run([python, "-B", str(ROOT / "launch.py"), "--help"], capture_output=True, text=True)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "\n  doctor       What this machine can do" in helped.stdout


LINUX = Machine((3, 12, 1), "Linux", "x86_64", 64)
BUILDS = [
    (None, "cpu"),
    (Driver(470, 8.6), "cpu"),  # before CUDA 12
    (Driver(535, 8.9), "cu126"),
    (Driver(580, 6.1), "cu126"),  # CUDA 13 has dropped Pascal
    (Driver(580, 9.0), "cu130"),
    (Driver(590, None), "cu130"),
]


@pytest.mark.parametrize(("driver", "name"), BUILDS)
def test_the_build_of_torch(driver: Driver | None, name: str) -> None:
    assert machine.choose_torch(LINUX, driver).name == name
    assert machine.choose_torch(LINUX._replace(system="Darwin", processor="arm64"), driver).name == "none"


ANSWERS = [
    ("echo '580.95.05, 9.0'", Driver(580, 9.0)),
    ("printf '535.183.01, 8.9\\n535.183.01, 6.1\\n'", Driver(535, 6.1)),
    ("echo '470.82, [N/A]'", Driver(470, None)),
    ("echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9", None),
    ("echo 'No devices were found'", None),
    ("exec sleep 30", None),
]


@posix
@pytest.mark.parametrize(("script", "driver"), ANSWERS)
def test_the_driver_is_asked(
    script: str, driver: Driver | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert machine.nvidia_driver(seconds=1 if "sleep" in script else 10) == driver


class Quiet(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/cpu/torch/" else 404)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_an_index_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert machine.index_answers(url + "/cpu/torch/")
        assert not machine.index_answers(url + "/cu999/torch/")
        server.shutdown()


def test_an_index_that_does_not_answer_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert not machine.index_answers(f"http://127.0.0.1:{closed_port()}/")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin = time.monotonic()
        assert not machine.index_answers(f"http://127.0.0.1:{silent.getsockname()[1]}/", seconds=0.3)
        assert time.monotonic() - begin < PATIENCE


SENTENCES = [
    ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
    ("ERROR: Could not install packages: [Errno 13] Permission denied: '.venv/lib'", "may not write to .venv"),
    ("error: subprocess-exited-with-error", "status 2"),
]


@pytest.mark.parametrize(("complaint", "sentence"), SENTENCES)
def test_what_pip_complains_about(complaint: str, sentence: str) -> None:
    assert sentence in pip_sentence(complaint, 2)


def test_the_last_words_are_the_last_complaint() -> None:
    said = "Collecting tiny\nERROR: first\nERROR: No matching distribution found for tiny\n\n[notice] a new pip\n"
    assert last_words(said) == "ERROR: No matching distribution found for tiny"
    assert last_words("one\n two \n\n") == "two"
    assert last_words("\n") == "it said nothing"


# --- the real requirement files


def test_the_packages_are_counted_once_and_torch_is_not_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("# of us\ntorch==2.13.0; x\ntiny~=1.0\n\nhttpx[socks]~=1\n")
    (tmp_path / "b").write_text("-r a\ntiny~=1.0\npytest\n")
    assert count_packages(tmp_path, ("a", "b")) == 3


def requirements() -> dict[str, list[str]]:
    lines = {name: (ROOT / name).read_text(encoding="utf-8").splitlines() for name in environment.TEST_FILES}
    return {name: [line for line in text if line and line[0] not in "#-"] for name, text in lines.items()}


def test_torch_is_pinned_and_everything_else_has_a_range() -> None:
    for name, lines in requirements().items():
        for line in lines:
            exact = line.startswith("torch==2.13.0")
            assert exact or re.match(r"[\w-]+(\[\w+\])?~=\d+\.[\d.]+(;|$)", line), f"{name}: {line}"


def test_torch_is_in_the_files_where_it_belongs() -> None:
    with_torch = {name for name, lines in requirements().items() if any(line.startswith("torch") for line in lines)}
    assert with_torch == {"requirements.txt", "requirements-test.txt"}
