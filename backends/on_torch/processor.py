"""The processor's name."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """As its maker gives it, where the system tells."""
    if platform.system() == "Linux":
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return next(names, platform.machine())
    return platform.processor() or platform.machine()
