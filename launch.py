"""Starts together from a fresh checkout: makes .venv, installs what this machine needs, hands over to the app.

It knows nothing of the app itself, needs the standard library only, and keeps to the syntax of Python 3.6, so that an
old Python gets a sentence and not a SyntaxError.

    python3 launch.py                        start the app
    python3 launch.py ARGS...                the same as `python -m together ARGS...`
    python3 launch.py check                  ruff, mypy and the sizes of files: seconds
    python3 launch.py test [--full] [ARGS]   the same and pytest ARGS; --full adds the long tests

All that launch.py itself has to say goes to stderr: stdout belongs to the app.
"""

import collections
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Deque, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parent
OLDEST_PYTHON = (3, 11)
TORCH_INDEX = "https://download.pytorch.org/whl/"
PROBE_SECONDS = 3.0
BASE_FILES = ("requirements.txt",)
MLX_FILES = ("requirements.txt", "requirements-mlx.txt")
TEST_FILES = ("requirements.txt", "requirements-mlx.txt", "requirements-test.txt")


class Refused(Exception):
    """Something that the person has to change. The message is one sentence: what is wrong and what to do."""


# --- which machine is this


class Machine(NamedTuple):
    """What decides whether and how together can be installed here."""

    python: Tuple[int, ...]
    system: str  # as platform.system(): Linux, Darwin, Windows
    processor: str  # as platform.machine(): x86_64, arm64, ...
    bits: int

    @property
    def apple_silicon(self) -> bool:
        return self.system == "Darwin" and self.processor == "arm64"


def this_machine() -> Machine:
    bits = 64 if sys.maxsize > 2**32 else 32
    return Machine(tuple(sys.version_info[:3]), platform.system(), platform.machine(), bits)


def unsupported(machine: Machine) -> Optional[str]:
    """The sentence that says why together cannot run on `machine`, or None where it can."""
    if machine.python[:2] < OLDEST_PYTHON:
        found, oldest = (".".join(map(str, version)) for version in (machine.python, OLDEST_PYTHON))
        return f"needs Python {oldest} or newer, this is {found}; install one from https://www.python.org/downloads/"
    if machine.system == "Darwin" and machine.processor == "x86_64":
        return (
            "this is a Python for Intel Macs, for which PyTorch and MLX have no build; together runs on Macs with "
            "Apple Silicon, under a Python for arm64"
        )
    if machine.bits != 64:
        return "this is a 32-bit Python, for which PyTorch has no build; install the 64-bit Python"
    return None


# --- which build of torch


class Driver(NamedTuple):
    """An NVIDIA driver that answers. `capability` is the lowest of the GPUs, None where unknown."""

    major: int
    capability: Optional[float]


class TorchBuild(NamedTuple):
    name: str  # "cpu", "cu126" or "cu130", as PyTorch's indexes are named; "none" where MLX takes its place
    why: str
    size: str


def nvidia_driver(seconds: float = 10.0) -> Optional[Driver]:
    """Asks nvidia-smi, and on Linux the kernel where that tool is missing. None where no driver answers."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return _kernel_driver() if os.path.exists("/dev/nvidiactl") else None
    query = [tool, "--query-gpu=driver_version,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    gpus = re.findall(r"^(\d+)[\d.]*, *(\d+\.\d+)?", answer.stdout.decode(errors="replace"), re.MULTILINE)
    if not gpus:
        return None
    return Driver(int(gpus[0][0]), min((float(capability) for _, capability in gpus if capability), default=None))


def _kernel_driver() -> Optional[Driver]:
    try:
        version = re.search(r" (\d{3,})\.\d+", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return Driver(int(version.group(1)), None) if version else None


def choose_torch(machine: Machine, driver: Optional[Driver]) -> TorchBuild:
    """The builds of torch 2.13 and their limits: https://github.com/pytorch/pytorch/blob/main/RELEASE.md."""
    if machine.apple_silicon:
        return TorchBuild("none", "MLX runs the model on Apple Silicon", "")
    if driver is None:
        return TorchBuild("cpu", "no NVIDIA driver answers", "about 200 MB")
    if driver.major < 525:
        why = f"the NVIDIA driver {driver.major} is too old for CUDA 12; update it to use the GPU"
        return TorchBuild("cpu", why, "about 200 MB")
    if driver.major >= 580 and (driver.capability is None or driver.capability >= 7.5):
        return TorchBuild("cu130", f"the NVIDIA driver {driver.major} answers", "2 to 3 GB")
    gpu = "" if driver.capability is None else f", GPU of compute capability {driver.capability}"
    return TorchBuild("cu126", f"the NVIDIA driver {driver.major} answers{gpu}", "2 to 3 GB")


