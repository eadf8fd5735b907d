"""Texts for the clipboard, by the programs that each system has for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

WITHIN = 5.0  # seconds
_OF_X = (("xclip", "-selection", "clipboard"), ("xsel", "--clipboard", "--input"))


def programs(platform: str, environment: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """Command lines that take a text on their standard input, the best one first; none where there is no clipboard."""
    if platform == "win32":
        return (("clip",),)
    if platform == "darwin":
        return (("pbcopy",),)
    wayland = (("wl-copy",),) if environment.get("WAYLAND_DISPLAY") else ()
    return (*wayland, *(_OF_X if environment.get("DISPLAY") else ()))


def copy(text: str) -> bool:
    """Whether it is in the clipboard now."""
    return any(_run(line, text) for line in programs(sys.platform, os.environ))


def _run(line: tuple[str, ...], text: str) -> bool:
    program = shutil.which(line[0])
    if program is None:
        return False
    # What stays to hand the text out keeps the pipes that it was given, so it is given none but its input.
    nowhere = subprocess.DEVNULL
    encoded = text.encode("utf-16-le" if line == ("clip",) else "utf-8")
    try:
        done = subprocess.run(
            [program, *line[1:]], input=encoded, stdout=nowhere, stderr=nowhere, timeout=WITHIN, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
