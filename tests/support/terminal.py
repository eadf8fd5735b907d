"""A command on a pseudo-terminal, typed into and read from. Knows no test."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

from tests.conftest import ROOT, RealApp, until
from tests.support.patience import PATIENCE

NO_TERMINALS = os.name == "nt"


class Terminal:
    """A command on a pseudo-terminal, typed into and read from."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        import pty

        self._here, there = pty.openpty()
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=there, stdout=there, stderr=there, preexec_fn=_own_terminal
        )
        os.close(there)
        os.set_blocking(self._here, False)
        self.shown = ""

    @classmethod
    def of(cls, app: RealApp, *arguments: str, **variables: str) -> Terminal:
        """A command of ours, of the same user as the app."""
        usual = {"TERM": "dumb", "COLUMNS": "120", "BROWSER": "true"}
        return cls([sys.executable, "-m", "together", *arguments], app.environment | usual | variables)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        os.close(self._here)

    def type(self, text: str) -> None:
        os.write(self._here, text.encode())

    def choose(self, line: str, *texts: str) -> None:
        """Type a line once something is asked for, and wait for texts that are new since."""
        self.wait_for("> ") if not self.shown else None
        before = {text: self.read().count(text) for text in texts}
        self.type(line + "\n")
        for text in texts:
            self.wait_for(text, times=before[text] + 1)

    def wait_for(self, text: str, times: int = 1) -> None:
        until(lambda: self.read().count(text) >= times, PATIENCE, f"{text!r} {times} times after {self.shown!r}")

    def read(self) -> str:
        """All that it has shown. A program that is not read stops writing, and never ends."""
        with contextlib.suppress(OSError):  # nothing new, or the command ended
            self.shown += os.read(self._here, 65536).decode(errors="replace")
        return self.shown


def _own_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