def index_answers(url: str, seconds: float = PROBE_SECONDS) -> bool:
    """True where `url` answers within `seconds`, asked through the proxy that the environment names."""
    answers: List[bool] = []
    # A thread, because a dead name server keeps the resolver waiting whatever the timeout says.
    asking = threading.Thread(target=lambda: answers.append(_answers(url, seconds)), daemon=True)
    asking.start()
    asking.join(seconds)
    return answers == [True]


def _answers(url: str, seconds: float) -> bool:
    import http.client
    import urllib.request  # here, because ssl takes its time to load and only an installation needs it

    try:
        with urllib.request.urlopen(url, timeout=seconds):
            return True
    except (OSError, ValueError, http.client.HTTPException):
        return False


# --- the virtual environment


def venv_python(root: Path) -> Path:
    return root / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def venv_version(root: Path) -> Optional[str]:
    """The Python of .venv as "3.11", or None where there is no .venv that runs, has pip and is new enough."""
    check = "import pip, sys; assert sys.prefix != sys.base_prefix; print('%d.%d' % sys.version_info[:2])"
    try:
        answer = subprocess.run(
            [str(venv_python(root)), "-I", "-c", check], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    version = answer.stdout.decode(errors="replace").strip()
    old = answer.returncode or tuple(map(int, version.split("."))) < OLDEST_PYTHON
    return None if old else version


def make_venv(root: Path) -> None:
    """Makes .venv anew, whatever is there. Raises Refused with the reason where that is not possible."""
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise Refused("this Python cannot make virtual environments; install python3-venv (Debian and Ubuntu) first")
    state = "replacing the broken" if os.path.lexists(str(root / ".venv")) else "making"
    say(f"{state} .venv with Python {platform.python_version()} (one time)")
    command = [sys.executable, "-m", "venv", "--clear", str(root / ".venv")]
    made = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if made.returncode:
        lines = made.stdout.decode(errors="replace").split("\n")
        reason = next((line for line in reversed(lines) if line.strip()), "unknown reason").strip()
        raise Refused(f"cannot make .venv in {root} ({reason}); it has to be a folder that you may write to")


@contextlib.contextmanager
def one_at_a_time(root: Path) -> Iterator[None]:
    """Two starts at once must not install into one .venv. The lock is on launch.py, so it leaves no file behind."""
    with (root / "launch.py").open("rb") as own:
        if not _try_lock(own.fileno()):
            say("waiting for another start that is installing")
            while not _try_lock(own.fileno()):
                threading.Event().wait(0.2)
        yield


if sys.platform == "win32":

    def _try_lock(file: int) -> bool:
        import msvcrt

        os.lseek(file, 1 << 30, os.SEEK_SET)  # far behind the end: a locked byte cannot be read by others
        with contextlib.suppress(OSError):
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
            return True
        return False

else:

    def _try_lock(file: int) -> bool:
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a network folder without locks: go on as if alone
            return True
        return True


# --- what is installed


def stamp_file(root: Path) -> Path:
    return root / ".venv" / "together-installed.json"


def read_stamp(root: Path) -> Dict[str, str]:
    """What was installed completely; empty where nothing was."""
    try:
        stamp = json.loads(stamp_file(root).read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def wanted_stamp(root: Path, build: TorchBuild, files: Sequence[str]) -> Dict[str, str]:
    wanted = {"torch": build.name}
    for name in files:
        if not (root / name).is_file():
            raise Refused(f"{name} is missing beside launch.py; get the whole checkout of together")
        wanted[name] = hashlib.sha256((root / name).read_bytes()).hexdigest()
    return wanted


def is_ready(root: Path, wanted: Dict[str, str]) -> bool:
    """Whether .venv runs and all of `wanted` is installed in it. What else was installed (for tests) may stay."""
    stamp, version = read_stamp(root), venv_version(root)
    return version is not None and {**stamp, **wanted, "python": version} == stamp


def prepare(root: Path, machine: Machine, testing: bool) -> None:
    """Brings .venv to what the requirement files say. Does nothing where it is so already."""
    build = choose_torch(machine, nvidia_driver())
    files = TEST_FILES if testing else MLX_FILES if machine.apple_silicon else BASE_FILES
    wanted = wanted_stamp(root, build, files)
    if is_ready(root, wanted):
        return
    with one_at_a_time(root):
        if not is_ready(root, wanted):
            if venv_version(root) is None:
                make_venv(root)
            install(root, machine, build, files, wanted)


def install(root: Path, machine: Machine, build: TorchBuild, files: Sequence[str], wanted: Dict[str, str]) -> None:
    before = read_stamp(root)
    with contextlib.suppress(OSError):
        stamp_file(root).unlink()  # an interrupted installation must not look complete
    if build.name != "none":
        install_torch(root, machine, build)
    size = 400 if "requirements-test.txt" in files else 150
    say("installing {} (about {} MB the first time)".format(", ".join(files), size))
    pip_install(root, [argument for name in files for argument in ("-r", str(root / name))])
    stamp = {**before, **wanted, "python": venv_version(root)}
    stamp_file(root).write_text(json.dumps(stamp, indent=2) + "\n")


def install_torch(root: Path, machine: Machine, build: TorchBuild) -> None:
    """torch alone, so that PyTorch's index is asked for nothing else."""
    pin = re.search(r"^torch==[\w.]+", (root / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    if pin is None:
        raise Refused("requirements.txt does not pin torch; get a whole checkout of together")
    kind = "CPU build" if build.name == "cpu" else f"CUDA build {build.name}"
    say(f"installing {pin.group()}, {kind}: {build.why} ({build.size})")
    arguments = ["--upgrade", pin.group()]  # --upgrade: a driver that came later turns the CPU build into a CUDA build
    if machine.system != "Windows" or build.name != "cpu":  # on Windows the CPU build is the default one
        if index_answers(f"{TORCH_INDEX}{build.name}/torch/"):
            arguments += ["--extra-index-url", TORCH_INDEX + build.name]
        else:
            say("PyTorch's own index does not answer, so pip takes the build that it finds (it may be several GB)")
    pip_install(root, arguments)


def pip_install(root: Path, arguments: Sequence[str]) -> None:
    """Runs pip with its own progress on the terminal. Raises Refused with a sentence where it fails."""
    command = [str(venv_python(root)), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    complaints: Deque[str] = collections.deque(maxlen=100)
    # pip's progress bars are on its stdout, which goes to our stderr; its warnings and errors pass through us.
    with subprocess.Popen(
        command + list(arguments), stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=subprocess.PIPE
    ) as pip:
        assert pip.stderr is not None
        for line in pip.stderr:
            complaints.append(line.decode(errors="replace"))
            sys.stderr.write(complaints[-1])
            sys.stderr.flush()
    if pip.returncode:
        raise Refused(pip_sentence("".join(complaints), pip.returncode))


def pip_sentence(complaints: str, status: int) -> str:
    """What a person can do about a pip that wrote `complaints` and ended with `status`."""
    if re.search(r"No space left|not enough space on the disk", complaints):
        return "the disk is full; free some space and start again"
    if re.search(r"Permission denied|Read-only file system|Access is denied", complaints):
        return "pip may not write to .venv; give yourself the right to write there, or delete .venv and start again"
    if re.search(r"connection broken|Connection refused|Max retries exceeded|timed out|TimeoutError", complaints):
        return "the package index does not answer; check the network connection and start again, it goes on from here"
    missing = re.search(r"No matching distribution found for (\S+)", complaints)
    if missing:
        here = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
        return f"pip finds no {missing.group(1)} for {here}; Python 3.11 to 3.14 have one on common machines"
    return f"pip could not install the packages (status {status}, its reason is above)"


# --- what is started


def app_environment(root: Path) -> Dict[str, str]:
    """The app runs in the person's own folder, finds its packages in the checkout, and never in that folder."""
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def start_app(root: Path, arguments: Sequence[str]) -> int:
    command = [str(venv_python(root)), "-m", "together", *list(arguments)]
    if os.name == "posix":
        os.execve(command[0], command, app_environment(root))
    app = subprocess.Popen(command, env=app_environment(root))  # Windows cannot replace a process
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C reaches the app as well, and the app decides
            return app.wait()


CHECKS = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["tests.support.sizes"])


def pytest_command(arguments: Sequence[str]) -> List[str]:
    marker = ["-m", ""] if "--full" in arguments else []  # overrides the -m of pyproject.toml
    chosen = [argument for argument in arguments if argument != "--full"]
    # All of them run two files at a time: most wait for processes that start.
    return ["pytest", "-q", *marker, *(chosen or ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"])]


def run_steps(root: Path, commands: Sequence[List[str]]) -> int:
    """Runs every step, also after one that failed. Returns 0 only where all passed."""
    failed = []
    for command in commands:
        say(" ".join(command))
        if subprocess.call([str(venv_python(root)), "-m", *command], cwd=str(root)):
            failed.append(" ".join(command[:2]))
    say("failed: " + ", ".join(failed) if failed else "all passed")
    return 1 if failed else 0


def say(sentence: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"together: {sentence}\n")
    sys.stderr.flush()


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    try:
        machine = this_machine()
        sentence = unsupported(machine)
        if sentence:
            raise Refused(sentence)
        verb = arguments[0] if arguments else ""
        prepare(root, machine, verb in ("check", "test"))
        if verb in ("check", "test"):
            return run_steps(root, [*CHECKS, *([pytest_command(arguments[1:])] if verb == "test" else [])])
        return start_app(root, arguments)
    except Refused as reason:
        say(str(reason))
        return 1
    except KeyboardInterrupt:
        say("interrupted; the next start goes on from here")
        return 130
    except OSError as reason:  # a folder that cannot be read, a process that cannot be started
        say(f"cannot start: {reason}")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
