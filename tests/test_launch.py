"""launch.py started in copies of the checkout: real virtual environments, real pip, tiny packages under real names.

Knows nothing of the app: a module of a few lines stands in its place. Nothing leaves loopback.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from installer import environment as installed
from tests.support.patience import PATIENCE

ROOT = Path(__file__).resolve().parent.parent
posix = pytest.mark.skipif(os.name != "posix", reason="signals and shell scripts")

APP = """
import json, os, sys, time
if sys.argv[1:] == ["node"]:
    try:
        print("waiting", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(5)
print(json.dumps({"arguments": sys.argv[1:], "folder": os.getcwd(), "stdin": sys.stdin.read(), "prefix": sys.prefix}))
sys.exit(7)
"""
TOOL = """
import os, sys
print("RAN", os.path.basename(os.path.dirname(__file__)), sys.argv[1:], flush=True)
sys.exit(int(os.environ.get("FAIL") == os.path.basename(os.path.dirname(__file__))))
"""
PACKAGES = {"torch": "2.13.0+cpu", "tiny": "1.0", "ruff": "1.0", "mypy": "1.0", "pytest": "1.0"}
FILES = {
    "together/__main__.py": APP,
    "requirements.txt": "torch==2.13.0; python_version > '3'\ntiny~=1.0\n",
    "requirements-mlx.txt": "-r requirements.txt\n",
    "requirements-test.txt": "ruff\nmypy\npytest\n",
    "tests/support/sizes.py": TOOL,
}
Start = Callable[..., "subprocess.CompletedProcess[str]"]


def write_wheel(folder: Path, name: str, version: str) -> None:
    """A wheel by hand, after https://packaging.python.org/en/latest/specifications/binary-distribution-format/."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": "",
        f"{name}/__main__.py": TOOL,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(path, text)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def make_checkout(folder: Path) -> Path:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    shutil.copytree(ROOT / "installer", folder / "installer", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("launch.py", "together/__init__.py", "together/commands.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """pip finds the tiny packages and asks nobody; a probe of an index ends at a proxy that is not there."""
    wheels = tmp_path_factory.mktemp("wheels")
    for name, version in PACKAGES.items():
        write_wheel(wheels, name, version)
    dead = f"http://127.0.0.1:{closed_port()}"
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("PIP_", "PYTHON"))}
    kept |= {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": str(wheels), "PIP_NO_INDEX": "1", "PIP_RETRIES": "1"}
    return kept | {
        "https_proxy": dead,
        "HTTPS_PROXY": dead,
        "http_proxy": "",
        "HTTP_PROXY": "",
        "no_proxy": "127.0.0.1",
    }


@pytest.fixture(scope="module")
def start(environment: dict[str, str]) -> Start:
    """Runs launch.py of a checkout to its end. Keyword arguments change its environment."""

    def run(checkout: Path, *arguments: str, stdin: str = "", **changes: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(checkout / "launch.py"), *arguments]
        changed = {name: value for name, value in {**environment, **changes}.items() if value or name not in changes}
        return subprocess.run(command, input=stdin, env=changed, cwd=checkout.parent, capture_output=True, text=True)

    return run


@pytest.fixture(scope="module")
def first_start(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> tuple[Path, list[list[str]]]:
    """A checkout after two starts at once, and what each of the two wrote to stdout and stderr."""
    checkout = make_checkout(tmp_path_factory.mktemp("first") / "checkout")
    command = [sys.executable, str(checkout / "launch.py"), "chat", "--top-k", "3"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both = [subprocess.Popen(command, env=environment, cwd=ROOT, text=True, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    outputs = [list(process.communicate("hello\n")) for process in both]
    assert [process.returncode for process in both] == [7, 7], outputs
    return checkout, outputs


@pytest.fixture
def checkout(first_start: tuple[Path, list[list[str]]], tmp_path: Path) -> Path:
    """A copy of a checkout that has been started before."""
    return Path(shutil.copytree(first_start[0], tmp_path / "checkout", symlinks=True))


def refusal(answer: "subprocess.CompletedProcess[str]") -> str:
    """The one sentence that a failed start ends with."""
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert "Traceback" not in answer.stderr
    last = answer.stderr.strip().splitlines()[-1]
    assert last.startswith("together: ")
    return last


def install_log(checkout: Path) -> str:
    return (checkout / ".venv" / "install.log").read_text()


# --- the first start and the next ones


def test_the_first_start_installs_and_hands_over(first_start: tuple[Path, list[list[str]]]) -> None:
    checkout, outputs = first_start
    for stdout, stderr in outputs:
        app = json.loads(stdout)  # nothing but the app writes to stdout
        assert app["arguments"] == ["chat", "--top-k", "3"]
        assert app["stdin"] == "hello\n"
        assert Path(app["folder"]) == ROOT
        assert Path(app["prefix"]) == checkout / ".venv"
        assert "Traceback" not in stderr


def test_two_starts_at_once_install_once(first_start: tuple[Path, list[list[str]]]) -> None:
    said = sorted(stderr.count("installing 1 package ") for _, stderr in first_start[1])
    assert said == [0, 1]
    assert sum("waiting for another start" in stderr for _, stderr in first_start[1]) == 1


def test_it_says_which_torch_and_why(first_start: tuple[Path, list[list[str]]]) -> None:
    said = "".join(stderr for _, stderr in first_start[1])
    if not shutil.which("nvidia-smi"):
        assert "installing torch 2.13.0, CPU build (about 200 MB): no NVIDIA driver answers\n" in said
    assert "PyTorch's own index does not answer" in said
    assert "Successfully installed torch-2.13.0+cpu" in install_log(first_start[0])


def test_each_step_is_a_line(first_start: tuple[Path, list[list[str]]]) -> None:
    said = "".join(stderr for _, stderr in first_start[1])
    lines = [line for line in said.splitlines() if "waiting for another start" not in line]
    assert [line.split()[:2] for line in lines] == [
        ["together:", "making"],
        ["together:", "PyTorch's"],
        ["together:", "installing"],
        ["together:", "installing"],
    ]


def test_an_unchanged_checkout_starts_without_a_word(checkout: Path, start: Start) -> None:
    answer = start(checkout, stdin="again")
    assert (answer.returncode, answer.stderr) == (7, "")
    assert json.loads(answer.stdout)["stdin"] == "again"


def test_changed_requirements_are_installed_once(checkout: Path, start: Start) -> None:
    (checkout / "requirements.txt").write_text(FILES["requirements.txt"] + "mypy\n")
    assert "installing 2 packages" in start(checkout).stderr
    assert "Successfully installed mypy-1.0" in install_log(checkout)
    assert start(checkout).stderr == ""


def test_what_makes_an_installation_stale(checkout: Path) -> None:
    stamp = installed.read_stamp(checkout)
    assert installed.is_ready(checkout, stamp)
    assert not installed.is_ready(checkout, {**stamp, "requirements-test.txt": "not installed"})
    assert {"torch", "python", "requirements.txt"} <= stamp.keys()
    for name in stamp:
        installed.stamp_file(checkout).write_text(json.dumps({**stamp, name: "another"}))
        wanted = {key: value for key, value in stamp.items() if key != "python"}
        assert not installed.is_ready(checkout, wanted), name


@pytest.mark.full  # it installs once more
@posix
def test_on_a_terminal_the_seconds_run(tmp_path: Path, environment: dict[str, str]) -> None:
    import pty

    fresh = make_checkout(tmp_path / "fresh")
    (fresh / "requirements.txt").write_text("torch==2.13.0\nabsent\n")
    here, there = pty.openpty()
    command = [sys.executable, str(fresh / "launch.py")]
    with subprocess.Popen(command, env=environment, stdin=there, stdout=there, stderr=there) as process:
        os.close(there)
        shown = b""
        with contextlib.suppress(OSError):  # Linux ends a terminal with an error
            while piece := os.read(here, 4096):
                shown += piece
    os.close(here)
    assert process.returncode == 1
    last, *_, sentence = shown.decode().replace("\r\n", "\n").strip().split("\n")[-2:]
    assert re.search(r"\rtogether: installing 1 package and what it needs \(about 150 MB\) … \d+ s$", last)
    assert sentence.startswith("together: pip finds no absent for Python 3.")


def test_the_app_learns_how_it_was_typed(checkout: Path, environment: dict[str, str]) -> None:
    (checkout / "together/__main__.py").write_text("from together import commands\nprint(commands.launch('stop'))\n")
    for folder, script in ((checkout, "launch.py"), (checkout.parent, "checkout/launch.py")):
        command = [sys.executable, script]
        answer = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
        assert answer.stdout == f"{Path(sys.executable).name} {script} stop\n"


def test_help_of_a_command_is_the_app_s_once_it_is_installed(checkout: Path, start: Start) -> None:
    for line in (["help", "up"], ["up", "--help"]):
        assert json.loads(start(checkout, *line).stdout)["arguments"] == ["up", "--help"]


def test_a_broken_venv_is_made_anew(checkout: Path, start: Start) -> None:
    installed.venv_python(checkout).unlink()
    answer = start(checkout)
    assert answer.returncode == 7
    assert "replacing the broken .venv" in answer.stderr


# --- what can go wrong


def test_without_network_it_says_so_and_goes_on_later(checkout: Path, start: Start) -> None:
    (checkout / "requirements.txt").write_text("torch==2.13.0\ntiny~=1.0\nmypy\n")
    nowhere = {"PIP_INDEX_URL": f"http://127.0.0.1:{closed_port()}/simple", "PIP_NO_INDEX": "", "PIP_FIND_LINKS": ""}
    said = refusal(start(checkout, **nowhere))
    assert "check the network connection" in said
    assert "(pip: ERROR: No matching distribution found for mypy; all of it: " in said
    assert said.endswith(f"{checkout / '.venv' / 'install.log'})")
    assert not installed.stamp_file(checkout).exists()
    assert start(checkout).returncode == 7


def test_a_package_that_does_not_exist_is_named(checkout: Path, start: Start) -> None:
    (checkout / "requirements.txt").write_text("torch==2.13.0\ntiny~=2.0\n")
    assert "pip finds no tiny~=2.0 for Python 3." in refusal(start(checkout))


def test_an_incomplete_checkout(checkout: Path, start: Start) -> None:
    (checkout / "requirements.txt").unlink()
    assert "requirements.txt is missing" in refusal(start(checkout))


def test_a_python_without_ensurepip(tmp_path: Path, start: Start) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['ensurepip'] = None\n")
    answer = start(make_checkout(tmp_path / "checkout"), PYTHONPATH=str(tmp_path))
    assert "install python3-venv" in refusal(answer)


def test_something_else_in_the_place_of_venv(tmp_path: Path, start: Start) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    (checkout / ".venv").write_text("a file")
    assert "cannot make .venv in" in refusal(start(checkout))


@posix
def test_a_folder_that_cannot_be_written(environment: dict[str, str]) -> None:
    nobody = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}  # root writes anywhere
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is closed to other users
        checkout = make_checkout(Path(folder))
        checkout.chmod(0o555)
        command = [python_for_everybody() if nobody else sys.executable, "-B", str(checkout / "launch.py")]
        answer = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, **nobody)  # type: ignore[call-overload]
        checkout.chmod(0o755)
    assert "a folder that you may write to" in refusal(answer)


def python_for_everybody() -> str:
    """One that other users may start too; root's own often is not."""
    for python in ("/usr/bin/python3", "/usr/local/bin/python3"):
        check = [python, "-c", "import sys, ensurepip; sys.exit(sys.version_info < (3, 11))"]
        if os.path.exists(python) and subprocess.run(check, capture_output=True).returncode == 0:
            return python
    pytest.skip("no Python that another user than root may start")


@contextlib.contextmanager
def started(checkout: Path, environment: dict[str, str], *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """launch.py as the leader of a process group, as a terminal starts it."""
    command = [sys.executable, str(checkout / "launch.py"), *arguments]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@posix
def test_ctrl_c_belongs_to_the_app(checkout: Path, environment: dict[str, str]) -> None:
    with started(checkout, environment, "node") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stderr) == (5, "")


@posix
def test_ctrl_c_while_installing(checkout: Path, environment: dict[str, str]) -> None:
    (checkout / "requirements.txt").write_text("torch==2.13.0\nabsent\n")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # pip waits for an index that never answers
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        waiting = {**environment, "PIP_INDEX_URL": index}
        del waiting["PIP_NO_INDEX"]
        with started(checkout, waiting) as process:
            silent.settimeout(PATIENCE)
            connection, _ = silent.accept()
            with connection:
                os.killpg(process.pid, signal.SIGINT)
                _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert stderr.endswith("together: interrupted; the next start goes on from here\n")
    assert "launch.py" not in stderr
    assert not installed.stamp_file(checkout).exists()


# --- launch.py test


def ran(answer: "subprocess.CompletedProcess[str]") -> list[str]:
    return re.findall(r"^RAN (.*)$", answer.stdout, re.MULTILINE)


def test_the_tests_run_every_step(checkout: Path, start: Start) -> None:
    passed = start(checkout, "test", "-k", "one")
    assert passed.returncode == 0, passed.stderr
    assert ran(passed) == [
        "ruff ['check', '.']",
        "ruff ['format', '--check', '.']",
        "mypy []",
        "support []",
        "pytest ['-q', '-k', 'one']",
    ]
    assert passed.stderr.endswith("together: all passed\n")
    assert ran(start(checkout, "check")) == ran(passed)[:-1]

    failed = start(checkout, "test", "--full", FAIL="mypy")
    assert failed.returncode == 1
    assert ran(failed)[2:] == [
        "mypy []",
        "support []",
        "pytest ['-q', '-m', '', '-n', '4', '--dist', 'loadfile', '--no-loadscope-reorder']",
    ]
    assert failed.stderr.endswith("together: failed: mypy\n")
    assert "installing" not in failed.stderr
    assert start(checkout).stderr == ""  # the app needs nothing that the tests have not installed


def test_full_overrides_the_default_marker(tmp_path: Path) -> None:
    """What `test --full` hands to the real pytest runs what pyproject.toml leaves out."""
    (tmp_path / "test_long.py").write_text("import pytest\n\n@pytest.mark.full\ndef test_long(): pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), str(tmp_path), "-m", ""]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    assert settings["addopts"][:2] == ["-m", "not full"]
    assert "1 passed" in subprocess.run(command, capture_output=True, text=True).stdout
