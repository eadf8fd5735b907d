"""The virtual environment beside launch.py, what is installed in it, and what should be."""

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Dict, Iterator, Optional, Sequence

from installer.machine import OLDEST_PYTHON, Machine, TorchBuild, choose_torch, nvidia_driver
from installer.packages import install_packages
from installer.steps import Refused, last_words, run_step, say

BASE_FILES = ("requirements.txt",)
MLX_FILES = ("requirements.txt", "requirements-mlx.txt")
TEST_FILES = ("requirements.txt", "requirements-mlx.txt", "requirements-test.txt")


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
    words = f"{state} .venv with Python {platform.python_version()} (one time)"
    with tempfile.TemporaryFile() as said:  # not in .venv, which is emptied
        if run_step(words, [sys.executable, "-m", "venv", "--clear", str(root / ".venv")], said):
            said.seek(0)
            reason = last_words(said.read().decode(errors="replace"))
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
    install_packages(root, venv_python(root), machine, build, files)
    stamp = {**before, **wanted, "python": venv_version(root)}
    stamp_file(root).write_text(json.dumps(stamp, indent=2) + "\n")
