"""Machines of tests share one disk: a process that sees an empty disk in the place of a folder. Knows no test."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile

# And the folder; then the command, which keeps its arguments and its input.
HIDING = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"')


def can_hide() -> bool:
    """Whether this system permits it."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    trial = [*HIDING, tempfile.gettempdir(), "true"]
    return subprocess.run(trial, capture_output=True, check=False).returncode == 0
