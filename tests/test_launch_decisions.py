"""What launch.py decides, function by function: the machine, the build of torch, the index, pip's complaints.

Knows nothing of installing and starting, which tests/test_launch.py does for real. Nothing leaves loopback.
"""

import ast
import http.server
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

import launch
from launch import Driver, Machine
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


@pytest.mark.parametrize(("machine", "sentence"), REFUSED)
def test_a_machine_that_cannot_run_it(machine: Machine, sentence: str) -> None:
    said = launch.unsupported(machine)
    assert said is not None
    assert re.search(sentence, said)
    assert "\n" not in said


@pytest.mark.parametrize(
    "system", [("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64"), ("Windows", "AMD64")]
)
def test_a_machine_that_can(system: tuple[str, str]) -> None:
    assert launch.unsupported(Machine((3, 11, 0), *system, 64)) is None


def test_an_old_python_can_read_it() -> None:
    source = (ROOT / "launch.py").read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 6))
    future = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    assert future == []  # "annotations" is unknown to 3.6


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
    assert launch.choose_torch(LINUX, driver).name == name
    assert launch.choose_torch(LINUX._replace(system="Darwin", processor="arm64"), driver).name == "none"


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
    assert launch.nvidia_driver(seconds=1 if "sleep" in script else 10) == driver


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
        assert launch.index_answers(url + "/cpu/torch/")
        assert not launch.index_answers(url + "/cu999/torch/")
        server.shutdown()


def test_an_index_that_does_not_answer_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert not launch.index_answers(f"http://127.0.0.1:{closed_port()}/")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin = time.monotonic()
        assert not launch.index_answers(f"http://127.0.0.1:{silent.getsockname()[1]}/", seconds=0.3)
        assert time.monotonic() - begin < PATIENCE


SENTENCES = [
    ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
    ("ERROR: Could not install packages: [Errno 13] Permission denied: '.venv/lib'", "may not write to .venv"),
    ("error: subprocess-exited-with-error", "status 2"),
]


@pytest.mark.parametrize(("complaint", "sentence"), SENTENCES)
def test_what_pip_complains_about(complaint: str, sentence: str) -> None:
    assert sentence in launch.pip_sentence(complaint, 2)


# --- the real requirement files


def requirements() -> dict[str, list[str]]:
    lines = {name: (ROOT / name).read_text(encoding="utf-8").splitlines() for name in launch.TEST_FILES}
    return {name: [line for line in text if line and line[0] not in "#-"] for name, text in lines.items()}


def test_torch_is_pinned_and_everything_else_has_a_range() -> None:
    for name, lines in requirements().items():
        for line in lines:
            exact = line.startswith("torch==2.13.0")
            assert exact or re.match(r"[\w-]+(\[\w+\])?~=\d+\.[\d.]+(;|$)", line), f"{name}: {line}"


def test_torch_is_in_the_files_where_it_belongs() -> None:
    with_torch = {name for name, lines in requirements().items() if any(line.startswith("torch") for line in lines)}
    assert with_torch == {"requirements.txt", "requirements-test.txt"}
