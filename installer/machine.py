"""Whether this machine can run together, and which build of torch it needs."""

import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import List, NamedTuple, Optional, Tuple

OLDEST_PYTHON = (3, 11)
PROBE_SECONDS = 3.0


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
