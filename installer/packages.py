"""pip, asked for torch and then for the rest: a line for each, its own words in a file."""

import platform
import re
from pathlib import Path
from typing import IO, Sequence

from installer.machine import Machine, TorchBuild, index_answers
from installer.steps import Refused, last_words, run_step, say

TORCH_INDEX = "https://download.pytorch.org/whl/"


def install_packages(root: Path, python: Path, machine: Machine, build: TorchBuild, files: Sequence[str]) -> None:
    """Install torch and the packages of `files` for `python`. Raises Refused with pip's reason."""
    file = root / ".venv" / "install.log"
    with file.open("wb") as log:
        pip = Pip(python, file, log)
        if build.name != "none":
            install_torch(pip, root, machine, build)
        count, size = count_packages(root, files), 400 if "requirements-test.txt" in files else 150
        packages = "1 package and what it needs" if count == 1 else f"{count} packages and what they need"
        words = f"installing {packages} (about {size} MB)"
        pip.install(words, [argument for name in files for argument in ("-r", str(root / name))])


def count_packages(root: Path, files: Sequence[str]) -> int:
    """How many packages the files name, without torch."""
    lines = [line for name in files for line in (root / name).read_text(encoding="utf-8").splitlines()]
    named = [re.match(r"[A-Za-z0-9][\w.-]*", line) for line in lines]
    return len({found.group().lower() for found in named if found} - {"torch"})


def install_torch(pip: "Pip", root: Path, machine: Machine, build: TorchBuild) -> None:
    """torch alone, so that PyTorch's index is asked for nothing else."""
    pin = re.search(r"^torch==([\w.]+)", (root / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    if pin is None:
        raise Refused("requirements.txt does not pin torch; get a whole checkout of together")
    arguments = ["--upgrade", pin.group()]  # --upgrade: a driver that came later turns the CPU build into a CUDA build
    if machine.system != "Windows" or build.name != "cpu":  # on Windows the CPU build is the default one
        if index_answers(f"{TORCH_INDEX}{build.name}/torch/"):
            arguments += ["--extra-index-url", TORCH_INDEX + build.name]
        else:
            say("PyTorch's own index does not answer, so pip takes the build that it finds (it may be several GB)")
    kind = "CPU build" if build.name == "cpu" else "CUDA build " + build.name
    pip.install(f"installing torch {pin.group(1)}, {kind} ({build.size}): {build.why}", arguments)


class Pip:
    """pip of one Python; all that it says goes to `log`, an open `file`."""

    def __init__(self, python: Path, file: Path, log: IO[bytes]) -> None:
        self._command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        self._file = file
        self._log = log

    def install(self, words: str, arguments: Sequence[str]) -> None:
        """Raises Refused with a sentence where pip fails."""
        begin = self._log.tell()
        status = run_step(words, [*self._command, "--progress-bar", "off", *arguments], self._log)
        if status:
            said = self._file.read_bytes()[begin:].decode(errors="replace")
            reason = "{} (pip: {}; all of it: {})"
            raise Refused(reason.format(pip_sentence(said, status), last_words(said), self._file))


def pip_sentence(said: str, status: int) -> str:
    """What a person can do about a pip that said this and ended with `status`."""
    if re.search(r"No space left|not enough space on the disk", said):
        return "the disk is full; free some space and start again"
    if re.search(r"Permission denied|Read-only file system|Access is denied", said):
        return "pip may not write to .venv; give yourself the right to write there, or delete .venv and start again"
    if re.search(r"connection broken|Connection refused|Max retries exceeded|timed out|TimeoutError", said):
        return "the package index does not answer; check the network connection and start again, it goes on from here"
    missing = re.search(r"No matching distribution found for (\S+)", said)
    if missing:
        here = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
        return f"pip finds no {missing.group(1)} for {here}; Python 3.11 to 3.14 have one on common machines"
    return f"pip could not install the packages (status {status})"
